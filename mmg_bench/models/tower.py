"""The attention of a vision-tower layer, computed from its actual queries and keys.

A copy of its attention module is run again on the same arguments. The copy's attention function only records queries
and keys. So rotary embeddings, norms and sequence borders are the model's own, and the module itself stays on SDPA or
FlashAttention.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmg_bench.models.adapter import Capture, UnsupportedModelError, unseen

FIELDS = frozenset({"attention", "keys"})
"""Optional fields of `VideoTokens` that are computed from these queries and keys."""
GRID_FIELDS = FIELDS | {"mean_query_attention"}
"""The fields for towers in which the patches of a token are adjacent."""
_NAME = "mmg_bench_noted"
_AT_ONCE = {"cpu": 2**22}
_AT_ONCE_ELSEWHERE = 2**26
"""Elements (float32) of the attention `[B, heads, rows, S]` recomputed at once; two such tensors exist at a time."""


class Attended(NamedTuple):
    """B sequences of S patches each, which attend only within themselves."""

    queries: Tensor
    """`[B, heads, S, width]`, like the keys, with rotary embeddings where the layer has them."""
    keys: Tensor
    scaling: float

    def received(self) -> Tensor:
        """Attention that each patch receives, mean over heads and queries: `[B, S]` float32; a row sums to 1."""
        batch, heads, length, _ = self.queries.shape
        at_once = _AT_ONCE.get(self.queries.device.type, _AT_ONCE_ELSEWHERE)
        return self._given(max(1, at_once // (batch * heads * length))) / (heads * length)

    def from_first(self) -> Tensor:
        """Attention of a sequence's first patch to each patch, mean over heads: `[B, S]` float32; a row sums to 1."""
        first = self._replace(queries=self.queries[:, :, :1])
        return first._given(1) / self.queries.shape[1]

    def _given(self, rows_at_once: int) -> Tensor:
        """Softmax attention, summed over heads and queries: `[B, S]`."""
        keys, total = self.keys.float().mT, self.keys.new_zeros(self.keys[:, 0, :, 0].shape, dtype=torch.float32)
        for rows in self.queries.split(rows_at_once, dim=2):
            total += (rows.float() @ keys * self.scaling).softmax(-1).sum(dim=(1, 2))  # of [B, heads, rows, S]
        return total

    def from_mean(self, patches: int) -> Tensor:
        """Attention of the mean query to the mean key of each token's `patches`, mean over heads: `[B, S / patches]`.

        float32; a row sums to 1. As in FastVID's code for Qwen2.5-VL.
        """
        queries, keys = self.queries.float().mean(2, keepdim=True), self.keys.float().unflatten(2, (-1, patches))
        return Attended(queries, keys.mean(3), self.scaling)._given(1) / self.queries.shape[1]

    def mean_keys(self) -> Tensor:
        """Keys, mean over heads: `[B, S, width]` float32."""
        return self.keys.float().mean(1)


def together(some: Sequence[Attended]) -> Attended:
    """Combine sequences of the same length and call into one batch."""
    queries, keys = (torch.cat(tensors) for tensors in zip(*((each.queries, each.keys) for each in some), strict=True))
    return Attended(queries, keys, some[0].scaling)


def of_frames(frames: Attended, side: int) -> dict[str, Tensor]:
    """`FIELDS` of frames with patches in raster order, after an optional class token: `[F, N]`, `[F, N, width]`.

    A frame has `side` tokens per side, and each token gets the mean of its patches. `attention` is that of the class
    token, as in the methods' own code for towers that have one, or else the attention received. Raises
    UnsupportedModelError if the sequences are not such frames.
    """
    length = frames.queries.shape[2]
    each = math.isqrt(length) // side  # patches per side of a token
    leading = length - (side * each) ** 2
    if leading not in (0, 1):
        raise unknown([length], [side**2])
    attention = frames.from_first()[:, 1:] if leading else frames.received()
    whole = {"attention": attention.unsqueeze(-1), "keys": frames.mean_keys()[:, leading:]}
    grids = {name: value.unflatten(1, (side, each, side, each)) for name, value in whole.items()}
    pooled = {name: value.mean((2, 4)).flatten(1, 2) for name, value in grids.items()}  # [F, N, ...]
    return {**pooled, "attention": pooled["attention"].squeeze(-1)}


def unknown(patches: Sequence[int], tokens: Sequence[int]) -> UnsupportedModelError:
    """The error for sequences with these numbers of patches, for frames with these numbers of tokens."""
    return UnsupportedModelError(
        f"a layer of the vision tower attends within sequences of {sorted(set(patches))} patches, but frames have "
        f"{sorted(set(tokens))} tokens: the attention that each token receives is not known; choose a method that does "
        "not need it, such as mmg_vid"
    )


def feature_layer(layers: Any, index: int | Sequence[int]) -> Any:
    """The layer whose output is hidden state `index` of a tower; for several, which are concatenated, the last named.

    Hidden state 0 is the input of layer 0, hidden state -1 the output of the last layer. Raises UnsupportedModelError
    for the former, which no layer outputs.
    """
    last = index if isinstance(index, int) else index[-1]
    if last == 0:
        raise UnsupportedModelError(
            "vision_feature_layer=0: this is the input of the tower's first layer, not the output of a layer"
        )
    return layers[last if last < 0 else last - 1]


def _note(module: Any, query: Tensor, key: Tensor, *args: Any, scaling: float, **options: Any) -> tuple[Tensor, None]:
    """An attention function of transformers."""
    sharing = query.shape[1] // key.shape[1]  # heads per key; with one head each, nothing is copied
    key = key.unsqueeze(2).expand(-1, -1, sharing, -1, -1).flatten(1, 2)
    module.noted.append(Attended(query, key, scaling))
    return query.transpose(1, 2), None  # of the expected shape; never read


ALL_ATTENTION_FUNCTIONS.register(_NAME, _note)


def attended(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Attended]:
    """Queries and keys of a tower's attention module when called with these arguments, one part after the other."""
    twin: Any = copy.copy(attention)  # shares the weights
    twin.config, twin.noted = copy.copy(twin.config), []
    twin.config._attn_implementation = _NAME
    type(attention).forward(twin, *args, **kwargs)  # without its hooks
    noted: list[Attended] = twin.noted
    return noted


class TowerCapture(Capture):
    """Records the arguments of one attention module in the tower's last call, besides what a subclass records."""

    def __init__(self, attention: Any, needs: frozenset[str]):
        """`needs`: the fields to compute from the module `attention`."""
        self.attention, self.needs = attention, needs
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # of the attention module
        self.found: dict[str, Any] = {}  # of the whole call

    def handles(self, tower: nn.Module) -> list[Any]:
        """Register hooks on the tower and, if needed, on the attention module, and return their handles."""
        handles = [tower.register_forward_hook(self.note_output)]
        if self.needs:
            handles.append(self.attention.register_forward_pre_hook(self.note_attention, with_kwargs=True))
        return handles

    def note_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the attention module."""
        self.call = args, kwargs

    def fields(self, first: int, count: int) -> dict[str, Tensor]:
        if not self.needs:
            return {}
        if self.call is not None:
            with torch.no_grad():
                self.found = self.of_call(attended(self.attention, *self.call))
            self.call = None  # its arguments are large
        chosen = {name: list(values[first : first + count]) for name, values in self.found.items()}
        if not all(len(chosen.get(name, ())) == count for name in self.needs):
            raise unseen(self.needs)
        return {name: torch.stack(chosen[name]) for name in self.needs}

    @abstractmethod
    def of_call(self, parts: list[Attended]) -> dict[str, Any]:
        """The fields that `needs` may name, for each frame of the call in order: `[N]` or `[N, width]`, float32."""
