"""Several processes on one machine, each with a share of the work: a small model spends most of its time in Python."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


class WorkerError(RuntimeError):
    """A worker process ended before finishing its share."""


def workers_for(wanted: int | str, device: str) -> int:
    """The number of processes: for `auto`, one per core on the CPU, and a single one on a GPU.

    Raises ValueError unless `wanted` is `auto` or a positive integer.
    """
    if wanted == "auto":
        return len(os.sched_getaffinity(0)) if device == "cpu" else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"workers={wanted!r}: it must be auto or a positive number of processes")
    return wanted


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(index, count, *arguments)` in `count` new processes and wait for all of them.

    Only the first shows progress. Raises WorkerError if one fails, after the others are done. However this process
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
            why = f"ended by {' and '.join(signals)}, perhaps out of memory: use fewer workers"
        raise WorkerError(
            f"worker {', '.join(map(str, failed))} of {count} failed ({why}); the answers so far are kept; run the "
            "same command again to continue"
        )


def _work(work: Callable[..., Any], index: int, count: int, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if index:
        os.environ["TQDM_DISABLE"] = "1"
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # tqdm's default lock is system-wide, and a stopped worker would leak it
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    try:
        work(index, count, *arguments)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"mmg-bench: {error}", file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    """End this worker once its parent has ended: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
