"""Fine-tune encoders for multi-label text classification and tag corpora of any size, on Ray."""

__version__ = "0.1.0"
