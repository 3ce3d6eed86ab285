"""Pruning methods: one file each, named as the method. None of them knows a model, a benchmark or a file format."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmg_bench.methods.base import Method

__all__ = ["Method"]


def __getattr__(name: str) -> Any:
    if name != "Method":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmg_bench.methods.base import Method  # not before it is asked for: torch takes seconds

    return Method
