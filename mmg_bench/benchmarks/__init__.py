"""Benchmarks: lmms-eval tasks as a stream of questions."""
