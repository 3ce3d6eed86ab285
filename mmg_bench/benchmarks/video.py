"""Frames of a video file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PICTURES = (".jpg", ".jpeg", ".png")


class VideoError(RuntimeError):
    """A video that cannot be read: missing, empty, or not a video. The message names the file and the remedy."""


def read_frames(path: Path, frames: int) -> NDArray[np.uint8]:
    """`frames` RGB frames `[frames, H, W, 3]`, uniformly from the first to the last (shorter videos repeat some).

    The sampling is lmms-eval's: `linspace(0, n - 1, frames)`, rounded down. `path` may also be a folder of pictures,
    one a frame, in the order of their names. Raises VideoError.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}: at least one frame must be sampled")
    if path.is_dir():
        return _read_pictures(path, frames)
    if not path.is_file():
        raise VideoError(f"{path}: no such video; download it, or correct the benchmark's data folder")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; download it again")
    from decord import VideoReader

    try:
        reader = VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch(_sampled(len(reader), frames)).asnumpy() if len(reader) else None
    except Exception as error:  # decord raises several kinds, with a C++ trace for a message
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VideoError(f"{path}: cannot be decoded ({first_line}); download it again") from error
    if pixels is None:
        raise VideoError(f"{path}: holds no frame; download it again")
    return pixels


def _sampled(count: int, frames: int) -> list[int]:
    return np.linspace(0, count - 1, frames).astype(int).tolist()


def _read_pictures(folder: Path, frames: int) -> NDArray[np.uint8]:
    from PIL import Image

    names = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not names:
        raise VideoError(f"{folder}: the folder holds no picture ({', '.join(PICTURES)}); download it again")
    try:
        return np.stack([np.asarray(Image.open(names[i]).convert("RGB")) for i in _sampled(len(names), frames)])
    except (OSError, ValueError) as error:  # damaged, or of several sizes
        raise VideoError(f"{folder}: cannot be read as one video ({error}); download it again") from error
