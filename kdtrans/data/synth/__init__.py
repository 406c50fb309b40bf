"""The embedded corpus: a small grammar (grammar), seeded espeak-ng voices (voices) and the tree they fill (corpus)."""
