"""Where videos are in prompts, and what is left of a prompt's rows after pruning.

Columns are computed on the host with numpy: the GPU is idle meanwhile, and a torch call takes as long as several numpy
calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmg_bench.models.adapter import Adapter, Layout
from mmg_bench.tokens import PrunedTokens

Columns = NDArray[np.intp]
"""Columns of a prompt, ascending."""


@dataclass(frozen=True)
class Place:
    """Where one video is in the prompts."""

    row: int
    video: int
    """Its number among the encoded videos; copies of a prompt share it."""
    layout: Layout
    first: int
    """Total number of frames of the videos encoded before it."""
    tokens: Columns
    """`[T * H * W]`: the columns of its tokens."""
    end: int
    """The column after its last placeholder."""
    ids: NDArray[np.int64]
    """`[S]`: the prompt that contains it."""
    no_text: Sequence[int]
    """Ids of all placeholders, including those of images."""

    @property
    def total(self) -> int:
        """T * H * W."""
        return len(self.tokens)

    def body(self, device: torch.device) -> slice | Tensor:
        """The columns of its tokens; a slice if they are adjacent."""
        return _sliced(self.tokens, device)

    def text(self, device: torch.device) -> slice | Tensor:
        """The columns of the text that follows it, without other videos and images; a slice if possible."""
        is_text = np.isin(self.ids[self.end :], self.no_text, invert=True)
        return _sliced(is_text.nonzero()[0] + self.end, device)


def _sliced(columns: Columns, device: torch.device) -> slice | Tensor:
    """Ascending columns, as a slice if they are adjacent."""
    if not len(columns):
        return slice(0, 0)
    first, last = int(columns[0]), int(columns[-1])
    return slice(first, last + 1) if last - first + 1 == len(columns) else _on(device, columns)


def _on(device: torch.device, columns: Columns) -> Tensor:
    return torch.from_numpy(columns).to(device, non_blocking=True)


def places(ids: Tensor, adapter: Adapter, layouts: Sequence[Layout]) -> Iterator[Place]:
    """Every video in prompts `[B, S]`, which are on the host, row by row.

    `generate` repeats each prompt for beams and several answers, while its videos were encoded once.
    """
    lengths = [adapter.placeholders(layout) for layout in layouts]
    frames = list(accumulate((layout[0] for layout in layouts), initial=0))
    prompts, no_text = ids.numpy(), adapter.placeholder_ids
    found = [row.nonzero()[0] for row in prompts == adapter.video_token_id]
    copies, first = max(1, sum(map(len, found)) // sum(lengths)), 0
    for start in range(0, len(prompts), copies):
        last, length = first, 0
        while last < len(lengths) and length < len(found[start]):
            length += lengths[last]
            last += 1
        for row in range(start, min(start + copies, len(prompts))):
            if length != len(found[row]):
                raise ValueError(
                    f"prompt {row} holds {len(found[row])} visual placeholders, not {length} for its videos of "
                    f"(T, H, W) {layouts[first:last]}: use the model's own processor, without prefill_chunk_size; a "
                    "model that lays out videos differently needs its own adapter"
                )
            behind = 0
            for video in range(first, last):
                columns, behind = found[row][behind : behind + lengths[video]], behind + lengths[video]
                layout = layouts[video]
                _check_runs(columns, adapter.in_a_row(layout), row)
                body = adapter.body(layout)
                tokens = columns[body if isinstance(body, slice) else body.numpy()]
                yield Place(row, video, layout, frames[video], tokens, int(columns[-1]) + 1, prompts[row], no_text)
        first = last
    if first < len(lengths):  # the model scatters the others elsewhere: they would not be pruned
        raise ValueError(
            f"the prompts hold placeholders (token {adapter.video_token_id}) for only {first} of the {len(lengths)} "
            f"encoded videos, of (T, H, W) {layouts}: use the model's own processor; a model that marks videos "
            "differently needs its own adapter"
        )


def _check_runs(columns: Columns, length: int, row: int) -> None:
    """Raise ValueError, naming the first violation, unless columns come in runs of `length`."""
    gaps = np.diff(columns) != 1
    gaps[length - 1 :: length] = False  # gaps between runs
    if gaps.any():
        start = int(gaps.argmax()) // length * length
        run = columns[start : start + length]
        raise ValueError(
            f"prompt {row} holds visual placeholders in columns {run[0]} to {run[-1]}, not in {len(run)} adjacent "
            "ones: use the model's own processor"
        )


class Row:
    """What is left of one row of a prompt, from left to right."""

    def __init__(self, columns: int, device: torch.device):
        self.whole = torch.arange(columns, device=device)
        self.pieces: list[Tensor] = []
        """Columns of the prompt."""
        self.length = 0
        """Total length of the pieces."""
        self.videos: list[tuple[Place, slice | Tensor, PrunedTokens]] = []
        """For each video: its place in the prompt; the columns of its tokens in the pruned row; the tokens."""
        self._at = 0  # first column of the prompt that has not been processed

    def add(self, place: Place, body: slice | Tensor, pruned: PrunedTokens) -> None:
        """Advance to the end of a video's tokens, `body`, of which `pruned` are left."""
        kept: slice | Tensor
        if isinstance(body, slice):
            self._append(self.whole[self._at : body.start])
            kept = slice(self.length, self.length + len(pruned))
            self._append(body.start + pruned.positions)
            self._at = body.stop
        else:  # text comes between them
            others = np.ones(place.end - self._at, bool)
            others[place.tokens - self._at] = False
            text = _on(body.device, others.nonzero()[0] + self._at)
            chosen = body[pruned.positions]
            piece, order = torch.cat([text, chosen]).sort(stable=True)
            kept = order.argsort()[len(text) :] + self.length
            self._append(piece)
            self._at = place.end
        self.videos.append((place, kept, pruned))

    def finish(self) -> int:
        """Advance to the end of the row, and return how many columns are left."""
        self._append(self.whole[self._at :])
        return self.length

    @cached_property
    def left(self) -> Tensor:
        """`[K]` int64: the columns of the prompt that are left, once the row is finished."""
        return torch.cat(self.pieces)

    def text(self, place: Place) -> Tensor:
        """`[L]`: the columns, in the pruned row, of the text that follows a video."""
        return torch.searchsorted(self.left, self.whole[place.text(self.whole.device)])

    def _append(self, piece: Tensor) -> None:
        self.pieces.append(piece)
        self.length += len(piece)


def shifted(columns: slice | Tensor, by: int) -> slice | Tensor:
    """The columns moved `by` to the right."""
    return slice(columns.start + by, columns.stop + by) if isinstance(columns, slice) else columns + by
