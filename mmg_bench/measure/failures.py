"""What cannot be measured: memory that ends, or a method that fails. Either is a result, and the others go on."""

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
    """In one line."""
    memory: bool
    """Whether memory ended, which another try does not change; else it is a fault, which can be mended."""

    @classmethod
    def of(cls, error: Exception, stage: str) -> Failure:
        """What an error comes to that was raised in `stage`."""
        if out_of_memory(error):
            return cls(f"out of memory in {stage}: {(str(error).splitlines() or [type(error).__name__])[0]}", True)
        return cls(told(error), False)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the machine, has no memory left."""
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def attempt(clock: Clock, task: Callable[..., T], *arguments: Any) -> T | Failure:
    """What a task returns; or why it failed, once the memory that it held is free again."""
    return _tried(clock, task, arguments, lambda error: True)  # a method's, whatever it is


def within_memory(clock: Clock, task: Callable[..., T], *arguments: Any) -> T | Failure:
    """As `attempt`, of a task that is no method's: raises what it raises, but where memory ended."""
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
    # behind the except clause: the traceback, which holds the tensors, is gone
    clock.clear()
    free()
    return failure


def free() -> None:
    """Give back the memory that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tell(who: str, failure: Failure, option: str) -> None:
    """Say at once that a fault keeps `who` from being measured; `option` is where the command has its methods from.

    Of memory that ended, the table tells.
    """
    if not failure.memory:
        tqdm.write(f"{who} cannot be measured: {failure.why}; mend it, or leave it out of `{option}`")


def listed(failed: Iterable[tuple[str, str]]) -> str:
    """Lines that name all of the (who, why), those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for who, why in failed:
        by_reason.setdefault(why, []).append(who)
    return "\n".join(f"failed: {', '.join(names)}: {why}" for why, names in by_reason.items())
