"""What is particular to aim; tests/methods/test_contract.py holds what every method must do."""

import pytest
import torch
from torch import Tensor

from mmg_bench.contract import stages, video
from mmg_bench.methods.aim import AIM, importance, merge_round
from mmg_bench.methods.registry import get_method
from mmg_bench.methods.tome import merge_to


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_importance_as_by_hand():
    queries, keys = normal(4, 6, 3), normal(2, 6, 3)
    squares = torch.zeros(6, dtype=torch.float64)
    for head in range(4):
        rank = [1 / 6] * 6
        for _ in range(3):
            passed = [0.0] * 6
            for i in range(6):
                scores = torch.stack([queries[head, i] @ keys[head // 2, j] for j in range(i + 1)]).double()
                for j, vote in enumerate((scores / 0.7).softmax(0).tolist()):
                    passed[j] += rank[i] * vote
            rank = passed
        assert sum(rank) == pytest.approx(1)
        squares += torch.tensor(rank, dtype=torch.float64).square()
    torch.testing.assert_close(importance(queries, keys, 0.7, 3).double(), (squares / 4).sqrt(), rtol=1e-5, atol=1e-7)


def test_merged_tokens_count_as_one():
    """Three equal tokens and a fourth beside them: the mean of the last merge is halfway, not three quarters."""
    x = torch.tensor([[[1.0, 0], [1.0, 0.02], [1.0, 0], [0.6, 0.8]]])
    one, _ = merge_to(x, 1, merge_round)
    assert one.assign.unique().tolist() == [0]
    torch.testing.assert_close(one.tokens[0, 0], torch.tensor([0.8, 0.4 + 0.02 / 6]))
    torch.testing.assert_close(merge_to(x, 1)[0].tokens[0, 0], x[0].mean(0))


def test_of_few_frames_it_is_tome_until_something_is_merged_twice():
    tokens = video(6, (4, 5))
    one, other = AIM(0.5).prune(tokens), get_method("tome", retention_ratio=0.5).prune(tokens)
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.features, other.features)
    less, fewer = AIM(0.1).prune(tokens), get_method("tome", retention_ratio=0.1).prune(tokens)
    assert len(less) == len(fewer)
    assert not torch.allclose(less.features, fewer.features, atol=1e-3)


def test_layers_are_the_official_ones():
    assert AIM().layers(28) == tuple(range(15, 23))
    assert AIM().layers(32) == tuple(range(17, 26))
    assert AIM().layers(4) == (3,)
    assert AIM(l1=0, l2=3).layers(4) == (1, 2, 3)
    assert AIM(l2=24).layers(28) == tuple(range(15, 25))
    assert AIM(inner=False).layers(2) == ()
    with pytest.raises(ValueError, match="a language model of 2 layers has no room for 2 pruning stages"):
        AIM().layers(2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"l1": 3, "l2": 3}, r"AIM\.l1=3, l2=3: l1 must be below l2, and l2 below the model's 28 layers"),
        ({"l2": 28}, r"AIM\.l1=14, l2=28: l1 must be below l2"),
        ({"l1": 22}, r"AIM\.l1=22, l2=22: l1 must be below l2"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(options: dict[str, int], says: str):
    with pytest.raises(ValueError, match=says):
        AIM(**options).layers(28)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"l1": -1}, r"AIM\.l1=-1: it must be an integer in \[0, 10000\]"),
        ({"l2": 1.5}, r"AIM\.l2=1\.5: it must be an integer in \[0, 10000\]"),
        ({"tau_imp": 0}, r"AIM\.tau_imp=0: it must be a number in \(0, 1000\]"),
        ({"iters": 0}, r"AIM\.iters=0: it must be an integer in \[1, 1000\]"),
        ({"inner": "off"}, r"AIM\.inner='off': it must be true or false"),
    ],
)
def test_options_are_checked(options: dict[str, float], says: str):
    with pytest.raises(ValueError, match=says):
        AIM(**options)  # type: ignore[arg-type]


def test_each_stage_leaves_an_eighth_less_of_what_entered():
    tokens = video(8, (4, 5))
    left = [(before, chosen) for before, chosen in stages(AIM(0.5), tokens)]
    assert [len(chosen.index) for _, chosen in left] == [70, 60, 50, 40, 30, 20, 10, 1]
    assert [before.stage for before, _ in left] == list(range(8))
    assert {chosen.state for _, chosen in left} == {80}


def test_what_rank_comes_to_rest_on_stays():
    (before, chosen), *_ = stages(AIM(0.5), video(8, (4, 5)))
    keys = before.attention.keys()
    rank = importance(before.attention.queries(), keys.keys, 0.1, 5)[keys.visual]
    lost = torch.ones(80, dtype=torch.bool).index_fill(0, chosen.index, False)
    assert lost.sum() == 10
    assert rank[lost].max() <= rank[chosen.index].min()


def test_shares_are_as_one_would_write_them():
    """Seven tenths of 90 are 63; in floating point they are a little less."""
    left = [len(chosen.index) for _, chosen in stages(AIM(1.0, l1=10, l2=20), video(9, (2, 5)))]
    assert left == [81, 72, 63, 54, 45, 36, 27, 18, 9, 1]
