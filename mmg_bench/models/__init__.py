"""Models: reading and writing the visual tokens of unmodified transformers models."""
