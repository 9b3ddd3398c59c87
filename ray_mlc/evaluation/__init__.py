"""How good a model is, and which thresholds suit it."""
