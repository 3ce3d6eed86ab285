"""How well kept tokens stand for all of them, against the formulas, one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmg_bench.measure import fidelity as module
from mmg_bench.measure.fidelity import ALIKE, Fidelity, fidelity


def slowly(tokens: Tensor, kept: Tensor) -> Fidelity:
    tokens, kept = tokens.double(), kept.double()
    covered = sum(any(float(cosine_similarity(x, k, dim=0)) >= ALIKE for k in kept) for x in tokens)
    error = sum(min(float((x - k).square().sum()) for k in kept) for x in tokens)
    return Fidelity(covered / len(tokens), error / float((tokens - tokens.mean(0)).square().sum()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 12), st.floats(0.05, 2), st.booleans())
def test_both_numbers_are_those_of_the_formulas(seed: int, size: int, count: int, apart: float, merged: bool) -> None:
    """Tokens around four others, far from 0; kept ones are some of them, or the means of some."""
    generator = torch.Generator().manual_seed(seed)
    around = 5 + torch.randn(4, 6, generator=generator)
    tokens = around[torch.arange(size) % 4] + apart * torch.randn(size, 6, generator=generator)
    kept = tokens[torch.randperm(size, generator=generator)[:count]]
    kept = (kept + kept.roll(1, 0)) / 2 if merged else kept
    found, expected = fidelity(tokens, kept), slowly(tokens, kept)
    assert found.coverage == pytest.approx(expected.coverage)
    assert found.quantisation_error == pytest.approx(expected.quantisation_error, rel=1e-3, abs=1e-5)


def test_the_ends_of_the_scale() -> None:
    tokens = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert fidelity(tokens, tokens.flip(0)) == Fidelity(1.0, pytest.approx(0, abs=1e-6))
    assert fidelity(tokens, tokens.mean(0, keepdim=True)).quantisation_error == pytest.approx(1)
    assert fidelity(torch.ones(5, 3), torch.ones(1, 3)) == Fidelity(1.0, 0.0)
    nothing = fidelity(torch.cat([torch.zeros(3, 8), tokens[:1]]), tokens[:1])
    assert nothing.coverage == 0.25  # a token that is 0 resembles none


def test_tokens_are_covered_from_a_cosine_of_nine_tenths() -> None:
    angles = torch.tensor([0.0, 0.91, 0.89, -1.0])
    tokens = torch.stack([angles, (1 - angles.square()).sqrt()], dim=1) * torch.tensor([[1.0], [3.0], [0.2], [1.0]])
    assert fidelity(tokens, torch.tensor([[2.0, 0.0]])).coverage == 0.25


def test_what_rounding_makes_negative_is_nothing() -> None:
    for seed in range(20):
        tokens = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed))
        assert fidelity(tokens, tokens).quantisation_error >= 0


def test_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    whole = fidelity(tokens, tokens[::5])
    for elements in (30, 5):  # three at a time; one, for even a row has more
        monkeypatch.setattr(module, "_AT_ONCE", elements)
        parts = fidelity(tokens, tokens[::5])
        assert parts == Fidelity(whole.coverage, pytest.approx(whole.quantisation_error, rel=1e-5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_full(dtype: torch.dtype) -> None:
    tokens = (100 + torch.randn(64, 16, generator=torch.Generator().manual_seed(2))).to(dtype)
    found, expected = fidelity(tokens, tokens[::4]), slowly(tokens, tokens[::4])
    assert found.quantisation_error == pytest.approx(expected.quantisation_error, rel=1e-3)
