"""Synthetic videos for timing: the structure of visual tokens, without a model.

Zeros or independent noise are unsuitable: methods that segment scenes, merge static content or search for thresholds
take different paths on them, and different times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmg_bench.tokens import VideoTokens

KEY_WIDTH = 72
JOINT_WIDTH = 1152
"""Widths of a head and of the tower in SigLIP-so400m."""
TEXT_TOKENS = 32


def synthetic_video(frames: int, grid: tuple[int, int], width: int, seed: int = 0) -> VideoTokens:
    """A video `[frames, H * W, width]` in float32 on the CPU, every optional field filled; the same for the same seed.

    Scenes last about eight frames. Each has a mean and a smooth background, over which tokens drift (AR(1); 40 % of
    them hardly) and an object moves. In every 16th frame a spot flashes up. Token norms and channel scales differ.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    height, width_cells = grid
    size = height * width_cells
    place = torch.cartesian_prod(torch.linspace(0, 1, height), torch.linspace(0, 1, width_cells)).view(size, 2)

    def blob(centre: Tensor, radius: float) -> Tensor:  # [N]
        return (-(place - centre).square().sum(1) / (2 * radius**2)).exp()

    offset, looks = normal(width), normal(2, width)
    amplitude = torch.where(uniform(size, 1) < 0.4, 0.05, 0.4 + 0.8 * uniform(size, 1))  # [N, 1]
    memory = 0.7 + 0.25 * uniform(size, 1)
    x = torch.empty(frames, size, width)
    for t in range(frames):
        if t == 0 or (t % 4 == 0 and float(uniform(1)) < 0.5):  # a new scene
            scene = 0.4 * normal(width) + sum(0.6 * blob(uniform(2), 0.35)[:, None] * normal(width) for _ in range(4))
            drift, common = amplitude * normal(size, width), torch.zeros(width)
            start, velocity, first = uniform(2), 0.05 * normal(2), t
        drift = memory * drift + (1 - memory.square()).sqrt() * amplitude * normal(size, width)
        common = 0.9 * common + 0.05 * normal(width)
        x[t] = offset + scene + common + drift + 0.02 * normal(size, width)
        x[t] += 2 * blob(start + (t - first) * velocity, 0.12)[:, None] * looks[0]
        if t % 16 == 9:
            x[t] += 2 * blob(uniform(2), 0.08)[:, None] * looks[1]
    x *= (0.9 + 0.2 * uniform(frames, size, 1)) * (0.3 + 1.4 * uniform(width))

    def seen(columns: int) -> Tensor:  # [T, N, columns], as a tower layer might see the tokens
        return x @ (normal(width, columns) / width**0.5)

    def attention() -> Tensor:  # [T, N]
        return (2 * seen(4)).softmax(1).mean(-1)

    joint = seen(JOINT_WIDTH)
    return VideoTokens(
        x,
        grid,
        attention=attention(),
        keys=seen(KEY_WIDTH),
        probe_attention=attention(),
        frame_features=joint.mean(1),
        query=normal(TEXT_TOKENS, width) + 0.2 * looks[0],
        joint_features=joint,
        joint_query=normal(1, JOINT_WIDTH) + joint[0, :1],
        mean_query_attention=attention(),
        times=torch.arange(frames, dtype=torch.float32),
    )
