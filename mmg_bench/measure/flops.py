"""FLOPs of the language model's prefill: two published formulas, and a count by torch itself.

Everything here is in multiply-adds. Papers call them FLOPs; counting a multiply and an add as two doubles the figures.
The formulas count only the visual tokens and leave out the vision tower, the text, the pruning and the output head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names that configurations use for the number of experts."""


@dataclass(frozen=True)
class TextGeometry:
    """The sizes of a language model that its FLOPs depend on. The MLP has three matrices (gate, up and down)."""

    layers: int
    """L."""
    hidden: int
    """d, the width of the residual stream; the queries are assumed to be as wide."""
    intermediate: int
    """m, the width inside the MLP."""
    kv_width: int
    """kv, the width of the keys: key-value heads * head size, equal to d without grouped queries."""
    dense: bool = True
    """Whether every layer is full attention and one MLP; the formulas do not cover experts and other attention."""

    def __post_init__(self) -> None:
        for f in (f for f in fields(self) if f.name != "dense"):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"TextGeometry.{f.name}={value!r}: it must be a positive integer")

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """From a transformers text config, such as `model.config.get_text_config()`."""
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        full = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        experts = any(getattr(config, name, None) for name in _EXPERTS)
        sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size, kv_heads * head_size
        return cls(*sizes, dense=full and not experts)

    def tokens_per_layer(self, tokens: int | Sequence[int]) -> list[int]:
        """`[L]` token counts, from one count for all layers or from the per-layer counts of an in-LLM method."""
        counts = [tokens] * self.layers if isinstance(tokens, int) else list(tokens)
        if len(counts) != self.layers:
            raise ValueError(f"got token counts of {len(counts)} layers; the language model has {self.layers}")
        if min(counts) < 0:
            raise ValueError(f"token counts must not be negative, got {min(counts)}")
        return counts


def layer_counts(entering: int, stages: Iterable[Sequence[int]], depth: int) -> list[int]:
    """`[depth]` tokens in each layer, from those that enter layer 0 and `(layer, tokens from there on)` stages."""
    counts = [entering] * depth
    for layer, tokens in stages:
        counts[layer:] = [tokens] * (depth - layer)
    return counts


def flops_gqa(geometry: TextGeometry, tokens: int | Sequence[int]) -> int:
    """Multiply-adds of the prefill with the real width of keys and values: the sum over layers of

        n d^2 (2 + 2 kv/d) + 2 n^2 d + 3 n d m

    for n visual tokens, one number or one per layer. The convention of InfoMerge's tables (arXiv 2606.02161), which
    quote MMG-Vid and its rivals: 48.82 T for LLaVA-OneVision-7B with 32 frames.
    """
    d, m, kv = geometry.hidden, geometry.intermediate, geometry.kv_width
    return sum(2 * n * d * (d + kv) + 2 * n * n * d + 3 * n * d * m for n in geometry.tokens_per_layer(tokens))


def flops_4nd2(geometry: TextGeometry, tokens: int | Sequence[int]) -> int:
    """Multiply-adds of the prefill as if every query head had its own keys and values: the sum over layers of

        4 n d^2 + 2 n^2 d + 3 n d m

    for n visual tokens, one number or one per layer. FastV's convention (arXiv 2403.06764; 2 n d m there, for an MLP
    without a gate), with the gated MLP as PyramidDrop (arXiv 2410.17247) has it; it overstates models with grouped
    queries.
    """
    d, m = geometry.hidden, geometry.intermediate
    return sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in geometry.tokens_per_layer(tokens))


def flops_counted(model: Any, inputs: Mapping[str, Any]) -> int:
    """Multiply-adds of one forward pass `model(**inputs)`, as torch's own counter sees them.

    Unlike the formulas, this counts everything that runs: text tokens, pruning inside the pass, the vision tower if
    `inputs` contain pixels, and the output head (only for the last position, as in generation, if the model supports
    that). torch's own attention counts as full, not causal, squares, as in the formulas, whichever kernel runs it.
    Kernels of other packages, such as flash-attn's or Triton's, are not counted: load the model with `sdpa` or `eager`
    attention.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    arguments = dict(inputs)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments.setdefault("logits_to_keep", 1)
    # the counter does not know all of torch's fused kernels, nor keys with fewer heads than the queries
    aten = torch.ops.aten
    kernels = [getattr(aten, f"_scaled_dot_product_{name}", None) for name in _FUSED_ATTENTION]
    known: dict[Any, Any] = {kernel: _attention_flops for kernel in kernels if kernel is not None}
    known[aten.bmm] = _bmm_flops  # before torch 2.12 or so, it fails on bmm with a dtype
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(**arguments)
    return counter.get_total_flops() // 2  # the counter counts a multiply-add as two


_FUSED_ATTENTION = (
    *("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"),
    "fused_attention_overrideable",
)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of `query` `[B, heads, S, width]` with any number of key heads: two products of full squares."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def _bmm_flops(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of `a` `[B, n, D]` times `b` `[B, D, m]`."""
    batch, rows, width = a
    return 2 * batch * rows * width * b[-1]
