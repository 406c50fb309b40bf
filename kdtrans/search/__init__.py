"""Decoding: from encoder output to hypotheses."""
