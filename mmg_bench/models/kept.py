"""The columns of a prompt that are left after pruning, and the resulting masks, position ids and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Kept:
    """What is left of a prompt `[B, S]` after pruning; rows are padded on the left to one length."""

    index: Tensor  # [B, K] columns of the prompt
    real: Tensor  # [B, K] bool; False where a row is padded
    shift: Tensor  # [..., B] amount subtracted from later position ids; 0 if they stay unchanged
    whole: int  # S
    contiguous: bool  # whether the prompt's own position ids close the gaps
    padded: bool  # whether a row is padded
    weights: Tensor | None = None  # [B, K] added to the attention scores of each column; None: nothing

    @classmethod
    def of(cls, left: Tensor, counts: Sequence[int], contiguous: bool, source: Tensor | None = None) -> Self:
        """From the columns that are `left` (`[B, S]` bool), `counts[b]` of them in row b, known without a GPU sync.

        `contiguous`: position ids close the gaps. `source` `[B, S]`: the column whose token each column holds, if
        tokens change places.
        """
        # a stable sort moves the kept columns to the right end, in order
        index = left.to(torch.uint8).argsort(dim=1, stable=True)[:, left.shape[1] - max(counts) :]
        index = index if source is None else source.gather(1, index)
        return cls._padded(index, counts, left.shape[1], contiguous)

    @classmethod
    def rows(cls, rows: Sequence[Tensor], whole: int, contiguous: bool) -> Self:
        """From the columns that are left in each row of a prompt of `whole` columns, in order."""
        width = max(map(len, rows))
        index = torch.stack([functional.pad(row, (width - len(row), 0)) for row in rows])
        return cls._padded(index, list(map(len, rows)), whole, contiguous)

    @classmethod
    def _padded(cls, index: Tensor, counts: Sequence[int], whole: int, contiguous: bool) -> Self:
        """From columns `[B, K]`, of which only the last `counts[b]` of row b are real."""
        width = index.shape[1]
        real = torch.ones_like(index, dtype=torch.bool)
        for row, count in enumerate(counts):
            if count < width:
                real[row, : width - count] = False
        return cls(index, real, index.new_zeros(len(counts)), whole, contiguous, min(counts) < width)

    @property
    def removed(self) -> int:
        """Number of columns removed from the prompt."""
        return self.whole - self.index.shape[1]

    def gather(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[B, S, D]`."""
        return values.gather(1, self.index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    def columns(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[..., B, S]`."""
        return values.gather(-1, self.index.expand(*values.shape[:-1], -1))

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The kept columns, and all after the prompt, of a 2-D attention mask `[B, >= S]`."""
        prompt = self.columns(attention_mask[:, : self.whole])
        if self.padded:
            prompt = prompt * self.real
        behind = attention_mask[:, self.whole :]
        return torch.cat([prompt, behind], dim=1) if behind.shape[1] else prompt

    def weights_of(self, mask: Tensor) -> Tensor | None:
        """What is added to the attention scores of the columns of `mask` `[B, >= K]`; 0 after the prompt."""
        if self.weights is None:
            return None
        whole = functional.pad(self.weights, (0, mask.shape[1] - self.weights.shape[1]))
        return whole.expand(len(mask), -1)  # a single prompt's weights, for each of its copies

    def cropped(self, width: int) -> Self:
        """A copy for a prompt cropped at its end to `width` columns, as assisted decoding crops caches.

        Raises ValueError if more than the text after the videos was cropped.
        """
        whole = width + self.removed
        if bool((self.index[:, width:] < whole).any()):
            raise ValueError("the cache of a pruned prompt was cropped into its videos: crop only the text after them")
        weights = None if self.weights is None else self.weights[:, :width]
        return replace(self, index=self.index[:, :width], real=self.real[:, :width], whole=whole, weights=weights)

    def numbered(self, ids: Tensor, mask: Tensor) -> tuple[Self, Tensor]:
        """This, with the shift for later position ids, and the position ids `[..., B, K]` of what is left.

        `ids` `[..., B, S]`: those of the whole prompt; `mask`: the kept 2-D mask.
        """
        kept = self.columns(ids)
        if not self.contiguous:
            return self, kept
        closed = _closed(kept, mask)
        return replace(self, shift=ids[..., -1] - closed[..., -1]), closed

    def later(self, ids: Tensor) -> Tensor:
        """Position ids `[..., B, q]` of a call after the prompt, continuing those of `numbered`."""
        shift = self.shift[-3:] if ids.shape[:-2] == (3,) else self.shift  # the prompt's may include the text's count
        return ids - shift[..., None]

    def after(self, first: Self) -> Self:
        """`first` followed by this, as one step from the whole prompt."""
        index, real = first.index.gather(1, self.index), first.real.gather(1, self.index) & self.real
        shift, padded = first.shift + self.shift, first.padded or self.padded
        return replace(first, index=index, real=real, shift=shift, padded=padded)


def _closed(ids: Tensor, mask: Tensor) -> Tensor:
    """Position ids `[..., B, K]` without gaps; 0 where the `mask` `[B, K]` is 0.

    `[B, K]`: the columns are counted. `[3, B, K]` (multimodal rotary: time, height and width), or 4 with the text's
    count first: numbers that no kept token has on any of the three axes are closed. Text keeps one number on all axes,
    and tokens that shared a frame, row or column still do.
    """
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    if ids.dim() == 2:
        return counted
    # rank a row's numbers, equal ones sharing a rank: `unique` of each row, without a GPU sync
    hidden = (mask == 0).repeat(1, 3)  # [B, 3 K]
    numbers = ids[-3:].transpose(0, 1).flatten(1).masked_fill(hidden, torch.iinfo(ids.dtype).max)
    ordered, order = numbers.sort(dim=1)
    rank = functional.pad(ordered.diff(dim=1) != 0, (1, 0)).cumsum(1)
    axes = torch.empty_like(rank).scatter_(1, order, rank).masked_fill_(hidden, 0).unflatten(1, (3, -1))
    return torch.cat([counted.expand(len(ids) - 3, -1, -1), axes.transpose(0, 1)])
