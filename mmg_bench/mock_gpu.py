"""A mock GPU: tensors that report `cuda:0` as their device, with their values in host memory.

    with MockGpu() as gpu:
        pruned = method.prune(replace(tokens, features=tokens.features.to("cuda")))
        gpu.kernels, gpu.waits

Code that runs on it takes the GPU branches, and what a GPU refuses is refused: tensors of two devices in one operation,
a NumPy view, a host generator. So a machine without a GPU can find faults that only occur on one. Triton kernels need a
real GPU (`_ops.takes_triton`). Values are computed on the CPU, so neither the timing nor the rounding of a GPU can be
tested here.
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

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
_DEVICE, _IS_CUDA, _IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_MOVES = (Tensor.to, Tensor.cuda, Tensor.cpu)
_FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_WRITES = (Tensor.__setitem__, Tensor.index_put, Tensor.index_put_, torch.index_put, torch.index_put_)
_COPIES = (Tensor.copy_, Tensor.__getitem__, *_WRITES)
"""Functions that, given tensors on two devices, copy from one to the other."""
_NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_unsafe_view", "set_")
"""Operations that launch no kernel, other than views."""
_FILLS = ("fill_", "masked_fill", "masked_fill_")
"""Operations that take a single number from the host, other than pointwise ones."""
_BETWEEN = (__file__, str(Path(torch.__file__).parent))
"""Files whose stack frames lie between the code that makes the host wait and `_Watch.wait`."""


class OnGpu(Tensor):
    """A tensor that a MockGpu treats as its own."""

    gpu: torch.device
    """The device that it reports."""


class MockGpu(TorchFunctionMode):
    """Context in which `cuda` is a device, or `count` of them, that tensors can be sent to, made on and read from."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self._count = count
        self._watch = _Watch()

    @property
    def kernels(self) -> int:
        """Number of operations run on it; each is one kernel, or several (a sort)."""
        return self._watch.kernels

    @property
    def waits(self) -> list[str]:
        """Places where the host had to wait for it: a value read, a shape that depends on values, a blocking copy."""
        return self._watch.waits

    def __enter__(self) -> Self:
        self._watch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._watch.__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as torch does on the tensors' devices; results of a GPU's tensors are on that GPU."""
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = next((_at(x) for x in given if isinstance(x, OnGpu)), None)
        if here and func in (_DEVICE, _IS_CUDA, _IS_CPU):
            return here if func == _DEVICE else func == _IS_CUDA
        if func is torch._has_compatible_shallow_copy_type:  # if False, a module makes a new parameter, of our class
            return len({_at(x) for x in given}) == 1
        if func in _MOVES and (here or func is Tensor.cuda or any(map(self._gpu, (*args[1:], *kwargs.values())))):
            return self._moved(func, *args, **kwargs)
        made = self._gpu(kwargs.get("device"))
        if here is None and made is None:
            return func(*args, **kwargs)
        if func is Tensor.get_device:
            return here.index if here else -1
        if func in _TO_NUMPY:
            raise TypeError(f"can't convert {here} device type tensor to numpy. Use Tensor.cpu() first")
        if (generator := kwargs.get("generator")) is not None and generator.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        single_numbers = _check_together(func, args, given) if here else False
        if func in _COPIES and not single_numbers and len({_at(x) for x in given}) > 1:
            self._watch.wait("copy")  # even of indices
        if made:
            kwargs["device"] = CPU
        if "out_dtype" in kwargs:  # torch has these products, and histc of integers, only on GPUs
            dtype = kwargs.pop("out_dtype")
            args = [x.to(dtype) for x in args]
        if func is torch.histc:
            args = (args[0].float(), *args[1:])
        if func is Tensor.tolist or (func in _FROM_HOST and not here):
            self._watch.wait(func.__name__)
        result = self._watch.run(func, args, kwargs, pointwise=single_numbers)
        if isinstance(result, torch.Size) or (args and result is args[0]):
            return result
        where = made or (here if here and kwargs.get("device") is None else CPU)
        return tree_map(lambda value: _put(value, where), result)

    def _gpu(self, device: Any) -> torch.device | None:
        """The GPU that `device` names; None for any other device. Raises RuntimeError if there are not that many."""
        if type(device) is int:
            device = f"cuda:{device}"
        if not isinstance(device, str | torch.device) or (named := torch.device(device)).type != "cuda":
            return None
        if (named.index or 0) >= self._count:
            raise RuntimeError(f"CUDA error: invalid device ordinal: {named}")
        return torch.device("cuda", named.index or 0)

    def _moved(self, func: Any, tensor: Tensor, *where: Any, **options: Any) -> Tensor:
        if func in (Tensor.cuda, Tensor.cpu):
            where, options = ("cuda" if func is Tensor.cuda else "cpu",), {}
        if where and isinstance(other := where[0], Tensor):
            where = (_at(other), other.dtype)
        copy, where = options.pop("copy", False), tuple(self._gpu(x) or x for x in where)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*where, **options)
        before = _at(tensor)
        after = before if device is None else self._gpu(device) or device
        if before == after and not copy and dtype in (None, tensor.dtype):
            return tensor
        if before != after and not non_blocking:
            self._watch.wait("copy")
        keywords = {"dtype": dtype or tensor.dtype, "copy": copy or before != after}
        return _put(self._watch.run(Tensor.to, (tensor,), keywords), after)


class _Watch(TorchDispatchMode):
    """Counts kernel calls during `run`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.waits: list[str] = []
        self._running = False
        self._pointwise = False

    def run(self, func: Any, args: Any, kwargs: Any, *, pointwise: bool = False) -> Any:
        """Call `func` and count its kernels. With `pointwise`, refuse any kernel that is not pointwise."""
        self._running, self._pointwise = True, pointwise
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        finally:
            self._running = self._pointwise = False

    def wait(self, why: str) -> None:
        """Record that the host waits, and the line of code that makes it wait."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_filename.startswith(_BETWEEN):
            frame = frame.f_back
        self.waits.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {why}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self._running and not func.is_view and name not in _NO_KERNEL:
            if self._pointwise and torch.Tag.pointwise not in func.tags and name not in _FILLS:
                raise _apart(name, GPU, CPU)
            self.kernels += 1
            if name != "nonzero_static" and _depends_on_values(func, args):
                self.wait(name)
        return func(*args, **(kwargs or {}))


def _depends_on_values(func: Any, args: Any) -> bool:
    """Whether the host needs values from the GPU before it can continue."""
    if func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default:
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _check_together(func: Any, args: Any, given: list[Tensor]) -> bool:
    """Raise RuntimeError for tensors on several devices if torch refuses them.

    Returns whether zero-dimensional host tensors are among a GPU's tensors: pointwise operations take them. Indices may
    be on the host, and copies work between any devices.
    """
    devices = {_at(x) for x in given}
    if len(devices) == 1 or func is Tensor.copy_:
        return False
    if func in (Tensor.__getitem__, *_WRITES):
        target, index, *values = args
        indices = [x for x in tree_leaves(index) if isinstance(x, Tensor)]
        if func is Tensor.__setitem__ and not indices:
            return False
        foreign = [x for x in values if isinstance(x, Tensor) and x.dim() and _at(x) != _at(target)]
        if not foreign and all(_at(x) in (CPU, _at(target)) for x in indices):
            return False
    elif len({_at(x) for x in given if x.dim() or _at(x) != CPU}) == 1:
        return True
    raise _apart(func.__name__, *sorted(devices, key=str, reverse=True))


def _at(tensor: Tensor) -> torch.device:
    return tensor.gpu if isinstance(tensor, OnGpu) else tensor.device


def _put(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor) or device.type == "meta":
        return value
    if device.type != "cuda":
        return value.as_subclass(Tensor)
    put = value.as_subclass(OnGpu)
    put.gpu = device
    return put


def _apart(name: str, *devices: torch.device) -> RuntimeError:
    found = " and ".join(map(str, devices))
    return RuntimeError(f"Expected all tensors to be on the same device, but {name} was given {found}")
