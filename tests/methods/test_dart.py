"""What is particular to dart; tests/methods/test_contract.py holds what every method must do."""

import pytest
import torch
from torch import Tensor

from mmg_bench.contract import stages, video
from mmg_bench.methods.dart import DART, in_turn, least_alike, pivots
from mmg_bench.tokens import Keys, LayerTokens


class Offers:
    """Keys of one head, of tokens that stand behind 2 of the system's, and no final norm."""

    def __init__(self, lengths: list[float], visual: int) -> None:
        keys = torch.tensor([100.0, 100.0, *lengths]).view(1, -1, 1)
        self.given = Keys(keys, *torch.arange(2, keys.shape[1]).split([visual, len(lengths) - visual]))
        self.normed: list[Tensor] = []

    def keys(self) -> Keys:
        return self.given

    def final_norm(self, hidden: Tensor) -> Tensor:
        self.normed.append(hidden)
        return hidden * torch.tensor([1.0, -1.0])


def _kept(degrees: list[float], lengths: list[float], text: list[float], method: DART) -> list[int]:
    """What is left of visual tokens in these directions, with keys of these lengths, before text in its directions."""
    hidden = torch.tensor([*degrees, *text]).deg2rad()
    hidden = torch.stack([hidden.cos(), hidden.sin()], 1)
    visual, n = hidden[: len(degrees)], len(degrees)
    offers = Offers(lengths, n)
    tokens = LayerTokens(visual, visual, torch.arange(n), hidden[n:], n, 0, 4, offers)
    index: list[int] = method.prune_inside(tokens).index.tolist()
    return index


def test_the_longest_keys_are_pivots_and_each_keeps_what_is_least_like_it():
    degrees, lengths = [0.0, 10, 90, 180, 170, 20], [5.0, 1, 1, 1, 1, 1]
    method = DART(2 / 6, pivot_image_token=1, pivot_text_token=1)
    # token 0 is the visual pivot, and has 3 opposite; the second text token is the other, and has 2 opposite
    assert _kept(degrees, [*lengths, 1, 3, 2], [0, 270, 0], method) == [0, 2, 3]
    # the first of three is
    assert _kept(degrees, [*lengths, 9, 3, 2], [270, 0, 0], method) == [0, 2, 3]


def test_a_key_is_as_long_as_the_sum_of_all_its_numbers():
    keys = torch.tensor([[[3.0, 0], [2, 2], [-2, 1]], [[0, 0], [0, 0], [0, -2]]])  # L1: 3, 4, 5; L2: 3, 2.8, 3
    visual, text = pivots(Keys(keys, torch.arange(3), torch.arange(3)), 2, 1)
    assert visual.tolist() == [2, 1]
    assert text.tolist() == [2]


def test_pivots_choose_one_after_another():
    similarity = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.5, 0.0, 0.4, 0.6], [0.0, 0.0, 0.0, 0.1]])
    taken = torch.tensor([True, False, False, False])
    assert least_alike(similarity, taken, 1).tolist() == [True, True, True, True]
    assert least_alike(similarity[:2], taken, 1).tolist() == [True, True, True, False]
    assert least_alike(similarity[1:2], taken, 1).tolist() == [True, True, False, False]
    assert least_alike(similarity, taken, 0).tolist() == taken.tolist()


@pytest.mark.parametrize(
    ("visual", "text", "turn"),
    [
        ([3, 9, 5], [11, 20], [0, 2, 1, 3, 4]),  # small numbers in their order, and others
        ([15, 9], [10, 16], [3, 1, 2, 0]),  # by what is left of them, divided by its size: 7, 1, 2 and 0,
        ([100, 90, 80, 70], [60, 50, 40, 30], [0, 3, 6, 2, 5, 1, 4, 7]),  # 4, 26, 16, 6, 28, 18, 8 and 30
    ],
)
def test_pivots_choose_in_the_order_of_a_set(visual: list[int], text: list[int], turn: list[int]):
    assert in_turn(visual, text) == turn
    assert [[*visual, *text][i] for i in turn] == list(set(visual + text))


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.25, 4 + 8 * 6), (0.1, 4 + 8 * 2), (0.01, 4), (0.98, 4 + 8 * 24), (1, 200)]
)
def test_counts_are_cut_off_as_officially(ratio: float, left: int):
    ((_, chosen),) = stages(DART(ratio), video(8, (5, 5)))
    assert len(chosen.index) == left


def test_the_ratio_is_of_the_tokens_that_are_there():
    """0.7 of 10 is 7 and not a little less, of which each of 7 pivots keeps one."""
    method = DART(0.7, pivot_image_token=3, pivot_text_token=4)
    degrees = [10.0 * i for i in range(10)]
    assert len(_kept(degrees, [1.0] * 14, [0.0] * 4, method)) == 10
    assert len(_kept(degrees[:9], [1.0] * 13, [0.0] * 4, method)) == 3


def test_no_more_pivots_than_tokens():
    """And those that there are take the more."""
    assert len(_kept([20.0 * i for i in range(12)], [1] * 14, [0, 90], DART(0.5, pivot_image_token=1))) == 1 + 3 * 2
    assert _kept([0, 90], [1, 1, 1], [0], DART(0.5)) == [0, 1]
    assert _kept([0, 90, 180], [1, 1, 1, 1], [0], DART(0.5, pivot_image_token=2)) == [0, 1]


def test_what_is_compared_went_through_the_final_norm():
    hidden, offers = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), Offers([1.0] * 6, 4)
    tokens = LayerTokens(hidden[:4], hidden[:4], torch.arange(4), hidden[4:], 4, 0, 4, offers)
    DART(pivot_text_token=1).prune_inside(tokens)
    assert torch.equal(torch.cat(offers.normed), hidden[:5])


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"DART\.pivot_image_token=0: it must be an integer in \[1, 10000\]"):
        DART(pivot_image_token=0)
    with pytest.raises(ValueError, match=r"DART\.pivot_text_token=1\.5: it must be an integer in \[0, 10000\]"):
        DART(pivot_text_token=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"DART\.layer=4: it must be an integer in \[1, 3\]"):
        DART(layer=4).layers(4)
    assert DART().layers(28) == (2,)
