"""CUDA graphs for tests where there is no GPU: operations that are recorded, and run again on the very same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2")
"""Operations for which a host would wait."""


def _places(values: Any) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in tree_leaves(values) if isinstance(x, Tensor)}


class Graph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`: while it is entered it records, and computes as well."""

    def __init__(self) -> None:
        super().__init__()
        self._launches: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        output = func(*args, **kwargs)
        self._launches.append((func, args, kwargs, output))
        return output

    def replay(self) -> None:
        """What was launched, and nothing of what Python did between."""
        with torch.inference_mode():
            for func, args, kwargs, output in self._launches:
                if func._schema.is_mutable or not _places(output) & _places((args, kwargs)):
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old is not new:
                            old.copy_(new)


@contextmanager
def mock_graphs() -> Iterator[None]:
    """While it is entered, what CUDA graphs are made of is there, for tensors of the host."""

    @contextmanager
    def recorded(graph: Graph, pool: Any) -> Iterator[None]:
        assert pool == "pool"
        with graph:
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", recorded)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        yield
