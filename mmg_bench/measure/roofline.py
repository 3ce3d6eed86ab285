"""How far a time is from what the machine could achieve: the necessary work divided by two ceilings.

The ceilings are measured in the same run as the times: a large matrix product in the model's dtype for arithmetic, a
large copy for memory. The work is the minimum that the language model needs for the tokens that reach it: attention
counts half its square, because it is causal; weights are read once, keys and values written once. Pruning is not part
of it, so that its cost shows as distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmg_bench.measure.clock import Clock
from mmg_bench.measure.flops import TextGeometry
from mmg_bench.models.adapter import Adapter

_SIDE = {"cuda": 8192, "cpu": 2048}  # side of the matrices: large enough to fill the chip
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}  # too large for any cache
_REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """The best throughput of a device on each kind of work."""

    multiply_adds_per_second: float
    bytes_per_second: float
    """Bytes read plus bytes written."""


@dataclass(frozen=True)
class Work:
    """The minimum amount of work."""

    multiply_adds: float
    bytes: float

    def floor_ms(self, ceilings: Ceilings) -> float:
        """The time that no implementation can beat: that of arithmetic or of memory, whichever is longer."""
        return 1000 * max(
            self.multiply_adds / ceilings.multiply_adds_per_second, self.bytes / ceilings.bytes_per_second
        )


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Both ceilings of a device, from the fastest of several repeats on random data."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    side = _SIDE[kind]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    seconds = _fastest(device, lambda: torch.mm(a, b, out=product))
    source = torch.randn(_COPY_BYTES[kind] // 4, device=device)
    target = torch.empty_like(source)
    return Ceilings(side**3 / seconds, 2 * _COPY_BYTES[kind] / _fastest(device, lambda: target.copy_(source)))


def _fastest(device: torch.device, task: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls, after two uncounted ones."""
    clock, times = Clock(device), []
    for _ in range(_REPEATS + 2):
        with clock.stage("task"):
            task()
        times.append(clock.read()["task"] / 1000)
    return min(times[2:])


@dataclass(frozen=True)
class LanguageModel:
    """What the work of a language model depends on, apart from its tokens."""

    geometry: TextGeometry
    vocabulary: int
    weight_bytes: int
    """Bytes of the decoder layers, the final norm and the output head."""
    element_bytes: int

    @classmethod
    def of(cls, adapter: Adapter) -> LanguageModel:
        """From the model of an adapter."""
        model = adapter.model
        head = model.get_output_embeddings().weight
        looked_up = adapter.language_model.get_input_embeddings().weight
        read = {id(p): p for p in adapter.language_model.parameters() if p is not looked_up}
        read[id(head)] = head  # even if it is tied to the embeddings
        return cls(
            TextGeometry.from_config(model.config.get_text_config()),
            vocabulary=head.shape[0],
            weight_bytes=sum(p.numel() * p.element_size() for p in read.values()),
            element_bytes=head.element_size(),
        )

    def prefill(self, tokens: Sequence[float], batch: int) -> Work:
        """Work for prompts with `tokens` `[L]` tokens in each layer (text and newlines too), up to the first logits."""
        g = self.geometry
        layers = sum(n * self._per_token + n * (n + 1) * g.hidden for n in tokens)
        written = 2 * g.kv_width * sum(tokens) * self.element_bytes
        return Work(batch * (layers + g.hidden * self.vocabulary), self.weight_bytes + batch * written)

    def decode_step(self, context: Sequence[float], batch: int) -> Work:
        """Work for one more token after `context` `[L]` tokens in each layer's cache."""
        g = self.geometry
        layers = sum(self._per_token + 2 * (n + 1) * g.hidden for n in context)
        read = 2 * g.kv_width * sum(context) * self.element_bytes
        return Work(batch * (layers + g.hidden * self.vocabulary), self.weight_bytes + batch * read)

    @property
    def _per_token(self) -> int:
        """Multiply-adds of one token in one layer, without attention to others."""
        g = self.geometry
        return 2 * g.hidden * (g.hidden + g.kv_width) + 3 * g.hidden * g.intermediate
