"""Types of transformers that the table of docs/models.md does not show."""

from __future__ import annotations

import pytest
import torch
from equalities import method_of
from masking import masked_logits, stock_prompt, traced

import families
from mmg_bench.models.adapter import adapter_for

STEPS = 3


@pytest.mark.parametrize("label", ["mmg_vid", "fastv"])
@pytest.mark.parametrize("name", ["glmga", "cosmos3_omni"])
def test_a_family_under_another_name(name: str, label: str) -> None:
    torch.manual_seed(0)
    model, processor = getattr(families, name)()
    inputs = families.prompts(name, processor, ["What colour is the star?"])
    pruner = method_of(label, retention_ratio=0.3)
    with traced(pruner, families.LAYERS) as trace, pruner(model) as run:
        made = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert model.config.model_type == name
    assert run.report[0].layout == (families.FRAMES // 2, 3, 4)
    columns = (inputs["input_ids"][0] == adapter_for(model).video_token_id).nonzero().flatten().tolist()
    with torch.no_grad():
        expected = masked_logits(model, stock_prompt(model, inputs, columns), pruner, pruner.positions, trace, STEPS)
    torch.testing.assert_close(torch.cat(made.logits), expected, atol=2e-4, rtol=2e-3)
