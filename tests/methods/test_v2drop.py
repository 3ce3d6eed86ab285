"""What is particular to v2drop; tests/methods/test_contract.py holds what every method must do."""

import pytest
import torch

from mmg_bench.contract import DEPTH, RandomAttention, stages, video
from mmg_bench.methods.v2drop import V2Drop, shares_for
from mmg_bench.tokens import LayerTokens


def _stage(number: int, moved: list[float], method: V2Drop, depth: int = 32) -> list[int]:
    """What is left at a stage of tokens that the layer before moved so far."""
    previous = torch.rand(len(moved), 2, generator=torch.Generator().manual_seed(0))
    hidden = previous + torch.tensor(moved).unsqueeze(1) * torch.tensor([0.6, -0.8])
    attention = RandomAttention(len(moved), 1)
    positions = torch.arange(len(moved))
    tokens = LayerTokens(hidden, previous, positions, hidden[:1], len(moved), number, depth, attention)
    return method.prune_inside(tokens).index.tolist()


def test_tokens_that_moved_furthest_stay():
    moved = [0.5, 4.0, 1.0, 0.0, 3.0, 2.0]
    assert _stage(0, moved, V2Drop(first=0.5, second=0.5)) == [1, 4, 5]
    assert _stage(1, moved, V2Drop(first=0.5, second=0.34)) == [1, 4]
    assert _stage(2, moved, V2Drop(first=0.5, second=0.5)) == [1]
    assert _stage(0, [0.0] * 5, V2Drop(first=0.6, second=1.0)) == [0, 1, 2]  # which did not move at all


@pytest.mark.parametrize(("n", "share", "left"), [(576, 0.5, 288), (41, 0.25, 10), (100, 0.29, 28), (10, 0.05, 1)])
def test_counts_are_cut_off_as_officially(n: int, share: float, left: int):
    moved = [float(i) for i in range(n)]
    assert _stage(0, moved, V2Drop(first=share, second=1.0)) == list(range(n - left, n))
    assert _stage(1, moved, V2Drop(first=1.0, second=share)) == list(range(n - left, n))


def test_shares_have_the_mean_that_was_asked_for():
    assert shares_for((7 + 1.25) / 29, (14, 5, 10)) == pytest.approx((0.5, 0.5, 0))
    for ratio in (0.01, 0.1, 0.25, 0.5, 19 / 29, 0.7, 0.99, 1.0):
        one, two, three = shares_for(ratio, (14, 5, 10))
        assert 0 <= three <= 1
        assert 0 < two <= one <= 1
        assert (14 * one + 5 * one * two + 10 * one * two * three) / 29 == pytest.approx(ratio)
    assert shares_for(1.0, (1, 1, 1)) == (1, 1, 1)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.6, 0.8, 1.0])
def test_the_ratio_is_the_mean_from_the_first_stage_on(ratio: float):
    method = V2Drop(ratio)
    left = [len(chosen.index) for _, chosen in stages(method, video(8, (5, 5), 16))]
    layers = [*method.layers(DEPTH), DEPTH]
    seen = sum(n * (behind - at) for n, at, behind in zip(left, layers, layers[1:], strict=False))
    assert seen / (DEPTH - layers[0]) / 200 == pytest.approx(ratio, abs=0.01)


def test_layers_are_the_official_ones():
    assert [V2Drop().layers(depth) for depth in (32, 28, 40, 4)] == [(3, 17, 22), (3, 16, 22), (4, 21, 28), (1, 2, 3)]
    with pytest.raises(ValueError, match="a language model of 3 layers has no room for 3 pruning stages"):
        V2Drop().layers(3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"first": 0.5}, r"V2Drop\.first=0\.5, second=None: give both shares, or neither"),
        ({"first": 0, "second": 0.5}, r"V2Drop\.first=0: it must be a number in \(0, 1\]"),
        ({"first": 1, "second": 1.5}, r"V2Drop\.second=1\.5: it must be a number in \(0, 1\]"),
    ],
)
def test_shares_are_checked(options: dict[str, float], says: str):
    with pytest.raises(ValueError, match=says):
        V2Drop(**options)
