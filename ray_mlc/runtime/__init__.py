"""The steps put to work: in one process or on Ray. Only this package imports Ray."""
