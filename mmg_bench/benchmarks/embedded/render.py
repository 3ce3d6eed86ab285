"""Pixels of a `World`, and the H.264 file that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmg_bench.benchmarks.embedded.world import COLOURS, FPS, World
from mmg_bench.files import digest_of, written_whole

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

VERSION = digest_of([Path(__file__)])
"""Of the pixels and their encoding; part of the name of whatever keeps them."""


def texture(seed: int, size: int) -> Floats:
    """Muted background `[size, size, 3]` in 0..255: a colour gradient, three plane waves and blotches."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    base, tilt = rng.uniform(50, 130, size=3), rng.uniform(-25, 25, size=(2, 3))
    picture = base + (x[..., None] - 0.5) * tilt[0] + (y[..., None] - 0.5) * tilt[1]
    for _ in range(3):
        fx, fy = rng.uniform(-6, 6, size=2)
        wave = np.sin(2 * np.pi * (fx * x + fy * y) + rng.uniform(0, 2 * np.pi))
        picture = picture + wave[..., None] * rng.uniform(-9, 9, size=3)
    blotches = rng.normal(0, 9, size=(8, 8))
    picture = picture + _upsample(blotches, size)[..., None]
    return np.clip(picture, 0, 255).astype(np.float32)


def _upsample(grid: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Bilinear upsampling of a square grid to `[size, size]`."""
    at = np.linspace(0, len(grid) - 1, size)
    columns = np.stack([np.interp(at, np.arange(len(grid)), row) for row in grid])
    return np.stack([np.interp(at, np.arange(len(grid)), column) for column in columns.T], axis=1)


def distance(shape: str, x: Floats, y: Floats, r: float) -> Floats:
    """Signed distance (negative inside) of points `(x, y)`, relative to the centre, to a shape of radius `r`."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.76 * r) - 0.24 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * r
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.6 * r
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        bars = np.minimum(np.maximum(ax - r, ay - 0.3 * r), np.maximum(ay - r, ax - 0.3 * r))
        return bars
    if shape == "star":
        angle = np.arctan2(x, -y)
        return np.hypot(x, y) - r * (0.68 + 0.32 * np.cos(5 * angle))
    raise ValueError(f"unknown shape {shape!r}")


def drawn(world: World, frame: int) -> list[tuple[str, str, tuple[float, float], float]]:
    """What is to be seen in a raw frame: `(shape, colour, centre, radius)`, painted in this order."""
    scene = world.scene_at(frame)
    items = [(m.shape, m.colour, m.centre(scene.progress(frame)), m.radius) for m in scene.movers]
    items += [("star", f.colour, f.centre, f.radius) for f in world.flashes if f.first <= frame <= f.last]
    return items


def coverage(shape: str, centre: tuple[float, float], radius: float, size: int) -> tuple[slice, slice, Floats]:
    """Rows, columns and opacity in 0..1 of the pixels that a shape touches in a `size` x `size` picture."""
    low = [max(0, int((c - radius) * size) - 2) for c in centre]
    high = [min(size, int((c + radius) * size) + 3) for c in centre]
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    y, x = np.mgrid[rows, columns].astype(np.float32)
    x, y = (x + 0.5) - centre[0] * size, (y + 0.5) - centre[1] * size
    return rows, columns, np.clip(0.5 - distance(shape, x, y, radius * size), 0, 1)


def render_frames(world: World, frames: list[int], size: int) -> Pixels:
    """RGB pictures `[len(frames), size, size, 3]` of the raw frames named."""
    backgrounds = {scene: texture(scene.texture_seed, size) for scene in world.scenes}
    out = np.empty((len(frames), size, size, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        picture = backgrounds[world.scene_at(frame)].copy()
        for shape, colour, centre, radius in drawn(world, frame):
            rows, columns, alpha = coverage(shape, centre, radius, size)
            patch = picture[rows, columns]
            patch += alpha[..., None] * (np.array(COLOURS[colour], dtype=np.float32) - patch)
        out[i] = np.round(picture)
    return out


def write_video(world: World, path: str | Path, size: int = 224) -> None:
    """Write the whole video as H.264 (yuv420p) in an mp4 container; the file appears only when it is complete.

    The same world gives the same bytes every time on one machine, with one build of PyAV.
    """
    import av

    # neither x264 with several threads nor its macroblock tree gives equal bytes for equal pictures every time
    options = {"crf": "20", "preset": "fast", "threads": "1", "x264-params": "mbtree=0"}
    with written_whole(Path(path)) as file, av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in render_frames(world, list(range(world.frames)), size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
