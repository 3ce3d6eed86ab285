"""Which columns of a prompt are left after pruning, and what that makes of masks, position ids and features."""

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
    shift: Tensor  # [..., B] by how much later position ids are lower: 0 where they stay as they are
    whole: int  # S
    contiguous: bool  # whether the prompt's own position ids close the gaps
    padded: bool  # whether a row is padded
    weights: Tensor | None = None  # [B, K] what is added to attention scores of each; None: nothing

    @classmethod
    def of(cls, left: Tensor, counts: Sequence[int], contiguous: bool, source: Tensor | None = None) -> Self:
        """From the columns that are `left` (`[B, S]` bool), `counts[b]` of them in row b, known without asking a GPU.

        `contiguous`: position ids close the gaps. `source` `[B, S]`: the column whose token stands in each column,
        where tokens change places.
        """
        # a stable sort brings what is left to the right end, in order
        index = left.to(torch.uint8).argsort(dim=1, stable=True)[:, left.shape[1] - max(counts) :]
        index = index if source is None else source.gather(1, index)
        return cls._padded(index, counts, left.shape[1], contiguous)

    @classmethod
    def rows(cls, rows: Sequence[Tensor], whole: int, contiguous: bool) -> Self:
        """From the columns that are left of each row of a prompt of `whole` columns, in order."""
        width = max(map(len, rows))
        index = torch.stack([functional.pad(row, (width - len(row), 0)) for row in rows])
        return cls._padded(index, list(map(len, rows)), whole, contiguous)

    @classmethod
    def _padded(cls, index: Tensor, counts: Sequence[int], whole: int, contiguous: bool) -> Self:
        """From columns `[B, K]` of which the last `counts[b]` of row b count."""
        width = index.shape[1]
        real = torch.ones_like(index, dtype=torch.bool)
        for row, count in enumerate(counts):
            if count < width:
                real[row, : width - count] = False
        return cls(index, real, index.new_zeros(len(counts)), whole, contiguous, min(counts) < width)

    @property
    def removed(self) -> int:
        """By how many columns the prompt became narrower."""
        return self.whole - self.index.shape[1]

    def gather(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[B, S, D]`."""
        return values.gather(1, self.index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    def columns(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[..., B, S]`."""
        return values.gather(-1, self.index.expand(*values.shape[:-1], -1))

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The kept columns, and all behind the prompt, of a 2-D attention mask `[B, >= S]`."""
        prompt = self.columns(attention_mask[:, : self.whole])
        if self.padded:
            prompt = prompt * self.real
        behind = attention_mask[:, self.whole :]
        return torch.cat([prompt, behind], dim=1) if behind.shape[1] else prompt

    def weights_of(self, mask: Tensor) -> Tensor | None:
        """What is added to attention scores of the columns of `mask` `[B, >= K]`; 0 behind the prompt."""
        if self.weights is None:
            return None
        whole = functional.pad(self.weights, (0, mask.shape[1] - self.weights.shape[1]))
        return whole.expand(len(mask), -1)  # of a single prompt, for each of its copies

    def cropped(self, width: int) -> Self:
        """This, of a prompt cut off at its end so that `width` columns are left, as assisted decoding crops caches.

        Raises ValueError where more was cut off than the text behind the videos.
        """
        whole = width + self.removed
        if bool((self.index[:, width:] < whole).any()):
            raise ValueError("the cache of a pruned prompt was cropped into its videos: crop the text behind them only")
        weights = None if self.weights is None else self.weights[:, :width]
        return replace(self, index=self.index[:, :width], real=self.real[:, :width], whole=whole, weights=weights)

    def numbered(self, ids: Tensor, mask: Tensor) -> tuple[Self, Tensor]:
        """Position ids `[..., B, K]` of what is left of a prompt with `ids` `[..., B, S]`; `mask`: the kept 2-D mask.

        Also this, with the shift that later position ids get.
        """
        kept = self.columns(ids)
        if not self.contiguous:
            return self, kept
        closed = _closed(kept, mask)
        return replace(self, shift=ids[..., -1] - closed[..., -1]), closed

    def later(self, ids: Tensor) -> Tensor:
        """Position ids `[..., B, q]` of a call behind the prompt, as they follow on those of `numbered`."""
        shift = self.shift[-3:] if ids.shape[:-2] == (3,) else self.shift  # where the prompt's had the text's count
        return ids - shift[..., None]

    def after(self, first: Self) -> Self:
        """This, of what `first` left, as one step from the whole prompt."""
        index, real = first.index.gather(1, self.index), first.real.gather(1, self.index) & self.real
        shift, padded = first.shift + self.shift, first.padded or self.padded
        return replace(first, index=index, real=real, shift=shift, padded=padded)


def _closed(ids: Tensor, mask: Tensor) -> Tensor:
    """Position ids `[..., B, K]` without gaps; 0 where the `mask` `[B, K]` is.

    `[B, K]`: the columns are counted. `[3, B, K]` (multimodal rotary: time, height and width), or 4 with the text's
    count in front: numbers that no token has left on any of the three axes are closed. Text keeps one number on all
    axes, and tokens that shared a frame, row or column still do.
    """
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    if ids.dim() == 2:
        return counted
    # the ranks of a row's numbers, of which equal ones share theirs: `unique` of each row, without waiting for a GPU
    hidden = (mask == 0).repeat(1, 3)  # [B, 3 K]
    numbers = ids[-3:].transpose(0, 1).flatten(1).masked_fill(hidden, torch.iinfo(ids.dtype).max)
    ordered, order = numbers.sort(dim=1)
    rank = functional.pad(ordered.diff(dim=1) != 0, (1, 0)).cumsum(1)
    axes = torch.empty_like(rank).scatter_(1, order, rank).masked_fill_(hidden, 0).unflatten(1, (3, -1))
    return torch.cat([counted.expand(len(ids) - 3, -1, -1), axes.transpose(0, 1)])
