"""What is particular to pact; tests/methods/test_contract.py holds what every method must do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmg_bench.contract import ContractError, check_selection, stages, video
from mmg_bench.methods.pact import (
    PACT,
    centres_for,
    centres_in_rounds,
    centres_within,
    cluster,
    cosine_distances,
    densest_first,
    importance,
    to_denser,
)
from mmg_bench.tokens import Heads, LayerTokens, Selection


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ranked(points: Tensor) -> Tensor:
    distance = cosine_distances(points)
    order = densest_first(distance)
    return distance[order][:, order]


def _directions(*degrees: float) -> Tensor:
    """Vectors in the plane, of several lengths."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, len(degrees) + 1).unsqueeze(1)


def test_importance_as_by_hand():
    heads, features = Heads(normal(6, 6, 8), normal(2, 6, 8), torch.tensor([2, 3, 5]), normal(2, 3, 8)), normal(3, 5)
    expected = []
    for place, token in zip((2, 3, 5), features, strict=True):
        attended = 0.0
        for head in range(6):
            mean = sum(heads.queries[head]) / 6
            scores = torch.stack([mean @ key for key in heads.keys[head // 3]]) / 8**0.5
            attended += float(scores.softmax(0)[place]) / 6
        expected.append(attended * float(token.square().sum().sqrt()))
    torch.testing.assert_close(importance(heads, features), torch.tensor(expected))
    half = features.bfloat16()
    assert torch.equal(importance(heads, half), importance(heads, half.float()))


def test_distances_are_not_negative_and_of_equally_dense_points_the_later_comes_first():
    distance = cosine_distances(normal(60, 4).repeat(2, 1))
    assert distance.min() == 0
    assert not distance.diagonal().any()
    assert densest_first(torch.zeros(3, 3)).tolist() == [2, 1, 0]


@pytest.mark.parametrize("cutoff", [0.0, 0.02, 0.3, 0.8, 2.0])
def test_centres_are_those_found_one_after_another(cutoff: float):
    points = torch.cat([normal(60, 4), normal(60, 4)[:5]])  # of which some are equal
    ranked = _ranked(points)
    for distance in (ranked, (ranked * 10).round() / 10):  # also where many lie as far as the cutoff
        expected: list[int] = []
        for i in range(len(distance)):
            if all(distance[i, j] > cutoff for j in expected):
                expected.append(i)
        in_turn, in_rounds = centres_within(distance)(cutoff), centres_in_rounds(distance, to_denser(distance), cutoff)
        assert in_turn.nonzero().flatten().tolist() == in_rounds.nonzero().flatten().tolist() == expected


def test_as_many_centres_as_asked_for_cover_all_points():
    distance = _ranked(torch.cat([normal(40, 3), normal(40, 3)[:8]]))
    cutoffs = []
    for count in range(1, 49):
        centre, cutoff = centres_for(distance, count)
        assert int(centre.sum()) == count
        assert bool((distance[:, centre].amin(1) <= cutoff).all())
        cutoffs.append(cutoff)
    assert cutoffs[0] > cutoffs[20] > cutoffs[38] > cutoffs[-1] == 0  # 40 points differ
    assert cutoffs[int(centres_within(distance)(0.0).sum()) - 1] == 0


def test_a_cutoff_that_makes_as_many_centres_is_found_by_halving():
    centre, cutoff = centres_for(_ranked(_directions(0, 90)), 1)
    assert (int(centre.sum()), cutoff) == (1, pytest.approx(1))  # the largest distance is met first
    near = torch.tensor([[0, 0.3, 0.3, 1, 2], [0, 0, 0.5, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0.1], [0, 0, 0, 0, 0]])
    centre, cutoff = centres_for(near + near.T, 3)  # from 0.3 on there are two, the first and the fourth, below four
    assert centre.tolist() == [True, True, False, True, False]  # the last is further from another than from its own
    assert cutoff == pytest.approx(0.3, abs=2e-6)


def test_dropped_tokens_near_a_centre_are_merged_after_all():
    keys = _directions(0, 8, 90, 97, 20, 60)  # 1 - cos: of 8 degrees 0.01, of 20 0.06, of 30 0.13
    important = torch.tensor([0, 1, 2, 3])
    for alpha, labels in ((0, [-1, -1]), (1.0, [-1, -1]), (4.0, [0, -1]), (8.0, [0, 1])):
        clusters = cluster(keys, important, alpha=alpha, cutoff=0.02)
        assert len(clusters.centres) == 2
        assert clusters.label.tolist() == [0, 0, 1, 1, *labels]
    assert cluster(keys, important, alpha=1, cutoff=0.001).centres.tolist() == [0, 1, 2, 3]
    found = cluster(keys, important, alpha=8, count=2)
    assert found.label.tolist() == [0, 0, 1, 1, 0, 1]
    assert found.cutoff == pytest.approx(float(cosine_distances(keys).max()) / 2)


def test_only_equal_tokens_are_merged_at_a_cutoff_of_0():
    keys, important = _directions(0, 60, 90, 0), torch.arange(3)
    for alpha, label in ((1, 0), (0, -1)):
        clusters = cluster(keys, important, alpha=alpha, cutoff=0.0)
        assert (clusters.label.tolist(), clusters.cutoff) == ([0, 1, 2, label], 0)


def test_each_centre_belongs_to_itself_though_another_equals_it():
    assert cluster(_directions(0, 0, 0), torch.arange(3), alpha=0, count=3).label.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.25, 0.54, 0.7, 0.998, 1.0])
def test_the_ratio_is_what_is_left_behind_the_layer(ratio: float):
    (before, chosen), *more = stages(PACT(ratio), tokens := video(8, (5, 5)))
    assert not more
    assert len(before.positions) == tokens.total
    assert len(chosen.index) == max(1, round(ratio * 200))
    assert (chosen.features is None) == (len(chosen.index) == 200)  # nothing is to be done


def test_clusters_become_their_means_with_their_sizes():
    method = PACT(0.2, share=1.0, alpha=0)
    ((before, chosen),) = stages(method, video(8, (4, 4)))
    assert chosen.sizes is not None
    assert int(chosen.sizes.sum()) == 128  # none was dropped
    sums = (chosen.features * chosen.sizes.unsqueeze(1)).sum(0)
    torch.testing.assert_close(sums, before.features.sum(0), atol=1e-4, rtol=1e-4)
    assert len(chosen.index) == 26
    ((_, plain),) = stages(replace(method, proportional=False), video(8, (4, 4)))
    assert plain.sizes is None
    assert torch.equal(plain.features, chosen.features)


def test_with_a_cutoff_the_ratio_changes_nothing():
    found = []
    for cutoff in (0.6, 0.4, 0.0):
        left = [next(stages(PACT(ratio, cutoff=cutoff), video()))[1] for ratio in (0.05, 1.0)]
        assert torch.equal(left[0].index, left[1].index)
        assert torch.equal(left[0].features, left[1].features)
        found.append(len(left[0].index))
    assert found[0] < found[1] < found[2]


def test_a_single_token_is_kept():
    ((_, chosen),) = stages(PACT(cutoff=0.2), video(1, (1, 1)))
    assert chosen.index.tolist() == [0]


def test_layers_are_the_official_one():
    assert [PACT().layers(depth) for depth in (28, 24, 32, 4)] == [(4,), (3,), (5,), (1,)]
    assert PACT(layer=4).layers(32) == (4,)
    with pytest.raises(ValueError, match=r"PACT\.layer=4: it must be an integer in \[1, 3\]"):
        PACT(layer=4).layers(4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("layer", 0), ("layer", 1.5), ("share", 0), ("share", 1.1), ("cutoff", -0.1), ("cutoff", 2.1), ("alpha", -1)),
        *(("alpha", None), ("proportional", 1)),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object):
    with pytest.raises(ValueError, match=rf"PACT\.{field}={value!r}"):
        PACT(**{field: value})
    PACT(layer=1, share=1, cutoff=2, alpha=1_000)  # the ends of the ranges are none of them


def test_layers_below_cannot_weigh_what_they_have_not_merged():
    with pytest.raises(TypeError, match="Below: weighs and prunes_caches cannot be combined"):

        class Below(PACT):
            prunes_caches = True


def test_sizes_that_are_none_are_refused():
    before: LayerTokens = next(stages(PACT(), video()))[0]
    index = torch.arange(3)
    for method, sizes, says in (
        (PACT(), torch.ones(2), r"sizes are \[2\] float32: they must be \[3\]"),
        (PACT(), torch.tensor([1, 0, 2]), "sizes must be positive and finite"),
        (PACT(proportional=False), torch.ones(3), "set weighs = True in the class"),
    ):
        with pytest.raises(ContractError, match=says):
            check_selection(method, before, Selection(index, sizes=sizes)).raise_any()
