"""What is particular to forestprune; tests/methods/test_contract.py holds what every method must do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmg_bench.methods.forestprune import ForestPrune, grow_forest, places_apart, root_depths, walk_scores
from mmg_bench.tokens import VideoTokens


def _video(seed: int = 0, frames: int = 6, grid: tuple[int, int] = (4, 6), drift: float = 0.3) -> VideoTokens:
    """A scene whose tokens drift from frame to frame, each by a share of its own."""
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    x, pace = torch.randn(tokens, 16, generator=g), drift * torch.rand(tokens, 1, generator=g)
    steps = pace * torch.randn(frames, tokens, 16, generator=g)
    return VideoTokens(x + steps.cumsum(0), grid)


def _directions(*angles: list[float]) -> Tensor:
    """Unit vectors at these angles, in degrees: `[T, n, 2]`."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)


def test_importance_by_matrix_powers():
    """As the formula has it, token by token, with the 5th power of the graph."""
    x = _video().features[2].double()
    cosine = torch.cosine_similarity(x[:, None], x[None], dim=-1)
    weights = torch.where(cosine >= 0.5, (cosine / 0.03).exp(), 0)
    graph = weights / weights.sum(1, keepdim=True)
    expected = (x.norm(dim=1) @ torch.linalg.matrix_power(graph, 5)) / (graph > 0).sum(1)
    torch.testing.assert_close(walk_scores(x[None].float())[0].double(), expected, rtol=1e-4, atol=0)
    assert expected.max() > 2 * expected.min()


def test_importance_of_nothing():
    assert torch.equal(walk_scores(torch.zeros(2, 3, 4)), torch.zeros(2, 3))


def test_places_are_apart_by_the_longer_side():
    apart = places_apart((3, 5), torch.device("cpu"))
    assert apart[0].tolist() == [0, 0.25, 0.5, 0.75, 1, 0.5, 0.5, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert torch.equal(apart, apart.T)
    assert places_apart((1, 3), torch.device("cpu"))[0].tolist() == [0, 0.5, 1]
    assert places_apart((1, 1), torch.device("cpu")).tolist() == [[0]]


def test_trees_by_hand():
    direction = _directions([0, 90], [3, 40], [6, 93], [4, 45])
    places = torch.tensor([[0, 1]] * 4)
    near, far = torch.zeros(2, 2), 1 - torch.eye(2)
    tree, level = grow_forest(direction, places, near, 0.99, 0.5)
    assert tree.tolist() == [0, 1, 0, 3, 0, 1, 0, 3]  # 40 degrees are a tree of their own, which 45 joins
    assert level.tolist() == [0, 0, 1, 0, 2, 1, 3, 1]
    tree, _ = grow_forest(direction.flip(1), places, near, 0.99, 0.5)
    assert tree.tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    crossed = torch.stack([direction[0], direction[1].flip(0)])
    assert grow_forest(crossed, places[:2], far, 0.99, 0.5)[0].tolist() == [0, 1, 2, 3]  # alike, but too far away
    assert grow_forest(crossed, places[:2], far, 0.99, 1.0)[0].tolist() == [0, 1, 2, 0]


def test_tokens_that_join_a_tree_together_lie_equally_deep():
    tree, level = grow_forest(
        _directions([0, 90], [1, 2], [1, 90]), torch.zeros(3, 2).long(), torch.zeros(1, 1), 0.99, 0
    )
    assert tree.tolist() == [0, 1, 0, 0, 0, 1]
    assert level.tolist() == [0, 0, 1, 1, 2, 1]


def test_of_equal_tokens_the_nearest_is_joined_then_the_earliest_tree():
    direction = _directions([0, 0, 0], [0, 0, 0])
    line = (torch.arange(3)[:, None] - torch.arange(3)).abs().float()
    assert grow_forest(direction, torch.tensor([[0, 1, 2]] * 2), line, 0.9, 5)[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert grow_forest(direction, torch.tensor([[0, 1, 2]] * 2), 0 * line, 0.9, 5)[0].tolist() == [0, 1, 2, 0, 0, 0]


def _root_depths_step_by_step(direction: np.ndarray, count: int) -> list[int]:
    """The greedy choice, all pairs looked at anew each time."""
    left, parent = list(range(len(direction))), {}
    similar = direction @ direction.T
    while len(left) > count:
        _, first, second = max((similar[i, j], -i, -j) for i in left for j in left if i < j)
        parent[-second] = -first
        left.remove(-second)
    depth: list[int] = []
    for root in range(len(direction)):
        depth.append(depth[parent[root]] + 1 if root in parent else 0)
    return depth


@pytest.mark.parametrize("count", [1, 2, 7, 13, 14])
@pytest.mark.parametrize("distinct", [3, 14])
def test_roots_that_are_too_many(count: int, distinct: int):
    direction = torch.nn.functional.normalize(torch.randn(14, 5, generator=torch.Generator().manual_seed(4)), dim=1)
    chosen = direction[torch.arange(14) % distinct].numpy()  # with ties, where they repeat
    depth = root_depths(chosen, count)
    assert depth.tolist() == _root_depths_step_by_step(chosen, count)
    assert (depth == 0).sum() == count


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.5])
def test_shallow_tokens_of_early_frames_stay(ratio: float):
    video = _video(frames=15)  # of which all count less than a level
    method = ForestPrune(ratio)
    positions, depth = method.forest(video)
    kept = torch.isin(positions, method.prune(video).positions)
    assert kept.sum() == method.budget(video) >= (depth == 0).sum()
    order = list(zip(depth.tolist(), (positions // 24).tolist(), positions.tolist(), strict=True))
    last = max(place for place, stays in zip(order, kept.tolist(), strict=True) if stays)
    assert all((place <= last) == stays for place, stays in zip(order, kept.tolist(), strict=True))


def test_a_still_video_is_its_first_frame():
    video = VideoTokens(_video(frames=1).features.repeat(5, 1, 1), (4, 6))
    assert ForestPrune(0.1).prune(video).positions.tolist() == ForestPrune(0.5).prune(_frame(video)).positions.tolist()
    assert (ForestPrune(0.5).prune(video).positions.bincount() == 1).sum() == 60


def _frame(video: VideoTokens) -> VideoTokens:
    return VideoTokens(video.features[:1], video.grid)


def test_the_first_stage_leaves_what_the_budget_needs():
    video = _video()
    assert len(ForestPrune(0.9).prune(video)) == round(0.9 * 144)
    assert len(ForestPrune(0.25, gprune_ratio=0.01).forest(video)[0]) == 36
    assert len(ForestPrune(0.25).forest(video)[0]) == 72


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tau": 1.1}, r"ForestPrune\.tau=1\.1: it must be a number in \[-1, 1\]"),
        ({"tau_spatial": -0.1}, r"ForestPrune\.tau_spatial=-0\.1: it must be a number in \[0, 1\]"),
        ({"gprune_ratio": 0}, r"ForestPrune\.gprune_ratio=0: it must be a number in \(0, 1\]"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, float], says: str):
    with pytest.raises(ValueError, match=says):
        ForestPrune(**options)
