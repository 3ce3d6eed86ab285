"""What is particular to framefusion; tests/methods/test_contract.py holds what every method must do."""

import pytest
import torch

from mmg_bench.contract import DEPTH, stages, video
from mmg_bench.measure.flops import layer_counts
from mmg_bench.methods.framefusion import FrameFusion, share_to_remove
from mmg_bench.tokens import VideoTokens

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def _video(*frames: list[list[float]]) -> VideoTokens:
    """A video of vectors in the plane, two a frame."""
    return VideoTokens(torch.tensor(frames), (1, 2))


def _seen(method: FrameFusion, tokens: VideoTokens) -> list[int]:
    """How many tokens each of DEPTH layers sees."""
    later = [(before.stage + 1, len(chosen.index)) for before, chosen in stages(method, tokens)]
    return layer_counts(len(method.prune(tokens)), later, DEPTH)


def test_runs_of_like_tokens_become_their_mean_at_the_first_of_them():
    tokens = _video([EAST, NORTH], [[3.0, 0.0], WEST], [[2.0, 0.3], NORTH], [WEST, [0.2, 4.0]])
    pruned = FrameFusion(0.1).prune(tokens)
    assert pruned.positions.tolist() == [0, 1, 3, 5, 6]
    torch.testing.assert_close(
        pruned.features, torch.tensor([[2.0, 0.1], NORTH, WEST, [0.1, 2.5], WEST]), atol=1e-6, rtol=0
    )
    assert pruned.state.removed == (3 / 8,)
    assert pruned.state.merging
    assert not pruned.state.finished


def test_of_more_repeats_than_are_to_go_the_most_alike_go():
    tokens = _video([EAST, NORTH], [[1.0, 0.2], [0.3, 1.0]], [[1.0, 0.45], [0.35, 1.0]])
    pruned = FrameFusion(0.66).prune(tokens)  # two go: the last of the second place, then one of the first
    assert pruned.positions.tolist() == [0, 1, 3, 4]
    torch.testing.assert_close(pruned.features[0], torch.tensor([1.0, 0.1]))
    assert pruned.state.finished


def test_few_repeats_end_the_merging():
    tokens = _video([EAST, NORTH], [NORTH, EAST], [WEST, [0.9, 0.1]])
    assert not FrameFusion(0.1, ratio_lower_bound=0.2).prune(tokens).state.merging  # one of six
    assert FrameFusion(0.1, ratio_lower_bound=0.1).prune(tokens).state.merging


def test_what_equals_a_bound_is_within_it():
    tokens = _video([EAST, NORTH], [NORTH, WEST])  # right angles
    pruned = FrameFusion(0.1, similarity_lower_bound=0.0, ratio_lower_bound=0.5).prune(tokens)
    assert pruned.positions.tolist() == [0, 1]
    assert pruned.state.merging


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("similarity_lower_bound", value) for value in (-1.1, 1.1, "high")),
        *(("ratio_lower_bound", value) for value in (-0.1, 1.1, None)),
        ("inner", "off"),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object):
    with pytest.raises(ValueError, match=rf"FrameFusion\.{field}={value!r}"):
        FrameFusion(**{field: value})


def test_what_was_overspent_ends_with_one_token():
    tokens = video(1)  # one frame: nothing to merge, and every layer that merges sees it whole
    seen = _seen(FrameFusion(0.1, ratio_lower_bound=0.0), tokens)
    assert seen == [20] * 4 + [1] * 24  # 2.8 layers' worth are spent at the third


def test_shares_as_by_hand():
    assert share_to_remove((), 0.3, 10) == pytest.approx(0.7)
    # half, then 60 % of that, are seen by a layer each: 3 - 0.5 - 0.3 are left for eight layers, of 0.3 before
    assert share_to_remove((0.5, 0.4), 0.3, 10) == pytest.approx(1 - (2.2 / 8) / 0.3)
    assert share_to_remove((0.9,), 0.5, 10) == 0  # less is left than the cost allows
    assert share_to_remove((0.0, 0.1), 0.1, 10) == 1  # the merges have seen more than it allows


@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.15])
@pytest.mark.parametrize("bound", [0.6, 0.9])
def test_layers_see_the_ratio_on_average(ratio: float, bound: float):
    tokens = video(16, (7, 7), 32, seed=3)
    method = FrameFusion(ratio, similarity_lower_bound=bound)
    assert sum(_seen(method, tokens)) / DEPTH / tokens.total == pytest.approx(ratio, abs=1.5 / tokens.total)


def test_all_tokens_are_left_as_they_are_where_all_are_to_stay():
    tokens = video()
    pruned = FrameFusion(1.0).prune(tokens)
    assert torch.equal(pruned.features, tokens.flat)
    assert pruned.state.finished


def test_without_its_inner_part_the_most_alike_are_merged_down_to_the_ratio():
    tokens = video(8, (4, 5), 16)
    assert FrameFusion(0.3, inner=False).layers(DEPTH) == ()
    assert FrameFusion().layers(DEPTH) == tuple(range(1, DEPTH))
    for ratio, left in ((0.5, 80), (0.3, 48), (0.2, 32), (0.15, 24), (1 / 8, 20), (0.02, 20)):
        pruned = FrameFusion(ratio, similarity_lower_bound=1.0, inner=False).prune(tokens)
        assert len(pruned) == left
        assert pruned.state.finished
    assert pruned.positions.tolist() == list(range(20))
    torch.testing.assert_close(pruned.features, tokens.features.mean(0))
    assert len(FrameFusion(0.1, inner=False).prune(video(16, (7, 7)))) == 78  # 1 - 0.1 is a little less than 0.9
