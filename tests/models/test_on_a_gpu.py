"""Every family with its weights on a GPU, or what says that it is one: nothing of the host's is in the way there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equalities import METHODS, lacking, method_of, prunes_inside, sequential
from torch import Tensor

import families
from mmg_bench.mock_gpu import GPU
from mock_cuda import mock_cuda

STEPS = 3
FEW = ("mmg_vid", "random")
"""Methods that are tried on all families; so are those that prune inside. What others do is no family's affair."""


@pytest.fixture(scope="module", params=list(families.BUILDERS))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, processor = families.BUILDERS[request.param]()
    return request.param, model, families.prompts(request.param, processor, ["What colour is the star?"])


def test_the_code_for_a_gpu_makes_the_same_logits(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, model, inputs = family

    def logits(label: str) -> Tensor:
        sent = {key: value.to(model.device) for key, value in inputs.items()}
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with method_of(label, retention_ratio=0.3)(model):
            made = model.generate(**sent, max_new_tokens=STEPS, **options)
        assert made.logits[0].device == model.device
        return torch.stack(made.logits).cpu()

    labels = [
        label
        for label in METHODS
        if name == "llava_onevision" or label in FEW or prunes_inside(model, label)
        if not lacking(model, label) and not (sequential(model) and prunes_inside(model, label))
    ]
    assert set(FEW) <= set(labels)
    here = {label: logits(label) for label in labels}
    with mock_cuda() as gpu:
        model.to("cuda")
        assert model.device == GPU
        for label in labels:
            before = gpu.kernels
            there = logits(label)
            assert gpu.kernels > before
            torch.testing.assert_close(
                there, here[label], atol=2e-4, rtol=2e-3, msg=lambda text, at=label: f"{at}: {text}"
            )
