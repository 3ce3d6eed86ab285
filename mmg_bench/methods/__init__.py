"""Pruning methods: one file each, named as the method. None of them knows a model, a benchmark or a file format.

`from mmg_bench.methods import Method, MMGVid` finds their classes, too.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmg_bench.methods.base import Method

__all__ = ["Method"]


def __getattr__(name: str) -> Any:
    """A class that is asked for. None is imported before: torch takes seconds."""
    if name == "Method":
        from mmg_bench.methods.base import Method

        return Method
    if name[:1].isupper():  # otherwise it is a file, which is being imported
        from mmg_bench.methods.registry import built_in, method_class

        for found in map(method_class, built_in()):
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
