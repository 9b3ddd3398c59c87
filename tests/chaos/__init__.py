"""Runs that are broken on purpose, continued, and compared with an undisturbed one."""
