"""What is particular to tango; tests/methods/test_contract.py holds what every method must do."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmg_bench.contract import video
from mmg_bench.methods.tango import SINKS, Tango, diverse_salient, merged, peaks, reduce_segments, rotated
from mmg_bench.tokens import VideoTokens


def points(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distances(x: Tensor) -> Tensor:
    return (x.unsqueeze(0) - x.unsqueeze(1)).norm(dim=-1)


def scores(x: Tensor, k: int) -> list[float]:
    """rho * delta of points `[n, D]`, one at a time, as in the official code without its noise."""
    apart, n = distances(x), len(x)
    rho = [math.exp(-float(sum(sorted(row)[1 : k + 1][i] ** 2 for i in range(k))) / k) for row in apart.tolist()]
    found = []
    for i in range(n):
        denser = [float(apart[i, j]) for j in range(n) if (rho[j], -j) > (rho[i], -i)]
        found.append(rho[i] * min(denser, default=float(apart.max())))
    return found


def centres_of(x: Tensor, count: int, k: int) -> list[int]:
    score = scores(x, min(k, len(x) - 1))
    return sorted(range(len(x)), key=lambda i: -score[i])[:count]


def nearest(x: Tensor, centres: list[int]) -> list[int]:
    """The place of each point's nearest centre."""
    return [int(row[centres].argmin()) for row in distances(x)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 8))
def test_peaks_are_those_of_the_formulas(seed: int, n: int, k: int) -> None:
    x = points(seed, n, 6).double()
    k = min(k, n - 1)
    padded = torch.zeros(2, n + 3, n + 3)
    padded[0, :n, :n], padded[1] = distances(x).square(), 1
    valid = torch.arange(n + 3) < torch.tensor([[n], [1]])
    found = peaks(padded, valid, torch.tensor([k, 0]), k)
    torch.testing.assert_close(found[0, :n].exp(), torch.tensor(scores(x, k)), rtol=2e-4, atol=1e-6)
    assert (found[0, n:] == -torch.inf).all()
    assert found[1].isfinite().tolist() == [True] + [False] * (n + 2)


def test_of_equal_points_the_first_is_denser() -> None:
    x = torch.tensor([[0.0, 0], [0, 0], [0, 0], [3, 0]])
    score = peaks(distances(x).square()[None], torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]), 2)[0]
    assert score.argmax() == 0
    assert score[1] == score[2] < score[3] < score[0]


def test_rotary_encodings_keep_lengths_and_tell_distances_only() -> None:
    """Products of two encoded tokens depend on how far apart they are in time, rows and columns, on nothing else."""
    x = points(0, 1, 1, 40).expand(5, 12, -1)
    times = torch.tensor([0.0, 1.5, 2.0, 3.5, 9.0])
    found = rotated(x, (3, 4), times, 10_000, 1_000)
    torch.testing.assert_close(found.norm(dim=2), x.norm(dim=2))
    flat = found.unflatten(1, (3, 4))

    def product(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        return float(flat[a] @ flat[b])

    assert product((0, 0, 0), (1, 1, 2)) == pytest.approx(product((2, 1, 1), (3, 2, 3)), rel=1e-5)
    for other in ((2, 1, 2), (1, 2, 2), (1, 1, 3)):
        assert product((0, 0, 0), other) != pytest.approx(product((0, 0, 0), (1, 1, 2)), rel=1e-3)
    assert torch.equal(flat[0, 0, 0], x[0, 0])


def test_rotary_encodings_turn_the_halves_of_each_part() -> None:
    """Of 14 channels 6, 4 and 4; the first frequency is 1, the others 1 / base^(i / half)."""
    x = torch.zeros(1, 4, 14)
    x[..., [0, 6, 10]] = 1
    found = rotated(x, (2, 2), torch.tensor([0.7]), 10_000, 1_000)[0, 3]
    expected = torch.zeros(14)
    expected[[0, 3]] = torch.tensor([math.cos(0.7), math.sin(0.7)])
    expected[[6, 8, 10, 12]] = torch.tensor([math.cos(1), math.sin(1)] * 2)
    torch.testing.assert_close(found, expected)
    x = torch.zeros(1, 4, 14)
    x[..., [1, 7, 11, 13]] = 1
    found = rotated(x, (2, 2), torch.tensor([50.0]), 10_000, 1_000)[0, 1]  # second column
    turn = 50 / 10_000 ** (1 / 3)
    torch.testing.assert_close(found[[1, 4]], torch.tensor([math.cos(turn), math.sin(turn)]))
    turn = 1 / 1_000**0.5
    torch.testing.assert_close(found[[7, 9]], torch.tensor([1.0, 0]))
    both = torch.tensor([math.cos(turn) - math.sin(turn), math.sin(turn) + math.cos(turn)])
    torch.testing.assert_close(found[[11, 13]], both)


def test_parts_of_the_channels_are_the_official_ones() -> None:
    """Of 3584 channels 1196 turn with time, 1194 with the row and 1194 with the column; all parts are even."""
    for channels, sizes in ((3584, (1196, 1194, 1194)), (16, (8, 4, 4))):
        for axis, start in enumerate((0, sizes[0], sizes[0] + sizes[1])):
            x = torch.zeros(2, 4, channels)
            x[..., start] = 1
            turned = rotated(x, (2, 2), torch.tensor([0.0, 1.0]), 10_000, 1_000).unflatten(1, (2, 2))
            there = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
            for place in there:
                expected = torch.zeros(channels)
                angle = 1.0 if place == there[axis] else 0.0
                expected[start], expected[start + sizes[axis] // 2] = math.cos(angle), math.sin(angle)
                torch.testing.assert_close(turned[place], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(0, 6), st.sampled_from([1.0, 1.5, 3.0]))
def test_salient_tokens_are_the_best_of_each_cluster(seed: int, size: int, count: int, alpha: float) -> None:
    """In two groups at once, the second one of four tokens."""
    x, salience = points(seed, 2, 16, 8), points(seed + 1, 2, 16)
    member = torch.zeros(2, 16, dtype=torch.bool)
    member[0, torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:size]] = True
    member[1, :4] = True
    counts = [min(count, size), 2]
    chosen = diverse_salient(x, salience, member, [size, 4], counts, alpha, 3)
    for g, n in enumerate((size, 4)):
        ranked = sorted(member[g].nonzero().flatten().tolist(), key=lambda i: -float(salience[g, i]))
        pool = ranked[: min(int(alpha * counts[g]), n)]
        expected = set(pool[: counts[g]])
        if len(pool) > counts[g]:
            label = nearest(x[g, pool], centres_of(x[g, pool], counts[g], 3))
            expected = {pool[label.index(c)] for c in range(counts[g])}
        assert set(chosen[g].nonzero().flatten().tolist()) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 16), st.integers(1, 6), st.booleans(), st.sampled_from([0.6, 0.1]))
def test_merged_tokens_are_those_of_the_formula(seed: int, size: int, count: int, in_place: bool, beta: float) -> None:
    vectors, tokens, count = points(seed, size, 8), points(seed + 1, size, 5), min(count, size)
    found, where = merged(vectors, tokens, count, beta, 4, in_place)
    if count == size:
        assert torch.equal(found, tokens)
        assert where.tolist() == list(range(size))
        return
    centres = centres_of(vectors, count, 4)
    label = torch.tensor(nearest(vectors, centres))
    expected = []
    for c, centre in enumerate(centres):
        cluster = tokens[label == c]
        weight = max(beta, 1 / len(cluster))
        expected.append(weight * tokens[centre] + (1 - weight) * cluster.mean(0))
    assert where.tolist() == centres
    order = range(count) if in_place else sorted(range(count), key=lambda c: centres[c])
    torch.testing.assert_close(found, torch.stack([expected[c] for c in order]))


def test_still_positions_become_one_and_the_frames_share_the_rest() -> None:
    """Two scenes; in each, 8 of 12 positions stand still. A window keeps R of its tokens, all groups the same share."""
    scene = points(0, 2, 1, 12, 48).repeat_interleave(4, dim=1).flatten(0, 1)  # [8, 12, 48]
    moving = points(1, 8, 4, 48)
    features = torch.cat([scene[:, :8], moving], dim=1)
    tokens = VideoTokens(features, (3, 4), probe_attention=points(2, 8, 12).softmax(1), times=torch.arange(8.0))
    method = Tango(0.25)
    pruned = method.prune(tokens)
    assert pruned.notes["windows"] == [(0, 3), (4, 7)]
    # 8 + 4 x 4 = 24 tokens are left of a window's 48, and a quarter of 48 is half of them
    frame, position = pruned.positions // 12, pruned.positions % 12
    still = position < 8
    assert [int((still & (frame == t)).sum()) for t in range(8)] == [4, 0, 0, 0, 4, 0, 0, 0]
    assert int((~still).sum()) == 4 * 2 * 2
    assert len(pruned) == method.budget(tokens) == 24
    assert len(Tango(0.9).prune(tokens)) == 48  # no more are left


def test_every_window_keeps_the_ratio_of_its_own_tokens() -> None:
    """A scene that stands still but for one token of 12, and one in which all but two move."""
    still = points(0, 2, 1, 12, 48).expand(-1, 4, -1, -1)
    scenes = points(1, 2, 4, 12, 48)
    for scene, count in enumerate((11, 2)):
        scenes[scene, :, :count] = still[scene, :, :count]
    tokens = VideoTokens(
        scenes.flatten(0, 1), (3, 4), probe_attention=points(2, 8, 12).softmax(1), times=torch.arange(8.0)
    )
    pruned = Tango(0.25).prune(tokens)
    assert pruned.notes["windows"] == [(0, 3), (4, 7)]
    assert [int((pruned.positions // 48 == scene).sum()) for scene in range(2)] == [12, 12]


def test_times_of_frames_count_unless_an_interval_is_set() -> None:
    tokens = video(6, (5, 5), 48)
    tokens = replace(tokens, times=torch.tensor([0.0, 0.1, 0.2, 30, 30.1, 60]))
    method = Tango(0.2, tau=-1, still_tau=1)  # one segment, in which nothing stands still
    assert method.needs == Tango.needs == {"probe_attention", "times"}
    even = replace(method, interval=4.0)
    assert even.needs == {"probe_attention"}
    untimed = even.prune(replace(tokens, times=None))
    assert torch.equal(untimed.features, method.prune(replace(tokens, times=4.0 * torch.arange(6))).features)
    assert not torch.equal(untimed.positions, method.prune(tokens).positions)
    with pytest.raises(ValueError, match="tango needs times, missing from these VideoTokens"):
        method.prune(replace(tokens, times=None))


@pytest.mark.parametrize("grid", [*SINKS, (6, 6)])
def test_sinks_are_known_on_two_grids(grid: tuple[int, int]) -> None:
    """Attention that falls on them alone is no reason to keep them; on other grids it is."""
    tokens = video(2, grid, 24)
    sinks = [11, 12, 26, 27, 28]
    attention = torch.rand(2, grid[0] * grid[1], generator=torch.Generator().manual_seed(0)) / 100
    attention[:, sinks] = 1.0
    tokens = replace(tokens, probe_attention=attention, attention=attention)
    options = {"retention_ratio": 0.15, "context_ratio": 0.0, "alpha": 1.0}

    def kept(**more: object) -> set[int]:
        positions = Tango(**options, **more).prune(tokens).positions % (grid[0] * grid[1])
        return set(positions.tolist()) & set(sinks)

    assert kept() == set(sinks) - set(SINKS.get(grid, ()))
    assert kept(sinks=False) == kept(salience="received") == set(sinks)


@pytest.mark.parametrize(
    ("salience", "field"),
    [("probe", "probe_attention"), ("mean_query", "mean_query_attention"), ("received", "attention")],
)
def test_salience_is_read_where_it_says(salience: str, field: str) -> None:
    tokens = video(4, (4, 4), 24)
    names = ("probe_attention", "mean_query_attention", "attention")
    bare = replace(tokens, **{name: None for name in names if name != field})
    method = Tango(0.2, salience=salience)
    assert method.needs == {field, "times"}
    other = replace(bare, **{field: getattr(tokens, field).flip(1)})
    assert not torch.equal(method.prune(bare).positions, method.prune(other).positions)


def test_the_official_order_puts_merged_tokens_in_other_places() -> None:
    tokens = video(4, (5, 5), 24)
    official, own = (
        Tango(0.3, context_ratio=1.0).prune(tokens),
        Tango(0.3, context_ratio=1.0, in_place=True).prune(tokens),
    )
    assert torch.equal(official.positions, own.positions)
    assert not torch.equal(official.features, own.features)
    assert torch.equal(official.features.sum(1).sort().values, own.features.sum(1).sort().values)


def test_a_frame_alone_is_a_segment() -> None:
    x = points(3, 1, 9, 12)
    attention = points(4, 1, 9).softmax(1)
    tokens, positions = reduce_segments(
        x,
        x,
        attention,
        [(0, 0)],
        torch.zeros(1, 9, dtype=torch.bool),
        [0, 3],
        context_ratio=0.4,
        alpha=1.0,
        beta=0.6,
        k=7,
        in_place=False,
    )
    salient = attention[0].argmax()
    assert positions[0] == salient
    assert torch.equal(tokens[0], x[0, salient])
    assert len(positions.unique()) == 3
