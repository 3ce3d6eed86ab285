"""Frames of a video file, and when they are shown."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmg_bench.benchmarks.embedded.dataset import cache_folder

PICTURES = (".jpg", ".jpeg", ".png")
PICTURES_FPS = 3.0
"""Assumed for folders of pictures, which do not say: the only ones here, TVQA's in MVBench, have three a second."""
LEAST_FRAMES = 4
"""Minimum number of sampled frames if a frame rate is given, as in qwen-vl-utils."""
_NUMBER = re.compile(r"(\d+)")


class VideoError(RuntimeError):
    """A video that cannot be read: missing, empty, or not a video. The message names the file and the remedy."""


@dataclass(frozen=True)
class Timing:
    """Which frames of a video were sampled, and so when each is shown. Raises ValueError for impossible values."""

    indices: tuple[int, ...]
    """Numbers of the sampled frames, ascending."""
    total: int
    """Number of frames in the whole video."""
    fps: float | None
    """The video's frames per second; None if the file does not say."""

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps={self.fps}: it must be above 0")
        ascending = list(self.indices) == sorted(self.indices)
        if not self.indices or not ascending or self.indices[0] < 0 or self.indices[-1] >= self.total:
            raise ValueError(f"indices={self.indices}: give ascending frame numbers below total={self.total}")

    @classmethod
    def every_second(cls, frames: int) -> Timing:
        """The timing of a whole video of `frames` frames, one per second."""
        return cls(tuple(range(frames)), frames, 1.0)


@dataclass(frozen=True)
class Clip:
    """Frames sampled from a video."""

    pixels: NDArray[np.uint8]
    """`[T, H, W, 3]`, RGB."""
    timing: Timing


def read_frames(path: str | Path, frames: int) -> NDArray[np.uint8]:
    """The pixels `[frames, H, W, 3]` of `read_clip`."""
    return read_clip(path, frames).pixels


def read_clip(path: str | Path, frames: int, fps: float | None = None) -> Clip:
    """Sample `frames` frames of a video, uniformly from the first to the last (shorter videos repeat some).

    With `fps`, sample that many per second, rounded; but at most `frames`, and at least LEAST_FRAMES (or all it has).

    The sampling is lmms-eval's: `linspace(0, n - 1, frames)`, rounded down. `path` may also be a folder of pictures,
    one per frame, in the order of `pictures`. Raises VideoError; with `fps`, also if the file has no frame rate.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}: at least one frame must be sampled")
    path = Path(path)
    if path.is_dir():
        return _read_pictures(path, frames, fps)
    if not path.is_file():
        raise VideoError(
            f"{path}: no such video; put it there (for videos on the hub, `mmg-bench doctor` says how), or correct its "
            "name or folder in the benchmark's data"
        )
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; {_remedy(path)}")
    from decord import VideoReader

    try:
        reader = VideoReader(str(path), num_threads=1)
        rate = float(reader.get_avg_fps()) if len(reader) else math.nan
        indices = _sampled(len(reader), _number(path, frames, fps, len(reader), rate)) if len(reader) else []
        pixels = reader.get_batch(indices).asnumpy() if indices else None
    except VideoError:
        raise
    except Exception as error:  # decord raises several kinds, whose message is a C++ trace
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "from_size == to_size" in first_line:  # decord 0.6 on frames of 8, 12, 16, 24, 48 or 72 pixels a row
            raise VideoError(
                f"{path}: decord cannot read frames of this width; scale it to 96 pixels or more"
            ) from error
        raise VideoError(f"{path}: cannot be decoded ({first_line}); {_remedy(path)}") from error
    if pixels is None:
        raise VideoError(f"{path}: the file holds no frames; {_remedy(path)}")
    return Clip(pixels, Timing(tuple(indices), len(reader), rate if rate > 0 else None))


def _remedy(path: Path) -> str:
    if cache_folder() in path.parents:
        return "delete it; it will be rendered again"
    return "download it again, use another copy, or encode it as H.264"


def pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name, with numbers in names sorted as numbers: 9.png before 10.png.

    Hidden files (macOS writes a `._1.png` beside 1.png) and folders are left out.
    """
    found = (p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != "." and not p.is_dir())
    return sorted(found, key=lambda p: [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(p.name))])


def _number(path: Path, frames: int, fps: float | None, total: int, rate: float) -> int:
    """The number of frames to sample from a video of `total` frames, `rate` per second: see `read_clip`."""
    if fps is None:
        return frames
    if not rate > 0:
        raise VideoError(
            f"{path}: the file does not state its frame rate, which model.fps={fps:g} needs; set model.fps to null"
        )
    return min(frames, total, max(LEAST_FRAMES, round(total / rate * fps)))


def _sampled(count: int, frames: int) -> list[int]:
    return np.linspace(0, count - 1, frames).astype(int).tolist()


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """`[H, W, 3]`, rotated as its camera recorded, like a video."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):  # 16-bit grey, which `convert` turns white; of 16-bit colours it takes the upper 8
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def _read_pictures(folder: Path, frames: int, fps: float | None) -> Clip:
    names = pictures(folder)
    if not names:
        raise VideoError(f"{folder}: the folder holds no pictures ({', '.join(PICTURES)})")
    indices = _sampled(len(names), _number(folder, frames, fps, len(names), PICTURES_FPS))
    try:
        pixels = np.stack([_read_picture(names[i]) for i in indices])
    except (OSError, ValueError) as error:  # damaged, or of different sizes
        raise VideoError(
            f"{folder}: cannot be read as one video ({error}): its pictures must be intact and all the same size"
        ) from error
    return Clip(pixels, Timing(tuple(indices), len(names), PICTURES_FPS))
