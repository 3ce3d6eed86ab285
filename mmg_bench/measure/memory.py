"""Memory of weights, activations and KV cache, in separate passes because tracking an allocator takes time."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmg_bench.cells import Cell
from mmg_bench.measure.workload import decode_steps, prefill
from mmg_bench.models import siglip
from mmg_bench.models.caches import CACHE
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import Encoded, VideoLLM


class PeakMemory:
    """Bytes of tensors allocated inside the context: `peak` is the maximum at any time, `kept` what is left at its end.

    On a GPU from torch's allocator; on a CPU, where torch has no such count, from its profiler. Neither includes memory
    that libraries allocate themselves (CUDA's own context, workspaces of a few megabytes).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.peak = self.kept = 0

    def __enter__(self) -> Self:
        gc.collect()  # so that only memory of the context is freed inside it
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            self._profiler = torch.autograd.profiler.profile(use_cpu=True, profile_memory=True)
            with _quiet():
                self._profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._start
            self.kept = torch.cuda.memory_allocated(self.device) - self._start
            return
        with _quiet():
            self._profiler.__exit__(*error)
        recorded: Any = self._profiler.kineto_results
        changes = sorted((e.start_ns(), e.nbytes()) for e in recorded.events() if e.name() == "[memory]")
        for _, change in changes:
            self.kept += change
            self.peak = max(self.peak, self.kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the profiler's C++ code writes to the process's stderr when it starts and stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of parameters and buffers; tied ones count once."""
    held = nn.ModuleList(modules)
    return sum(t.numel() * t.element_size() for t in (*held.parameters(), *held.buffers()))


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a transformers cache, and of the states of linear attention."""
    names = ("keys", "values", "conv_states", "recurrent_states")
    entries = [getattr(layer, name, None) for layer in cache.layers for name in names]
    held = [t for entry in entries for t in (entry.values() if isinstance(entry, dict) else [entry]) if t is not None]
    return sum(t.numel() * t.element_size() for t in held)


def memory_values(
    llm: VideoLLM, cell: Cell, encoded: Encoded, encoding: PeakMemory, inputs: dict[str, Tensor], new_tokens: int
) -> dict[str, int]:
    """Metric -> bytes, for one answer of a cell to `encoded` video, whose encoding was measured by `encoding`.

    `weights_bytes`, including the modules of a SigLIP checkpoint that the method needs; `encode_memory_bytes`, the peak
    of encoding on top of the weights; `kv_cache_bytes` after the prefill; `activation_memory_bytes`, the peak of
    encoded video, pruning, prefill and decoding on top of weights and KV cache; `peak_memory_bytes`, the peak of the
    whole answer.

    Raises ValueError if the model's logits are not finite, because such a model must not be measured.
    """
    with (
        PeakMemory(llm.device) as answering,
        torch.inference_mode(),
        pruning(llm.model, cell.method, cell.positions, encoded=encoded.tokens),
    ):
        out = prefill(llm, encoded, inputs)
        if not bool(out.logits.isfinite().all()):
            raise ValueError(f"{llm.spec.name} gives NaN or infinite logits in {llm.spec.dtype}: choose another dtype")
        cache = cache_bytes(getattr(out, CACHE))
        decode_steps(llm, out, inputs["attention_mask"], new_tokens)
    beside = siglip.attached(llm.model)
    extra = [] if beside is None else beside.modules(cell.method.needs)
    weights, answer = weight_bytes(llm.model, *extra), encoding.kept + answering.peak
    return {
        "weights_bytes": weights,
        "encode_memory_bytes": encoding.peak,
        "activation_memory_bytes": answer - cache,
        "kv_cache_bytes": cache,
        "peak_memory_bytes": weights + max(encoding.peak, answer),
    }
