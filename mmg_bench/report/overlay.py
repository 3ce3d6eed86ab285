"""Pictures of what a method keeps: frames with every pruned token darkened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pictures = NDArray[np.uint8]
_MARGIN = 22  # pixels
_GAP = 2  # pixels


def kept_overlay(frames: Pictures, positions: NDArray[np.int64], grid: tuple[int, int]) -> Pictures:
    """Frames `[T, H, W, 3]` with the cells of pruned tokens at a quarter of their brightness.

    `positions` are the kept tokens' flat raster indices into `T * h * w` for a `grid` `(h, w)`. Raises ValueError for
    positions outside.
    """
    count, height, width, _ = frames.shape
    rows, columns = grid
    if len(positions) and not 0 <= positions.min() <= positions.max() < count * rows * columns:
        raise ValueError(
            f"positions {positions.min()} to {positions.max()}: outside {count} frames of {rows} x {columns} tokens"
        )
    kept = np.zeros(count * rows * columns, dtype=bool)
    kept[positions] = True
    row_of = np.arange(height) * rows // height  # [H], the token row of each pixel row
    column_of = np.arange(width) * columns // width
    mask = kept.reshape(count, rows, columns)[:, row_of][:, :, column_of]  # [T, H, W]
    return np.where(mask[..., None], frames, frames // 4)


def contact_sheet(rows: list[Pictures], names: Sequence[str] = ()) -> Pictures:
    """Rows of frames `[T, H, W, 3]` as one picture, with thin white lines between them.

    `names`: one per row, written upwards on a white margin on the left. Raises ValueError for any other number of
    names.
    """
    if names and len(names) != len(rows):
        raise ValueError(f"{len(names)} names for {len(rows)} rows of pictures: give one each, or none")
    parts = [list(row) for row in rows]
    for part, name in zip(parts, names, strict=False):
        part.insert(0, _upwards(name, len(part[0])))
    return _joined([_joined(part, axis=1) for part in parts], axis=0)


def _joined(pictures: list[Pictures], axis: int) -> Pictures:
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    line = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, line)][:-1], axis=axis)


def _upwards(text: str, height: int) -> Pictures:
    """Black text on white, rotated to read upwards, scaled to fit the height of a row of frames."""
    picture = Image.new("RGB", (height, _MARGIN), "white")
    draw, size = ImageDraw.Draw(picture), _MARGIN * 0.7
    size *= min(1, height / draw.textlength(text, font_size=size)) if text else 1
    draw.text((height / 2, _MARGIN / 2), text, fill="black", anchor="mm", font_size=size)
    return np.asarray(picture.rotate(90, expand=True))
