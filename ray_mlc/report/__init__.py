"""Reports: one self-contained HTML page each, which opens without a network."""
