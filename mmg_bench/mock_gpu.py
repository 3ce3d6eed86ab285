"""A GPU that is not there: tensors that say they are on `cuda:0`, with their values in memory.

    with MockGpu() as gpu:
        pruned = method.prune(replace(tokens, features=tokens.features.to("cuda")))
        gpu.kernels, gpu.waits

What runs there takes the branches of a GPU, and what a GPU refuses is refused: tensors of both sides in one operation,
a NumPy view, a generator of the host's. So a machine without a GPU finds faults that it would never meet itself.
Triton's kernels need a real one (`_ops.takes_triton`). Values are worked out on the CPU: neither times nor roundings of
a GPU can be had here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_GETTERS: dict[Any, Any] = {
    getattr(Tensor, name).__get__: value for name, value in (("device", GPU), ("is_cuda", True), ("is_cpu", False))
}
_MOVES = (Tensor.to, Tensor.cuda, Tensor.cpu)
_FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_WRITES = (Tensor.__setitem__, Tensor.index_put, Tensor.index_put_, torch.index_put, torch.index_put_)
_NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_unsafe_view", "set_")
"""Operations that launch nothing, views apart."""
_FILLS = ("fill_", "masked_fill", "masked_fill_")
"""Operations beside those value by value that take a single number of the host's."""


class OnGpu(Tensor):
    """A tensor that a MockGpu takes for one of its own."""


class MockGpu(TorchFunctionMode):
    """While it is entered, `cuda` is a device that tensors can be sent to, made on and read back from."""

    def __init__(self) -> None:
        super().__init__()
        self._watch = _Watch()

    @property
    def kernels(self) -> int:
        """Operations that it was given; each is one kernel, or several (a sort)."""
        return self._watch.kernels

    @property
    def waits(self) -> list[str]:
        """Where the host had to wait for it: a value read, a shape that depends on values, a blocking copy."""
        return self._watch.waits

    def __enter__(self) -> Self:
        self._watch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._watch.__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as torch does, on the side where the tensors are; what is made of those of the GPU is on it."""
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = any(map(_here, given))
        if func in _GETTERS and here:
            return _GETTERS[func]
        if func is torch._has_compatible_shallow_copy_type:  # a module makes a new parameter then, of a kind of ours
            return all(map(_here, given))
        if func in _MOVES and (here or _wants_gpu(func, args, kwargs)):
            return self._moved(func, *args, **kwargs)
        asked = kwargs.get("device")
        made = _is_gpu(asked)
        if not (here or made):
            return func(*args, **kwargs)
        if func is Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if (generator := kwargs.get("generator")) is not None and generator.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        scalars = _check_together(func, args, given) if here else False
        if made:
            kwargs["device"] = "cpu"
        if "out_dtype" in kwargs:  # these products, and the next, torch has for a GPU alone
            dtype = kwargs.pop("out_dtype")
            args = [x.to(dtype) for x in args]
        if func is torch.histc:
            args = (args[0].float(), *args[1:])
        if func is Tensor.tolist or (func in _FROM_HOST and not here):
            self._watch.wait(func.__name__)
        result = self._watch.run(func, args, kwargs, pointwise=scalars)
        if isinstance(result, torch.Size) or (args and result is args[0]):
            return result
        return tree_map(_put, result) if asked is None or made else tree_map(_read, result)

    def _moved(self, func: Any, tensor: Tensor, *where: Any, **options: Any) -> Tensor:
        if func in (Tensor.cuda, Tensor.cpu):
            where, options = ("cuda" if func is Tensor.cuda else "cpu",), {}
        if where and isinstance(other := where[0], Tensor):
            where = (GPU if _here(other) else other.device, other.dtype)
        copy = options.pop("copy", False)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*where, **options)
        before = _here(tensor)
        after = before if device is None else _is_gpu(device)
        if before != after and not non_blocking:
            self._watch.wait("copy")
        keywords = {"dtype": dtype or tensor.dtype, "copy": copy or before != after}
        return (_put if after else _read)(self._watch.run(Tensor.to, (tensor,), keywords))


class _Watch(TorchDispatchMode):
    """Counts what comes to the kernels while `run` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.waits: list[str] = []
        self._running = False
        self._pointwise = False

    def run(self, func: Any, args: Any, kwargs: Any, *, pointwise: bool = False) -> Any:
        """Call `func` and count; `pointwise`: refuse any kernel that does not work value by value."""
        self._running, self._pointwise = True, pointwise
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        finally:
            self._running = self._pointwise = False

    def wait(self, why: str) -> None:
        """Note that the host waits, and the line of the code that makes it wait."""
        frame = sys._getframe(1)
        while frame.f_back and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
            frame = frame.f_back
        self.waits.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {why}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self._running and not func.is_view and name not in _NO_KERNEL:
            if self._pointwise and torch.Tag.pointwise not in func.tags and name not in _FILLS:
                raise _apart(name)
            self.kernels += 1
            if name != "nonzero_static" and _depends_on_values(func, args):
                self.wait(name)
        return func(*args, **(kwargs or {}))


def _depends_on_values(func: Any, args: Any) -> bool:
    """Whether the host has to know values of the GPU's before it can go on."""
    if func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default:
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _check_together(func: Any, args: Any, given: list[Tensor]) -> bool:
    """Raise RuntimeError for tensors of the host's where a GPU takes none.

    Returns whether single numbers are among them, which go into work value by value. Indices may be the host's, and
    copies go both ways.
    """
    strangers = [x for x in given if not _here(x)]
    if not strangers or func is Tensor.copy_:
        return False
    if func in (Tensor.__getitem__, *_WRITES):
        target, index, *values = args
        indices = [x for x in tree_leaves(index) if isinstance(x, Tensor)]
        if func is Tensor.__setitem__ and not indices:
            return False
        foreign = [x for x in values if isinstance(x, Tensor) and x.dim() and _here(x) != _here(target)]
        if not foreign and (_here(target) or not any(map(_here, indices))):
            return False
    elif all(x.dim() == 0 for x in strangers):
        return True
    raise _apart(func.__name__)


def _here(tensor: Tensor) -> bool:
    return isinstance(tensor, OnGpu)


def _apart(name: str) -> RuntimeError:
    return RuntimeError(f"Expected all tensors to be on the same device, but {name} was given cuda:0 and cpu")


def _wants_gpu(func: Any, args: Any, kwargs: Any) -> bool:
    named = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, str | torch.device)]
    return func is Tensor.cuda or any(map(_is_gpu, named))


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _put(value: Any) -> Any:
    return value.as_subclass(OnGpu) if isinstance(value, Tensor) else value


def _read(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value
