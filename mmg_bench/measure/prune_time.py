"""How long the methods' own work takes, without a model: every method on the same synthetic video, round by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mmg_bench.contract import tensors
from mmg_bench.elapsed import Elapsed
from mmg_bench.measure.clock import Clock
from mmg_bench.measure.failures import Failure, attempt, tell
from mmg_bench.measure.synthetic import synthetic_video
from mmg_bench.methods.base import Method
from mmg_bench.options import check_number, check_whole, device_of, dtype_of, make_current
from mmg_bench.tokens import VideoTokens

LEAST_ROUNDS = 3
GRAM = "Gram product"


@dataclass(frozen=True)
class PruneTimeSettings:
    """What to time, and how often."""

    frames: tuple[int, ...] = (32, 128)
    """Frames of each video; 32 and 128, with the defaults below, match LLaVA-OneVision-7B."""
    tokens: int = 196
    """N of a frame, in the squarest grid."""
    width: int = 3584
    """D of a token."""
    dtype: str = "float32"
    device: str = "auto"
    """`auto` uses a GPU if there is one."""
    repeats: int = 20
    """Rounds; each runs every method once."""
    warmup: int = 3
    """Unmeasured rounds before those."""
    seconds: float = 60.0
    """A method that has taken this long at one number of frames skips further rounds, but not the first three."""
    seed: int = 0
    """Seed of the video."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("width", 1), ("repeats", LEAST_ROUNDS), ("warmup", 0)):
            check_whole(name, getattr(self, name), least)
        check_whole("seed", self.seed, 0)
        check_number("seconds", self.seconds)
        if not self.frames:
            raise ValueError("frames=[]: give one or several numbers of frames")
        for count in self.frames:
            check_whole("frames", count, 1)
        dtype_of("dtype", self.dtype)

    @property
    def grid(self) -> tuple[int, int]:
        """`(H, W)` of a frame, H the largest divisor of N not above its root."""
        height = next(h for h in range(math.isqrt(self.tokens), 0, -1) if self.tokens % h == 0)
        return height, self.tokens // height

    @property
    def torch_device(self) -> torch.device:
        """The device that `auto` stands for, or the one named. Raises ValueError if it does not exist."""
        return device_of("device", self.device)


@dataclass(frozen=True)
class PruneTimes:
    """Times of one method at one number of frames."""

    name: str
    frames: int
    total_tokens: int
    realised_tokens: int | None
    """Tokens left; None if the first call failed."""
    ms: NDArray[np.float64]
    """`[repeats]`; NaN in rounds that it skipped. Empty if it failed or hands the tokens on as they are."""
    gram: NDArray[np.float64]
    """`[repeats]`: time of the Gram product in the same rounds."""
    failure: Failure | None = None
    """Why it has no times, if it failed."""


def measure_methods(methods: Mapping[str, Method], settings: PruneTimeSettings) -> Iterator[list[PruneTimes]]:
    """Time every method, and one batched Gram product of the video's frames. One list per number of frames.

    That product, `[T, N, D]` with its own transpose in float32, is what MMG-Vid cannot avoid, and a yardstick for the
    others: a ratio to it says more than milliseconds on one machine. A method that fails is reported at once, and the
    others are still timed.
    """
    device, dtype = settings.torch_device, dtype_of("dtype", settings.dtype)
    make_current(device)
    for frames in dict.fromkeys(settings.frames):
        with torch.inference_mode():
            video = synthetic_video(frames, settings.grid, settings.width, settings.seed)
            moved: dict[str, Any] = {name: tensor.to(device, dtype) for name, tensor in tensors(video).items()}
            found = list(_at(frames, replace(video, **moved), methods, settings))
        yield found


def _at(
    frames: int, tokens: VideoTokens, methods: Mapping[str, Method], settings: PruneTimeSettings
) -> Iterator[PruneTimes]:
    device = tokens.features.device
    work: dict[str, Callable[[], object]] = {GRAM: partial(_gram, tokens.features.float())}
    realised: dict[str, int] = {}
    failed: dict[str, Failure] = {}
    clock = Clock(device)
    clock.stage_now = f"pruning {frames} frames"

    def fail(name: str, failure: Failure) -> None:
        if name == GRAM:  # not a method, and without it there is no ratio
            raise RuntimeError(f"the {GRAM} of {frames} frames cannot be timed: {failure.why}; choose fewer `frames`")
        failed[name] = failure
        tell(f"{name} of {frames} frames", failure, "methods")

    for name, method in methods.items():
        pruned = attempt(clock, method.prune, tokens)
        if isinstance(pruned, Failure):
            fail(name, pruned)
            continue
        realised[name] = len(pruned)
        if not pruned.is_all_of(tokens):  # else there is no work to time: it prunes inside the language model, or R = 1
            work[name] = partial(method.prune, tokens)
    ms = time_rounds(work, device, settings.repeats, settings.warmup, settings.seconds, f"{frames} frames", fail=fail)
    for name in methods:
        times = np.empty(0) if name in failed else ms.get(name, np.empty(0))
        yield PruneTimes(name, frames, tokens.total, realised.get(name), times, ms[GRAM], failed.get(name))


def time_rounds(
    work: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    warmup: int,
    seconds: float = math.inf,
    title: str = "",
    *,
    fail: Callable[[str, Failure], None],
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every piece of `work`, `[repeats]` each; each runs once per round, so drift affects all equally.

    A piece that has taken `seconds` skips further rounds (NaN), including warm-up, but not the first three. A piece
    that raises an error skips the rest, and `fail` is called with its name.
    """
    clock = Clock(device)
    clock.stage_now = f"pruning {title}"
    left = dict(work)
    spent = dict.fromkeys(work, 0.0)
    ms = {name: np.full(repeats, np.nan) for name in work}
    for number in tqdm(range(-warmup, repeats), desc=title, unit="round", leave=False):
        for name, run in list(left.items()):
            if spent[name] >= 1000 * seconds and not 0 <= number < LEAST_ROUNDS:
                continue
            took = attempt(clock, _timed, run, device)
            if isinstance(took, Failure):
                del left[name]
                fail(name, took)
                continue
            spent[name] += took
            if number >= 0:
                ms[name][number] = took
    return ms


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds until all work queued by `run` is done."""
    elapsed = Elapsed(device)
    run()
    elapsed.stop()
    return elapsed.ms


def _gram(x: Tensor) -> Tensor:
    return x @ x.mT
