"""Pictures of what a method keeps: frames with every pruned token darkened."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]


def kept_overlay(frames: Pictures, positions: NDArray[np.int64], grid: tuple[int, int], dim: float = 0.25) -> Pictures:
    """Frames `[T, H, W, 3]` with the cells of pruned tokens at `dim` of their brightness.

    `positions` are flat raster indices into `T * h * w` for a `grid` `(h, w)`. Raises ValueError for positions
    outside.
    """
    count, height, width, _ = frames.shape
    rows, columns = grid
    if len(positions) and not 0 <= positions.min() <= positions.max() < count * rows * columns:
        raise ValueError(
            f"positions reach {positions.max()}, but {count} frames of {rows} x {columns} tokens were given"
        )
    kept = np.zeros(count * rows * columns, dtype=bool)
    kept[positions] = True
    row_of = np.arange(height) * rows // height  # [H], the token row of each pixel row
    column_of = np.arange(width) * columns // width
    mask = kept.reshape(count, rows, columns)[:, row_of][:, :, column_of]  # [T, H, W]
    return np.where(mask[..., None], frames, (frames * dim).astype(np.uint8))


def contact_sheet(rows: list[Pictures], gap: int = 2) -> Pictures:
    """Rows of frames `[T, H, W, 3]` as one picture, white lines of `gap` pixels between them."""

    def joined(pictures: list[Pictures], axis: int) -> Pictures:
        shape = list(pictures[0].shape)
        shape[axis] = gap
        line = np.full(shape, 255, dtype=np.uint8)
        return np.concatenate([part for picture in pictures for part in (picture, line)][:-1], axis=axis)

    return joined([joined(list(row), axis=1) for row in rows], axis=0)
