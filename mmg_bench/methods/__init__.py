"""Pruning methods: one file each, named as the method. None of them knows a model, a benchmark or a file format."""

from mmg_bench.methods.base import Method

__all__ = ["Method"]
