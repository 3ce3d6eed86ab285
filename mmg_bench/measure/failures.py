"""What cannot be measured: out of memory, or a method that fails. Either is a result, and the others continue."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from mmg_bench.faults import told
from mmg_bench.measure.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why something has no value."""

    why: str
    """The reason, in one line."""
    memory: bool
    """Whether memory ran out, which a retry does not change; otherwise it is a fault, which can be fixed."""

    @classmethod
    def of(cls, error: Exception, stage: str) -> Failure:
        """The failure for an error raised in `stage`."""
        if out_of_memory(error):
            return cls(f"out of memory in {stage}: {(str(error).splitlines() or [type(error).__name__])[0]}", True)
        return cls(told(error), False)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine ran out of memory."""
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def attempt(clock: Clock, task: Callable[..., T], *arguments: Any) -> T | Failure:
    """The result of a task, or its failure, after the memory that it held is freed."""
    return _tried(clock, task, arguments, lambda error: True)  # any error counts as the method's


def within_memory(clock: Clock, task: Callable[..., T], *arguments: Any) -> T | Failure:
    """As `attempt`, for a task that does not belong to a method: errors other than out of memory are raised."""
    return _tried(clock, task, arguments, out_of_memory)


def _tried(
    clock: Clock, task: Callable[..., T], arguments: tuple[Any, ...], a_result: Callable[[Exception], bool]
) -> T | Failure:
    try:
        return task(*arguments)
    except Exception as error:
        if not a_result(error):
            raise
        failure = Failure.of(error, clock.stage_now.removesuffix("_ms"))
    # after the except clause: the traceback, which holds the tensors, is gone
    clock.clear()
    free()
    return failure


def free() -> None:
    """Release memory that is no longer in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tell(who: str, failure: Failure, option: str) -> None:
    """Report at once that a fault keeps `who` from being measured; `option` is the command's option for methods.

    Out of memory is reported by the table instead.
    """
    if not failure.memory:
        tqdm.write(f"{who} cannot be measured: {failure.why}; fix this, or leave the method out of `{option}`")


def listed(failed: Iterable[tuple[str, str]]) -> str:
    """Lines that name all `(who, why)`, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for who, why in failed:
        by_reason.setdefault(why, []).append(who)
    return "\n".join(f"failed: {', '.join(names)}: {why}" for why, names in by_reason.items())
