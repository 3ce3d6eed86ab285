"""mmg_bench: a reproducible benchmark for training-free visual-token pruning in video LLMs."""

__version__ = "0.1.0"
