"""What happens in a video of the embedded benchmark, as plain values drawn from a seed.

Lengths are in units of the (square) picture's width, times in raw video frames. A video is a sequence of scenes. Each
scene has its own textured background and one or two objects that move in a straight line. Occasionally a star flashes,
for less than the time between two of the frames that a 16-frame model sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FPS = 8
STRIDE = 4  # raw frames between two of the uniformly sampled frames
SAMPLED = 16  # frames that a model is meant to see

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 190),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPLITS = {"train": 0, "test": 1, "validation": 2}

_MARGIN = 0.02
_CLEARANCE = 0.28  # minimum distance between the centres of two objects at any time
_TRIES = 200


@dataclass(frozen=True)
class Mover:
    """An object that crosses its scene in a straight line at constant speed."""

    shape: str
    colour: str
    direction: str
    start: tuple[float, float]  # centre at the scene's first frame
    travel: float  # distance covered over the scene
    radius: float

    def centre(self, progress: float) -> tuple[float, float]:
        """Centre at a `progress` in [0, 1] through the scene."""
        dx, dy = DIRECTIONS[self.direction]
        return self.start[0] + dx * self.travel * progress, self.start[1] + dy * self.travel * progress


@dataclass(frozen=True)
class Flash:
    """A star that is visible only in the raw frames [first, last]."""

    colour: str
    centre: tuple[float, float]
    radius: float
    first: int
    last: int


@dataclass(frozen=True)
class Scene:
    """Raw frames [first, end) over one background."""

    first: int
    end: int
    texture_seed: int
    movers: tuple[Mover, ...]

    def progress(self, frame: int) -> float:
        return (frame - self.first) / max(1, self.end - 1 - self.first)


@dataclass(frozen=True)
class World:
    """Everything that happens in one video."""

    split: str
    index: int
    scenes: tuple[Scene, ...]
    flashes: tuple[Flash, ...]

    @property
    def frames(self) -> int:
        """Number of raw frames."""
        return self.scenes[-1].end

    @property
    def movers(self) -> tuple[Mover, ...]:
        return tuple(mover for scene in self.scenes for mover in scene.movers)

    def scene_at(self, frame: int) -> Scene:
        return next(scene for scene in self.scenes if scene.first <= frame < scene.end)


def make_rng(split: str, index: int, stream: int = 0) -> np.random.Generator:
    """The random stream of one video. Splits never share a stream, and equal arguments give equal draws."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded benchmark; choose one of {sorted(SPLITS)}")
    return np.random.default_rng([SPLITS[split], index, stream])


def make_world(split: str, index: int, sampled: int = SAMPLED) -> World:
    """Draw video `index` of `split`, long enough for `sampled` uniformly sampled frames (the curriculum uses fewer)."""
    if sampled < 3:
        raise ValueError(f"sampled={sampled}: a video of the embedded benchmark has at least 3 sampled frames")
    rng = make_rng(split, index)
    ends = _scene_ends(rng, sampled)
    counts = [int(rng.integers(1, 3)) for _ in ends]
    while sum(counts) > len(COLOURS):  # every moving object has its own colour
        counts[counts.index(max(counts))] -= 1
    colours = [str(c) for c in rng.permutation(list(COLOURS))]
    scenes, first = [], 0
    for end, count in zip(ends, counts, strict=True):
        movers = _place_movers(rng, [colours.pop() for _ in range(count)])
        scenes.append(Scene(first, end, int(rng.integers(2**31)), movers))
        first = end
    return World(split, index, tuple(scenes), _place_flashes(rng, scenes, sampled))


def _scene_ends(rng: np.random.Generator, sampled: int) -> list[int]:
    """Ends of 2 to 4 scenes of at least 3 sampled frames each; cuts are half-way between sampled frames."""
    most = min(4, sampled // 3)
    n = int(rng.integers(min(2, most), most + 1))
    spare = sampled - 3 * n
    cuts = np.sort(rng.integers(0, spare + 1, size=n - 1)) + 3 * np.arange(1, n)
    return [int(cut) * STRIDE - STRIDE // 2 + 1 for cut in cuts] + [(sampled - 1) * STRIDE + 1]


def _place_movers(rng: np.random.Generator, colours: list[str]) -> tuple[Mover, ...]:
    for _ in range(_TRIES):
        movers = tuple(_draw_mover(rng, colour) for colour in colours)
        if len(movers) < 2 or _apart(*movers):
            return movers
    return movers[:1]  # such a crowded draw is rare; a scene with one object is valid


def _draw_mover(rng: np.random.Generator, colour: str) -> Mover:
    direction = str(rng.choice(list(DIRECTIONS)))
    radius = float(rng.uniform(0.11, 0.14))
    travel = float(rng.uniform(0.35, 0.5))
    low, high = radius + _MARGIN, 1 - radius - _MARGIN
    along = float(rng.uniform(low + travel / 2, high - travel / 2))  # middle of the path
    across = float(rng.uniform(low, high))
    dx, dy = DIRECTIONS[direction]
    start = (along - dx * travel / 2, across) if dx else (across, along - dy * travel / 2)
    return Mover(str(rng.choice(SHAPES)), colour, direction, start, travel, radius)


def _apart(a: Mover, b: Mover) -> bool:
    progress = np.linspace(0, 1, 13)
    gaps = [np.subtract(a.centre(p), b.centre(p)) for p in progress]
    return bool(min(float(np.hypot(*gap)) for gap in gaps) > _CLEARANCE)


def _place_flashes(rng: np.random.Generator, scenes: list[Scene], sampled: int) -> tuple[Flash, ...]:
    """One to three flashes of one colour, each in one sampled frame, none next to another or covering a mover."""
    wanted = int(rng.integers(1, 4))
    colour = str(rng.choice(list(COLOURS)))
    flashes: list[Flash] = []
    for frame in (rng.permutation(sampled) * STRIDE).tolist():
        if len(flashes) == wanted:
            break
        if any(abs(frame - (f.first + 1)) < 2 * STRIDE for f in flashes):
            continue
        scene = next(s for s in scenes if s.first <= frame < s.end)
        first, last = max(frame - 1, scene.first), min(frame + 1, scene.end - 1)
        busy = [m.centre(scene.progress(f)) for m in scene.movers for f in range(first, last + 1)]
        radius = float(rng.uniform(0.12, 0.15))
        for _ in range(_TRIES):
            centre = rng.uniform(radius + _MARGIN, 1 - radius - _MARGIN, size=2)
            if all(float(np.hypot(*(centre - np.array(b)))) > _CLEARANCE for b in busy):
                flashes.append(Flash(colour, (float(centre[0]), float(centre[1])), radius, first, last))
                break
    return tuple(sorted(flashes, key=lambda f: f.first))
