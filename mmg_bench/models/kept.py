"""Which columns of a prompt are left after pruning, and what that makes of masks, position ids and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What is left of a prompt `[B, S]` after pruning; rows are padded on the left to one length."""

    index: Tensor  # [B, K] columns of the prompt
    real: Tensor  # [B, K] bool; False where a row is padded
    shift: Tensor  # [B] by how much later position ids are lower: 0 where they stay as they are
    prompt: int  # S
    contiguous: bool = False  # whether the prompt's own position ids close the gaps

    @classmethod
    def of(cls, columns: list[Tensor], prompt: int, contiguous: bool) -> Self:
        """From the columns `[K_b]` that are left of each row; `contiguous`: position ids close the gaps."""
        index, real = left_padded(columns)
        shift = prompt - real.sum(1)
        return cls(index, real, shift if contiguous else torch.zeros_like(shift), prompt, contiguous)

    @property
    def removed(self) -> int:
        """By how many columns the prompt became narrower."""
        return self.prompt - self.index.shape[1]

    def gather(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[B, S, D]`."""
        return values.gather(1, self.index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    def columns(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[..., B, S]`."""
        return values.gather(-1, self.index.expand(*values.shape[:-1], -1))

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The kept columns, and all behind the prompt, of a 2-D attention mask `[B, >= S]`."""
        prompt = self.columns(attention_mask[:, : self.prompt]) * self.real.to(attention_mask.dtype)
        return torch.cat([prompt, attention_mask[:, self.prompt :]], dim=1)

    def ids(self, ids: Tensor, mask: Tensor, prefill: bool) -> Tensor:
        """Position ids `[..., B, K]` of what is left of those of a call; `mask`: the kept 2-D mask."""
        if not prefill:
            return ids - self.shift[:, None]
        kept = self.columns(ids)
        return (mask.cumsum(-1) - 1).clamp(min=0).expand_as(kept) if self.contiguous else kept

    def after(self, first: Self) -> Self:
        """This, of what `first` left, as one step from the whole prompt."""
        real = first.real.gather(1, self.index) & self.real
        return type(self)(first.index.gather(1, self.index), real, first.shift + self.shift, first.prompt)


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack rows `[K_i, ...]` of unequal length, zeros on the left; also `[B, K]` bool, False where padded."""
    longest = max(len(row) for row in rows)
    stacked = torch.stack([torch.cat([row.new_zeros(longest - len(row), *row.shape[1:]), row]) for row in rows])
    counts = torch.tensor([len(row) for row in rows], device=stacked.device)
    return stacked, torch.arange(longest, device=stacked.device) >= longest - counts[:, None]
