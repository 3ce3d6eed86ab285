from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmg_bench.contract import stages
from mmg_bench.methods.fewer_frames import FewerFrames
from mmg_bench.methods.pooled import Pooled, cells
from mmg_bench.methods.random import Random
from mmg_bench.methods.uniform import Uniform
from mmg_bench.tokens import VideoTokens


def video(frames: int, grid: tuple[int, int], width: int = 3, seed: int = 0) -> VideoTokens:
    g = torch.Generator().manual_seed(seed)
    return VideoTokens(torch.randn(frames, grid[0] * grid[1], width, generator=g), grid)


# ---- random -----------------------------------------------------------------------------------------------------


def test_random_depends_on_its_seed_only():
    tokens = video(4, (5, 5))
    torch.manual_seed(1)
    first = Random(0.3, seed=7).prune(tokens).positions
    state = torch.random.get_rng_state()
    again = Random(0.3, seed=7).prune(video(4, (5, 5), seed=99)).positions
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, Random(0.3, seed=8).prune(tokens).positions)


def test_random_selections_are_nested():
    tokens = video(4, (5, 5))
    small, large = (set(Random(r).prune(tokens).positions.tolist()) for r in (0.1, 0.5))
    assert small < large


def test_random_reaches_every_token_about_equally():
    tokens = video(2, (2, 5), 1)
    counts = sum(torch.bincount(Random(0.5, seed=s).prune(tokens).positions, minlength=20) for s in range(400))
    assert int(counts.min()) > 160
    assert int(counts.max()) < 240


def test_random_seed_is_checked():
    for seed in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"Random.seed=.*an integer in \[0, "):
            Random(0.5, seed=seed)


def test_random_inside_the_model_draws_the_same():
    tokens = video(4, (5, 5), 8)
    tokens = replace(tokens, query=torch.ones(1, 8))
    for ratio in (0.01, 0.3, 1.0):
        method = Random(ratio, seed=3, layer=2)
        ((before, chosen),) = stages(method, tokens)
        assert before.features.data_ptr() == tokens.features.data_ptr()  # what enters is no copy
        assert len(before.features) == 100
        assert torch.equal(chosen.index, Random(ratio, seed=3).prune(tokens).positions)
    assert not Random(layer=2).exact
    assert Random(layer=2).layers(4) == (2,)
    assert Random().exact
    assert Random().layers(4) == ()
    with pytest.raises(ValueError, match=r"Random\.layer=4: it must be an integer in \[1, 3\]"):
        Random(layer=4).layers(4)
    with pytest.raises(ValueError, match=r"Random\.layer=0"):
        Random(layer=0)


# ---- uniform ----------------------------------------------------------------------------------------------------


def test_uniform_takes_the_middle_of_equal_shares():
    assert Uniform(0.25).prune(video(2, (2, 4))).positions.tolist() == [2, 6, 10, 14]
    assert Uniform(3 / 16).prune(video(2, (2, 4))).positions.tolist() == [2, 8, 13]
    assert Uniform(1e-6).prune(video(2, (2, 4))).positions.tolist() == [8]


# ---- pooled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1), (4, 4), (3, 7), (7, 3), (14, 14), (12, 13)])
def test_cells_partition_the_grid_for_every_count(grid):
    height, width = grid
    for count in range(1, height * width + 1):
        cell, center = cells(grid, count)
        sizes = torch.bincount(cell, minlength=count)
        assert len(sizes) == count
        assert sizes.min() >= 1
        for c in range(count):
            rows, columns = (cell.view(grid) == c).nonzero().T
            top, bottom, left, right = (int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max()))
            assert (bottom - top + 1) * (right - left + 1) == sizes[c]  # a full rectangle
            assert int(center[c]) == (top + bottom) // 2 * width + (left + right) // 2
        assert (center.diff() > 0).all()


def test_cells_are_near_square():
    cell, center = cells((14, 14), 49)
    assert torch.equal(cell.view(14, 14), torch.arange(49).view(7, 7).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert center[:3].tolist() == [0, 2, 4]
    assert len(set(cells((14, 14), 4)[0].view(14, 14)[:, 0].tolist())) == 2


def test_pooled_averages_its_cells():
    tokens = video(3, (4, 4), 5)
    pruned = Pooled(0.25).prune(tokens)
    grid = tokens.features.view(3, 2, 2, 2, 2, 5)
    assert torch.allclose(pruned.features, grid.mean((2, 4)).view(12, 5), atol=1e-6)
    assert pruned.positions.tolist() == [16 * t + p for t in range(3) for p in (0, 2, 8, 10)]


def test_pooled_budgets_that_do_not_divide():
    tokens = video(4, (3, 5), 2)
    pruned = Pooled(0.5).prune(tokens)  # 30 tokens: 8, 8, 7, 7
    assert torch.bincount(pruned.positions // 15).tolist() == [8, 8, 7, 7]
    # Every frame's mean survives, weighted by the cells' sizes.
    for t, count in enumerate([8, 8, 7, 7]):
        sizes = torch.bincount(cells((3, 5), count)[0]).float()
        mine = pruned.features[pruned.positions // 15 == t]
        assert torch.allclose((sizes[:, None] * mine).sum(0) / 15, tokens.features[t].mean(0), atol=1e-6)


def test_pooled_with_every_token_is_dense():
    tokens = video(3, (3, 5))
    pruned = Pooled(1.0).prune(tokens)
    assert torch.equal(pruned.features, tokens.flat)
    assert pruned.positions.tolist() == list(range(45))


# ---- fewer_frames -----------------------------------------------------------------------------------------------


def test_fewer_frames_takes_whole_frames():
    pruned = FewerFrames(0.5).prune(video(8, (1, 3)))
    assert pruned.notes["frames"] == [1, 3, 5, 7]
    assert pruned.positions.tolist() == [3 * t + n for t in (1, 3, 5, 7) for n in range(3)]


def test_fewer_frames_spends_the_rest_on_one_more():
    pruned = FewerFrames(20 / 72).prune(video(8, (3, 3)))
    assert torch.bincount(pruned.positions // 9, minlength=8).tolist() == [0, 9, 0, 0, 9, 0, 2, 0]
    assert pruned.positions[-2:].tolist() == [6 * 9 + 2, 6 * 9 + 6]


@pytest.mark.parametrize("method", [Random, Uniform, Pooled, FewerFrames])
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.floats(1e-6, 1))
def test_controls_are_exact_on_every_size(method, frames, height, width, ratio):
    tokens = video(frames, (height, width))
    positions = method(ratio).prune(tokens).positions.tolist()
    assert len(set(positions)) == len(positions) == max(1, round(ratio * tokens.total))
    assert positions == sorted(positions)
