"""Models: what reads and writes visual tokens of unmodified transformers models."""
