"""The `ray-mlc` command line."""
