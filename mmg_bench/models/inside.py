"""Pruning between the layers of an unmodified language model, by hooks on its decoder layers.

A layer at which the method prunes takes the kept rows of its hidden states; it and all layers behind it are called with
the masks, rotary embeddings and position ids of what is left. Keys and values of the layers before stay whole, unless
the method prunes them too. While decoding, the columns that a layer never saw are taken out of its mask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from mmg_bench.methods.base import Method, Positions
from mmg_bench.models.adapter import Adapter
from mmg_bench.models.attention import LayerAttention, rotate, softmax_weights
from mmg_bench.models.kept import Kept
from mmg_bench.tokens import LayerTokens


@dataclass(frozen=True)
class Span:
    """Where one video's visual tokens stand in a row of the sequence that goes through the layers."""

    row: int
    start: int
    end: int
    """Behind the video and its newline: here the text begins."""
    positions: Tensor
    """`[n]`: flat raster indices of the n tokens, which are columns `start .. start + n`."""
    total: int
    """T * N."""
    state: Any


@dataclass(frozen=True)
class Flow:
    """What decoder layers are called with, besides hidden states."""

    mask: Tensor  # [B, columns seen] 2-D attention mask
    ids: Tensor  # [..., B, q] position ids
    rotary: Any = None  # rotary embeddings, as the model makes them of `ids`
    causal: Any = None  # the mask as the attention implementation wants it


class Inside:
    """The hooks on the decoder layers, and what one prompt and its decoding share."""

    def __init__(
        self, adapter: Adapter, method: Method, positions: Positions, report: Callable[[int, int, int], None]
    ) -> None:
        """`report(video, layer, tokens)` is told what is left of each video at each stage."""
        self.adapter, self.method, self.report = adapter, method, report
        self.contiguous = (method.inside_positions or positions) == "contiguous"
        depth = len(adapter.layers)
        self.at = method.layers(depth)
        if list(self.at) != sorted(set(self.at)) or (self.at and not 0 < self.at[0] <= self.at[-1] < depth):
            raise ValueError(f"{method.name} prunes before layers {self.at}: not ascending in 1..{depth - 1}")
        self.key_layer = method.key_layer(depth)
        self.stages: list[Kept] = []  # of the prompt that is being decoded
        self.spans: list[Span] = []
        self.base: Flow | None = None  # of the forward call under way: before the first stage,
        self.flow: Flow | None = None  # and what is in force at the layer under way, once it differs from the base
        self.prefill = False
        self.inputs: dict[int, tuple[Tensor, Any]] = {}  # layer -> hidden states, rotary embeddings of its attention
        self.memory: dict[int, Tensor] = {}  # span -> what `select_keys` handed on

    @property
    def needed(self) -> bool:
        """Whether the method does anything inside the language model."""
        return bool(self.at) or self.key_layer is not None

    def install(self, stack: ExitStack) -> None:
        """Set the hooks; `stack` removes them."""
        first = min([*self.at, *([] if self.key_layer is None else [self.key_layer])])
        sources = {layer - 1 for layer in self.at} | ({self.key_layer - 1} if self.key_layer is not None else set())
        for number, layer in enumerate(self.adapter.layers):
            if number in sources:
                attention = self.adapter.attention_module(layer)
                stack.callback(attention.register_forward_pre_hook(self._note(number), with_kwargs=True).remove)
            if number >= first:
                stack.callback(layer.register_forward_pre_hook(self._narrow(number), with_kwargs=True).remove)

    def begin(self, mask: Tensor, ids: Tensor, spans: list[Span] | None) -> None:
        """A forward call of the language model begins; `spans` are its videos at prefill, None while decoding."""
        self.base, self.flow, self.prefill = Flow(mask, ids), None, spans is not None
        if spans is not None:
            self.spans, self.stages, self.memory = spans, [], {}
        self.inputs.clear()

    def stop(self) -> None:
        """The next forward call holds no pruned video."""
        self.base = self.flow = None
        self.spans, self.stages = [], []

    def settled(self, outer: Kept | None) -> Kept | None:
        """What decoding has to know of layer 0: `outer`, and stages that pruned the caches of the layers before too."""
        if not self.method.prunes_caches:
            return outer
        for stage in self.stages:
            outer = stage if outer is None else stage.after(outer)
        self.stages = []
        return outer

    def _note(self, number: int) -> Any:
        """Forward pre-hook of an attention module: keep what it is called with."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.base is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                self.inputs[number] = hidden.detach(), kwargs["position_embeddings"]

        return hook

    def _narrow(self, number: int) -> Any:
        """Forward pre-hook of a decoder layer: prune if it is the method's, and pass on what is left."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.base is None:
                return None
            hidden, cache = args[0], kwargs.get("past_key_values")
            if number in self.at:
                stage = self.at.index(number)
                if self.prefill:
                    hidden = self._prune(stage, number, hidden, cache, kwargs)
                elif stage < len(self.stages):
                    self._advance(self.stages[stage], hidden, cache, number)
            if number == self.key_layer and not self.prefill and hidden.shape[1] == 1:
                self._hide_keys(number, hidden, cache)
            if self.flow is None:
                return None
            changed = {"attention_mask": self.flow.causal, "position_embeddings": self.flow.rotary}
            # the rotary embeddings say all; attention kernels would take a jump in the ids for a packed sequence
            return (hidden, *args[1:]), {**kwargs, **changed, "position_ids": None}

        return hook

    def _prune(self, stage: int, number: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> Tensor:
        """Prune every video before layer `number`: the hidden states `[B, K, D]` that go on."""
        current = self.flow or self.base
        assert current is not None
        rotary = self.flow.rotary if self.flow else kwargs["position_embeddings"]
        columns: list[list[Tensor]] = [[] for _ in hidden]
        values: list[list[Tensor]] = [[] for _ in hidden]
        ends, after = [0] * len(hidden), []
        for video, span in enumerate(self.spans):
            row, count = hidden[span.row], len(span.positions)
            body = slice(span.start, span.start + count)
            attend = _Attend(self, number, span, current.mask, row, rotary)
            tokens = LayerTokens(row[body], span.positions, row[span.end :], span.total, stage, attend, span.state)
            chosen = self.method.prune_inside(tokens)
            self.report(video, number, len(chosen.index))
            features = row[body][chosen.index] if chosen.features is None else chosen.features.to(row.dtype)
            before = torch.arange(ends[span.row], span.start, device=row.device)
            start = sum(map(len, columns[span.row])) + len(before)
            columns[span.row] += [before, span.start + chosen.index]
            values[span.row] += [row[before], features]
            ends[span.row] = body.stop
            end = start + len(chosen.index) + span.end - body.stop
            after.append(
                replace(span, start=start, end=end, positions=span.positions[chosen.index], state=chosen.state)
            )
        for number_of_row, row in enumerate(hidden):
            rest = torch.arange(ends[number_of_row], len(row), device=row.device)
            columns[number_of_row].append(rest)
            values[number_of_row].append(row[rest])
        kept = Kept.of([torch.cat(c) for c in columns], hidden.shape[1], self.contiguous)
        widths = [sum(map(len, c)) for c in columns]
        padding = [kept.index.shape[1] - width for width in widths]
        self.spans = [replace(s, start=s.start + padding[s.row], end=s.end + padding[s.row]) for s in after]
        self.stages.append(kept)
        hidden = torch.stack(
            [
                torch.cat([row.new_zeros(pad, row.shape[-1]), *v])
                for row, pad, v in zip(hidden, padding, values, strict=True)
            ]
        )
        self._advance(kept, hidden, cache, number)
        if self.method.prunes_caches and cache is not None:
            for layer in cache.layers[:number]:
                layer.keys, layer.values = (
                    part.gather(2, kept.index[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
                    for part in (layer.keys, layer.values)
                )
        return hidden

    def _advance(self, kept: Kept, hidden: Tensor, cache: Any, number: int) -> None:
        """From here on layers see what `kept` leaves of what they saw so far; `hidden` is already narrowed."""
        current = self.flow or self.base
        assert current is not None
        mask = kept.mask(current.mask)
        self.flow = self._flow(mask, kept.ids(current.ids, mask, self.prefill), hidden, cache, number)

    def _flow(self, mask: Tensor, ids: Tensor, hidden: Tensor, cache: Any, number: int) -> Flow:
        causal = create_causal_mask(
            config=self.adapter.text_config,
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=cache,
            layer_idx=number,
        )
        return Flow(mask, ids, self.adapter.rotary(hidden, ids), causal)

    def _hide_keys(self, number: int, hidden: Tensor, cache: Any) -> None:
        """Mask, from this layer on and for this step, the visual keys that the method does not choose."""
        current = self.flow or self.base
        assert current is not None
        inputs, rotary = self.inputs[number - 1]
        keys = cache.layers[number - 1].keys  # [B, key-value heads, S, width]
        mask = current.mask.clone()
        module = self.adapter.attention_module(self.adapter.layers[number - 1])
        for i, span in enumerate(self.spans):
            seen = current.mask[span.row].bool()
            one = LayerAttention(module, inputs[span.row], self.adapter.rows(rotary, span.row), seen[-1:])
            last = torch.zeros(1, dtype=torch.long, device=hidden.device)
            weights = softmax_weights(one.queries(last), keys[span.row], seen[None], module.scaling)  # [heads, 1, S]
            body = slice(span.start, span.start + len(span.positions))
            chosen, self.memory[i] = self.method.select_keys(weights[:, 0, body].mean(0), self.memory.get(i))
            if chosen is not None:
                hidden_columns = torch.ones(len(span.positions), dtype=torch.bool, device=mask.device)
                hidden_columns[chosen] = False
                mask[span.row, body] = mask[span.row, body].masked_fill(hidden_columns, 0)
        self.flow = self._flow(mask, current.ids, hidden, cache, number)


class _Attend:
    """`tokens.Attention` of one video before one layer."""

    def __init__(self, inside: Inside, number: int, span: Span, mask: Tensor, hidden: Tensor, rotary: Any) -> None:
        self.inside, self.number, self.span, self.hidden = inside, number, span, hidden
        self.real = mask[span.row, : len(hidden)].bool()
        self.rotary = inside.adapter.rows(rotary, span.row)

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        adapter, span = self.inside.adapter, self.span
        layer = adapter.layers[self.number if own else self.number - 1]
        if own:
            hidden, embeddings = adapter.normalised(layer, self.hidden), self.rotary
        else:
            inputs, whole = self.inside.inputs[self.number - 1]
            hidden, embeddings = inputs[span.row], adapter.rows(whole, span.row)
        last = len(hidden) - 1
        where = torch.tensor([last], device=hidden.device) if rows is None else span.end + rows
        attention = LayerAttention(adapter.attention_module(layer), hidden, embeddings, self.real)
        weights = attention.weights(where, rotary=rotary, causal=causal)  # [heads, R, S]
        return weights[..., span.start : span.start + len(span.positions)]

    def phases(self) -> tuple[Tensor, Tensor]:
        """See `tokens.Attention`."""
        width = self.rotary[0].shape[-1]
        ones = rotate(torch.ones(len(self.hidden), width, device=self.hidden.device), self.rotary)
        return ones[self.span.end :], ones[self.span.start : self.span.start + len(self.span.positions)]
