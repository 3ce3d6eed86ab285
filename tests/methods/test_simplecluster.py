"""What is particular to simplecluster; tests/methods/test_contract.py holds what every method must do."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmg_bench.methods._merge import unit
from mmg_bench.methods.simplecluster import SimpleCluster, rotated, spherical_k_means
from mmg_bench.mock_gpu import GPU, MockGpu
from mmg_bench.tokens import VideoTokens


def clusters(x: torch.Tensor, count: int, rounds: int) -> list[int]:
    """The official steps on vectors of length 1 or 0, with explicit centres and one vector at a time."""
    start = next((i for i, v in enumerate(x) if v.any()), 0)
    picks = [start]
    while len(picks) < count:
        nearest = [max(float(v @ x[p]) for p in picks) for v in x]
        picks.append(min((i for i in range(len(x)) if i not in picks), key=lambda i: (nearest[i], i)))
    centres = x[picks]
    for _ in range(rounds):
        similarity = x @ centres.T
        group, nearest = similarity.argmax(1), similarity.max(1).values
        strays = iter(nearest.argsort(stable=True).tolist())
        rows = []
        for g in range(count):
            members = x[group == g]
            rows.append(F.normalize(members.mean(0), dim=0, eps=1e-6) if len(members) else x[next(strays)])
        centres = torch.stack(rows)
    return (x @ centres.T).argmax(1).tolist()


def canonical(group: list[int]) -> list[int]:
    """The same clusters, numbered by their first members."""
    names: dict[int, int] = {}
    return [names.setdefault(g, len(names)) for g in group]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_clusters_are_those_of_the_formulas(seed: int, count: int, groups: int, rounds: int, gaps: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, generator=generator, dtype=torch.float64)
    if gaps:  # vectors of length 0 leave clusters empty
        x[torch.rand(count, generator=generator) < 0.2] = 0
    x = F.normalize(x, dim=-1)
    expected = canonical(clusters(x, min(groups, count), rounds))
    found = spherical_k_means(x.float(), min(groups, count), rounds).tolist()
    if len(set(expected)) == min(groups, count):  # else the official code ends in an error
        assert canonical(found) == expected
    assert len(set(found)) == min(groups, count)


def test_early_end_is_what_further_rounds_would_give() -> None:
    """A CPU stops where nothing changes; the code for a GPU does every round."""
    x = unit(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)))
    with MockGpu() as gpu:
        moved, waits = x.to(GPU), len(gpu.waits)
        there = spherical_k_means(moved, 9, 40)
        assert len(gpu.waits) == waits
        there = there.cpu()
    assert torch.equal(spherical_k_means(x, 9, 40), there)
    assert not torch.equal(spherical_k_means(x, 9, 1), there)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_encodings_depend_on_the_distance_of_places_alone(grid: tuple[int, int]) -> None:
    token = torch.randn(20, generator=torch.Generator().manual_seed(1))
    x = rotated(VideoTokens(token.expand(5, grid[0] * grid[1], 20), grid)).unflatten(0, (5, *grid))  # [T, H, W, D]
    assert x.norm(dim=-1).flatten().tolist() == pytest.approx([token.norm().item()] * (5 * grid[0] * grid[1]), rel=1e-5)
    likeness = torch.einsum("thwd,shwd->tshw", x, x)[..., 0, 0]  # [T, T]
    for apart in range(5):
        values = likeness.diagonal(apart).tolist()
        assert values == pytest.approx([values[0]] * len(values), rel=1e-4)
    assert likeness[0, 1] < likeness[0, 0]


def test_each_axis_turns_its_own_third_of_the_channels() -> None:
    ones = torch.ones(2, 4, 8)  # thirds of 4, 2 and 2 channels
    x = rotated(VideoTokens(ones, (2, 2))).unflatten(0, (2, 2, 2))
    cos, sin = math.cos(1), math.sin(1)
    slow = math.cos(0.01), math.sin(0.01)  # the second of two pairs: 1 / sqrt(10000)
    turned = [cos - sin, sin + cos]
    assert x[1, 0, 0].tolist() == pytest.approx([*turned, slow[0] - slow[1], slow[1] + slow[0], 1, 1, 1, 1])
    assert x[0, 1, 0].tolist() == pytest.approx([1, 1, 1, 1, *turned, 1, 1])
    assert x[0, 0, 1].tolist() == pytest.approx([1, 1, 1, 1, 1, 1, *turned])


def test_a_cluster_is_the_mean_of_its_tokens_where_its_first_one_was() -> None:
    a, b = torch.eye(2)
    features = torch.stack([torch.stack([a, 3 * b]), torch.stack([b, 5 * a]), torch.stack([2 * b, 3 * a])])
    pruned = SimpleCluster(1 / 3, rope=False).prune(VideoTokens(features, (1, 2)))
    assert pruned.positions.tolist() == [0, 1]
    assert pruned.features.tolist() == [[3, 0], [0, 2]]


def test_place_keeps_apart_what_is_alike() -> None:
    token = torch.randn(48, generator=torch.Generator().manual_seed(2))
    still = VideoTokens(token.expand(6, 4, 48), (2, 2))
    pruned = SimpleCluster(0.25).prune(still)
    group = spherical_k_means(unit(rotated(still)), 6, 10).unflatten(0, (6, 4))
    assert len(pruned) == 6
    assert group[0].unique().numel() < group[:, 0].unique().numel()  # time turns most channels' fastest pairs first


@pytest.mark.parametrize("features", [torch.zeros(3, 4, 6), torch.ones(3, 4, 6)])
@pytest.mark.parametrize("rope", [True, False])
def test_tokens_that_are_all_alike_still_make_as_many_clusters(features: torch.Tensor, rope: bool) -> None:
    pruned = SimpleCluster(0.5, rope=rope).prune(VideoTokens(features, (2, 2)))
    assert len(pruned) == 6
    if not rope or not features.any():
        assert torch.equal(pruned.features, features.flatten(0, 1)[:6])


@pytest.mark.parametrize(("option", "value"), [("max_iters", 0), ("max_iters", 2.5), ("rope", 1)])
def test_wrong_options_are_named(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"SimpleCluster\.{option}={value}"):
        SimpleCluster(0.25, **{option: value})  # type: ignore[arg-type]
