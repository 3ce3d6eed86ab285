"""Several processes on one machine, each with a share of the work: a small model leaves most of a core to Python."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


class WorkerError(RuntimeError):
    """A worker process ended without having done its share."""


def workers_for(wanted: int | str, device: str) -> int:
    """How many processes `workers` means: `auto` takes one for each core, and one alone on a GPU.

    Raises ValueError for anything but `auto` or a positive number.
    """
    if wanted == "auto":
        return len(os.sched_getaffinity(0)) if device == "cpu" else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"workers={wanted!r}: it must be auto or a positive number of processes")
    return wanted


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(index, count, *arguments)` in `count` new processes and wait for all of them.

    Only the first shows progress. Raises WorkerError when one fails, after the others are done. However this process
    ends, its workers end with it.
    """
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(work, i, count, *arguments), daemon=True) for i in range(count)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    if failed := {i: code for i, worker in enumerate(workers) if (code := worker.exitcode)}:
        signals = sorted({signal.Signals(-code).name for code in failed.values() if code < 0})
        why = "its message is above"
        if signals:
            why = f"ended by {' and '.join(signals)}, perhaps for want of memory: fewer workers need less"
        raise WorkerError(
            f"worker {', '.join(map(str, failed))} of {count} failed ({why}); what was answered is kept, and the same "
            "command goes on from there"
        )


def _work(work: Callable[..., Any], index: int, count: int, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if index:
        os.environ["TQDM_DISABLE"] = "1"
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is of the system, and a worker that is stopped would leave it behind
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    try:
        work(index, count, *arguments)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"mmg-bench: {error}", file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
