"""Distil a large pre-trained transducer into a small Conformer transducer with the one-best-path loss."""

__version__ = "0.1.0"
