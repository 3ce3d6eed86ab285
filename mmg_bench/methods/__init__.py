"""Pruning methods: one file each, named after the method. None depends on a model, a benchmark or a file format.

The classes can be imported from here: `from mmg_bench.methods import Method, MMGVid`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmg_bench.methods.base import Method

__all__ = ["Method"]


def __getattr__(name: str) -> Any:
    """Import a class on first use, because importing torch takes seconds."""
    if name == "Method":
        from mmg_bench.methods.base import Method

        return Method
    if name[:1].isupper():  # otherwise it is a module being imported
        from mmg_bench.methods.registry import built_in, method_class

        for found in map(method_class, built_in()):
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
