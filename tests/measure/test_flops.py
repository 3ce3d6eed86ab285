from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    GraniteMoeConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3MoeConfig,
)
from transformers.models.glm4v_moe import Glm4vMoeTextConfig
from transformers.models.qwen3_5 import Qwen3_5TextConfig

from mmg_bench.measure.flops import TextGeometry, flops_4nd2, flops_counted, flops_gqa, layer_counts

QWEN2_7B = TextGeometry(layers=28, hidden=3584, intermediate=18944, kv_width=512)
TOKENS = 32 * 196


def small_config():
    return Qwen2Config(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def test_conventions_agree_without_grouped_queries():
    full = TextGeometry(layers=2, hidden=8, intermediate=16, kv_width=8)
    assert flops_gqa(full, 5) == flops_4nd2(full, 5) == 2 * (4 * 5 * 64 + 2 * 25 * 8 + 3 * 5 * 8 * 16)
    assert flops_4nd2(QWEN2_7B, TOKENS) > flops_gqa(QWEN2_7B, TOKENS)


def test_layers_add_up():
    one = TextGeometry(layers=1, hidden=8, intermediate=16, kv_width=4)
    two = TextGeometry(layers=2, hidden=8, intermediate=16, kv_width=4)
    assert flops_gqa(two, [7, 3]) == flops_gqa(one, 7) + flops_gqa(one, 3)
    assert flops_gqa(two, [7, 0]) == flops_gqa(one, 7)


def test_counts_change_at_the_layers_of_stages():
    assert layer_counts(9, [], 2) == [9, 9]
    assert layer_counts(9, [(1, 5), (3, 2)], 5) == [9, 5, 5, 2, 2]
    assert layer_counts(9, [(0, 4)], 2) == [4, 4]


def test_geometry_from_a_config():
    assert TextGeometry.from_config(small_config()) == TextGeometry(3, 64, 160, 32)
    wide = Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    assert TextGeometry.from_config(wide).kv_width == 64
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    for config in (SimpleNamespace(**sizes), SimpleNamespace(**sizes, num_key_value_heads=None)):
        assert TextGeometry.from_config(config) == TextGeometry(2, 64, 160, 64)


def test_of_experts_and_other_attention_the_formulas_say_nothing():
    assert TextGeometry.from_config(Qwen2Config()).dense
    others = (
        MixtralConfig(),
        GraniteMoeConfig(),
        Qwen3MoeConfig(),
        Glm4vMoeTextConfig(),
        Qwen3_5TextConfig(),
        Qwen2Config(use_sliding_window=True, max_window_layers=0),
    )
    for config in others:
        assert not TextGeometry.from_config(config).dense, type(config)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_formula_agrees_with_torchs_counter(implementation):
    config = small_config()
    config._attn_implementation = implementation
    model = Qwen2Model(config).eval()
    tokens = 48
    counted = flops_counted(model, {"inputs_embeds": torch.randn(1, tokens, 64)})
    # the counter also sees the rotary embedding's small outer product
    assert counted == pytest.approx(flops_gqa(TextGeometry.from_config(config), tokens), rel=2e-3)


def test_output_head_counts_for_the_last_position_only():
    config = small_config()
    model = Qwen2ForCausalLM(config).eval()
    inputs = {"input_ids": torch.arange(40)[None]}
    head = flops_counted(model, inputs) - flops_counted(model.model, inputs)
    assert head == config.vocab_size * config.hidden_size
    assert list(inputs) == ["input_ids"]
    whole = flops_counted(model, {**inputs, "logits_to_keep": 0})  # of all positions
    assert whole - flops_counted(model.model, inputs) == 40 * head


def test_a_model_that_is_not_asked_for_logits_is_counted():
    assert flops_counted(nn.Linear(4, 6), {"input": torch.ones(3, 4)}) == 3 * 4 * 6


@pytest.mark.parametrize(
    ("kernel", "more"),
    [
        ("flash_attention", ()),
        ("flash_attention_for_cpu", ()),
        ("efficient_attention", (None, False)),
        ("cudnn_attention", (None, False)),
        ("fused_attention_overrideable", ()),
    ],
)
def test_attention_counts_alike_in_each_of_torchs_kernels(kernel, more):
    class Attention(nn.Module):
        def forward(self, query, key, value):
            return getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")(query, key, value, *more)

    def counted(rows, keys, width):
        shapes = (2, 6, rows, 16), (2, 3, keys, 16), (2, 3, keys, width)
        states = (torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes)
        return flops_counted(Attention(), dict(zip(("query", "key", "value"), states, strict=True)))

    assert counted(7, 7, 16) == 2 * 6 * 7 * 7 * (16 + 16)
    assert counted(7, 9, 8) == 2 * 6 * 7 * 9 * (16 + 8)


def test_bad_geometry_and_counts_are_refused():
    with pytest.raises(ValueError, match="kv_width=0"):
        TextGeometry(1, 8, 16, 0)
    with pytest.raises(ValueError, match=r"layers=2.5"):
        TextGeometry(2.5, 8, 16, 4)
    with pytest.raises(ValueError, match=r"layers=True"):
        TextGeometry(True, 8, 16, 4)
    with pytest.raises(ValueError, match="27 layers"):
        flops_gqa(QWEN2_7B, [10] * 27)
    with pytest.raises(ValueError, match="negative"):
        flops_gqa(QWEN2_7B, -1)
    with pytest.raises(ValueError, match="negative, got -2"):
        flops_gqa(TextGeometry(2, 8, 16, 4), [5, -2])
