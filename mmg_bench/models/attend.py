"""The attention that a method inside the language model may read: `tokens.Attention` of one video."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.methods.base import Method
from mmg_bench.models.adapter import Adapter
from mmg_bench.models.attention import LayerAttention, rotate
from mmg_bench.models.prompt import Span
from mmg_bench.tokens import Heads, Keys


def unhooked(method: Method) -> RuntimeError:
    """The error for a model that was called without running its hooks."""
    return RuntimeError(
        f"{method.name}: not all hooks ran, as happens if torch.compile reuses code traced before they were set: "
        "call torch.compiler.reset() before opening the context"
    )


def textless(method: Method) -> ValueError:
    """The error for a prompt that ends with a video, if a method reads the text after it."""
    return ValueError(
        f"{method.name} reads the text after a video, but a prompt has none there: put the question after the video, "
        "or choose a method that does not read it, such as mmg_vid"
    )


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a module; None if its weights are loaded only when it is called."""
    return next((p.device for p in module.parameters() if p.device.type != "meta"), None)


class Attend:
    """`tokens.Attention` of one video before one layer."""

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        number: int,
        span: Span,
        hidden: Tensor,
        mask: Tensor,
        rotary: Any,
        before: tuple[Tensor, Any] | None,
    ) -> None:
        """Before layer `number`; `hidden` `[S, D]` is the video's row of that layer's input `[B, S, D]`.

        `mask` `[B, >= S]` and `rotary` are those of that layer. `before`: the arguments of the previous layer's
        attention, hidden states and rotary embeddings of all rows.
        """
        self.adapter, self.method, self.number, self.span, self.hidden = adapter, method, number, span, hidden
        self.real = mask[span.row, : len(hidden)].bool()
        self.rotary = adapter.rows(rotary, span.row)
        self.before = before

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        span = self.span
        if rows is not None and not len(span.text):
            raise textless(self.method)
        attention = self._own("own attention is") if own else self._before()
        last, device = len(attention.hidden) - 1, attention.hidden.device  # of that attention's layer
        where = torch.full((1,), last, device=device) if rows is None else span.text[rows].to(device)
        weights = attention.weights(where, rotary=rotary, causal=causal)  # [heads, R, S]
        return weights[..., span.columns.to(device)].to(self.hidden.device)

    def _own(self, what: str, columns: slice = slice(None)) -> LayerAttention:
        """Attention of the layer that prunes, in these columns; `what`: what is requested, for the error."""
        adapter = self.adapter
        if self.method.before_mlp:
            raise ValueError(f"{self.method.name}: before an MLP, the next layer's {what} not known")
        layer = adapter.layers[self.number]
        hidden = adapter.normalised(layer, self.hidden[columns])
        rotary = self.rotary[0][columns], self.rotary[1][columns]
        return LayerAttention(adapter.attention_module(layer), hidden, rotary, self.real[columns], adapter.interleaved)

    def _before(self) -> LayerAttention:
        """Attention of the previous layer."""
        if self.before is None:
            raise unhooked(self.method)
        adapter, (inputs, whole) = self.adapter, self.before
        hidden, rotary = inputs[self.span.row], adapter.rows(whole, self.span.row)
        module, real = adapter.attention_module(adapter.layers[self.number - 1]), self.real.to(hidden.device)
        return LayerAttention(module, hidden, rotary, real, adapter.interleaved)

    def heads(self) -> Heads:
        """See `tokens.Attention`."""
        first, columns = self.first, self.span.columns
        attention = self._own("heads are", slice(first, int(columns[-1]) + 1))
        everything = torch.arange(len(attention.hidden), device=columns.device)
        visual = columns - first
        queries, keys = attention.queries(everything, rotary=False), attention.keys(rotary=False)
        place = attention.rotary[0][visual], attention.rotary[1][visual]
        return Heads(queries, keys, visual, rotate(keys[:, visual], place, attention.interleaved))

    def keys(self) -> Keys:
        """See `tokens.Attention`."""
        keys, device = self._before().keys(), self.hidden.device
        return Keys(keys[:, self.first :].to(device), self.span.columns - self.first, self.span.text - self.first)

    def queries(self) -> Tensor:
        """See `tokens.Attention`."""
        attention = self._before()
        rows = torch.arange(self.first, len(attention.hidden), device=attention.hidden.device)
        return (attention.queries(rows) * attention.module.scaling).to(self.hidden.device)

    @cached_property
    def first(self) -> int:
        """The column of the prompt's first token, after its padding."""
        return int(self.real.int().argmax())

    def final_norm(self, hidden: Tensor) -> Tensor:
        """See `tokens.Attention`."""
        norm = self.adapter.final_norm
        made: Tensor = norm(hidden.to(device_of(norm) or hidden.device))
        return made.to(hidden.device)

    def phases(self) -> tuple[Tensor, Tensor]:
        """See `tokens.Attention`."""
        width = self.rotary[0].shape[-1]
        ones = torch.ones(len(self.hidden), width, device=self.hidden.device)
        ones = rotate(ones, self.rotary, self.adapter.interleaved)
        return ones[self.span.text], ones[self.span.columns]
