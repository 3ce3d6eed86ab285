"""State of a prompt whose videos were pruned, from its prefill to its last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmg_bench.models.kept import Kept


@dataclass(frozen=True)
class Span:
    """Where one video's visual tokens are in a row of the sequence that passes through the layers."""

    row: int
    video: int
    """Its number in the report; copies of a prompt share it."""
    columns: Tensor
    """`[n]` int64: columns of its n tokens, ascending; text may come between them."""
    text: Tensor
    """`[L]` int64: columns of the text that follows it, without tokens of other videos and images."""
    positions: Tensor
    """`[n]`: flat raster indices of the n tokens."""
    total: int
    """T * N."""
    state: Any


@dataclass
class Prompt:
    """What decoding needs to know about a pruned prompt. Attached to the prompt's cache, and to copies of it."""

    context: int
    """Number of the context in which it was prefilled."""
    kept: Kept | None
    """The part of the prompt that layer 0 saw; None: all of it."""
    spans: list[Span]
    stages: list[Kept] = field(default_factory=list)
    """What was left of that part at each stage inside the language model."""
    memory: dict[int, Tensor] = field(default_factory=dict)
    """Span -> what `select_keys` passed on."""
    rows: int = 1
    """Number of prompts in the batch."""
    said: Tensor | None = None
    """`[B, n]` ids of all input so far, including pruned tokens; None if unknown."""
    deltas: Tensor | None = None
    """`Adapter.deltas` of this prompt; the model itself holds those of the last prompt that it saw."""

    def hear(self, ids: Tensor | None, before: int) -> None:
        """Record the `ids` of a call, `[B, q]`, after `before` columns."""
        said, self.said = self.said, None
        if ids is not None and said is not None and said.shape[1] >= before and len(said) in (1, len(ids)):
            self.said = torch.cat([said[:, :before].to(ids.device).expand(len(ids), -1), ids], dim=1)

    def holds(self, ids: Tensor, start: int) -> bool:
        """Whether `ids` `[B, q]` equal its input ids from column `start` on, in each copy of a prompt."""
        if self.said is None or len(self.said) not in (1, len(ids)):
            return False
        said = self.said[:, start : start + ids.shape[1]].to(ids.device)
        return torch.equal(said.expand(len(ids), -1), ids)

    def crop(self, past: int) -> None:
        """Cut off the end: layer 0 keeps `past` columns, and later layers lose as many as layer 0."""
        whole = self.kept.index.shape[1] if self.kept is not None else self.stages[0].whole if self.stages else past
        if (cut := whole - past) <= 0:
            return
        if self.kept is not None:
            self.kept = self.kept.cropped(past)
        self.stages = [stage.cropped(stage.index.shape[1] - cut) for stage in self.stages]

    def reorder_cache(self, rows: Tensor) -> None:
        """Continue each row b from the previous row `rows[b]`: beam search drops some beams and duplicates others."""
        if self.said is not None and len(self.said) > 1:
            self.said = self.said[rows.to(self.said.device)]
        of_row: dict[int, list[int]] = {}
        for number, span in enumerate(self.spans):
            of_row.setdefault(span.row, []).append(number)
        before = self.memory
        self.memory = {
            to: before[source]
            for row, parent in enumerate(rows.tolist())
            for to, source in zip(of_row.get(row, ()), of_row.get(parent, ()), strict=True)
            if source in before
        }


def moved(spans: Sequence[Span], left: Tensor, counts: Sequence[int]) -> list[Span]:
    """The same videos in the sequence that `Kept.of(left, counts)` makes; their own columns are all `left`."""
    number = left.cumsum(1) - 1  # [B, S] number of columns left before this one
    padding = [max(counts) - count for count in counts]

    def to(row: int, columns: Tensor) -> Tensor:
        return number[row, columns] + padding[row]

    return [replace(span, columns=to(span.row, span.columns), text=to(span.row, span.text)) for span in spans]
