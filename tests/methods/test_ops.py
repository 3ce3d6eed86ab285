import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmg_bench.methods import _ops


def test_distances_survive_a_large_offset():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16) + 300
    exact = torch.cdist(x.double(), x.double()).square()
    assert (_ops.squared_distances(x) - exact).abs().max() <= 1e-5 * exact.max()
    assert _ops.squared_distances(x.bfloat16()).dtype == torch.float32


def test_equal_points_are_at_distance_zero():
    torch.manual_seed(0)
    x = torch.randn(3, 10, 64)[:, torch.randint(10, (40,))] * 7 + 50
    squared = _ops.squared_distances(x)
    same = (x[:, :, None] == x[:, None]).all(-1)
    assert (squared[same] == 0).all()
    assert (squared[~same] > 1).all()
    assert torch.equal(squared, squared.mT)


@pytest.mark.parametrize("shape", [(2, 196, 512), (1, 1100, 64)], ids=str)
def test_equal_points_have_equal_inner_products_across_blocks(shape: tuple[int, int, int]):
    batch, tokens, width = shape
    torch.manual_seed(0)
    twice = torch.randperm(tokens) % (tokens // 2)  # which of the distinct points each is
    x = torch.randn(batch, tokens // 2, width)[:, twice]
    gram = _ops.gram_matrix(x)
    torch.testing.assert_close(gram.double(), x.double() @ x.double().mT, rtol=0, atol=1e-4 * width)
    total = gram + gram.mT
    first, second = twice.argsort(stable=True).view(-1, 2).T
    assert torch.equal(total[:, first], total[:, second])


def test_points_apart_by_rounding_only_count_as_equal():
    torch.manual_seed(0)
    point = torch.randn(1, 64)
    x = torch.cat([point * (1 + 1e-7 * torch.randn(5, 64)), -point])
    squared = _ops.squared_distances(x)
    assert (squared[:5, :5] == 0).all()
    assert (squared[:5, 5] > 100).all()


def test_density_takes_one_k_for_each_entry():
    torch.manual_seed(0)
    squared = _ops.squared_distances(torch.randn(4, 9, 5))
    k = torch.tensor([1, 3, 9, 7])
    each = torch.stack([_ops.log_density(s, int(n)) for s, n in zip(squared, k, strict=True)])
    assert torch.allclose(_ops.log_density(squared, k), each, atol=1e-6)
    assert (each[0] == 0).all()


def test_peak_distance_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    density = torch.tensor([0.5, 0.9, 0.5])
    # The densest takes the largest distance of all; equal densities do not see each other.
    assert _ops.peak_distance(_ops.squared_distances(x), density).tolist() == pytest.approx([1, 3, 2])


def test_dpc_finds_one_center_in_each_cluster():
    torch.manual_seed(0)
    clusters = torch.randn(4, 1, 8) * 10 + torch.randn(4, 12, 8) * 0.1
    scores = _ops.dpc_scores(clusters.flatten(0, 1), 5)
    assert sorted((_ops.descending(scores)[:4] // 12).tolist()) == [0, 1, 2, 3]


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 2, 2, 1, 2], [0, 0, 0, 0, 0]])
    assert _ops.descending(scores).tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]
    assert _ops.top_mask(scores, torch.tensor([2, 0])).long().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_cosine_of_a_zero_vector_is_zero():
    assert _ops.cosine(torch.zeros(3), torch.ones(3)).item() == 0


@given(st.integers(1, 40), st.data())
def test_evenly_spaced_is_distinct_and_in_range(length, data):
    count = data.draw(st.integers(1, length))
    index = _ops.evenly_spaced(count, length).tolist()
    assert len(set(index)) == count
    assert index == sorted(index)
    assert 0 <= index[0] <= length // 2 <= index[-1] + 1 <= length
    gaps = [b - a for a, b in pairwise(index)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(
    st.lists(st.tuples(st.floats(-2, 3), st.integers(1, 50)), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1)
)
def test_budgets_are_conserved(parts, share, low_share):
    ratios, sizes = [r for r, _ in parts], [n for _, n in parts]
    total = round(share * sum(sizes))
    low = low_share * total / sum(sizes)
    shares = _ops.conserve(ratios, sizes, total, low)
    assert math.isclose(sum(shares), total, rel_tol=1e-9, abs_tol=1e-6)
    assert all(low * n - 1e-9 <= s <= n + 1e-9 for s, n in zip(shares, sizes, strict=True))
    counts = _ops.largest_remainder(shares, total, sizes)
    assert sum(counts) == total
    assert all(abs(c - s) < 1 and 0 <= c <= n for c, s, n in zip(counts, shares, sizes, strict=True))


def test_conserve_keeps_proportions_where_no_bound_is_met():
    assert _ops.conserve([0.1, 0.2, 0.3], [100, 100, 100], 30) == pytest.approx([5, 10, 15])
    assert _ops.conserve([0.1, 1.0], [100, 100], 150) == pytest.approx([50, 100])
    assert _ops.conserve([-1.0, 0.5], [100, 100], 22, 0.05) == pytest.approx([5, 17])


def test_largest_remainder_by_hand():
    assert _ops.largest_remainder([1.5, 2.5, 3.0], 7, [5, 5, 5]) == [2, 2, 3]
    assert _ops.largest_remainder([1.2, 2.7, 3.1], 7, [5, 5, 5]) == [1, 3, 3]
    assert _ops.largest_remainder([2.9999999999, 1.0], 4, [3, 3]) == [3, 1]
    with pytest.raises(ValueError, match="cannot be rounded"):
        _ops.largest_remainder([1.0, 1.0], 5, [1, 1])


def test_first_of_rows_by_hand():
    device = torch.device("cpu")
    assert _ops.first_of_rows([2, 0, 3], device).tolist() == [0, 1, 6, 7, 8]
    assert _ops.first_of_rows([0, 0], device).tolist() == []
