"""Pruning between the attention and the MLP of a layer: on which layers, and what others see of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import (
    BioGptConfig,
    CLIPVisionConfig,
    Gemma2Config,
    Glm4Config,
    GraniteConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    StableLmConfig,
)

from mmg_bench.methods._inside import InsideMethod
from mmg_bench.methods.fastv import FastV
from mmg_bench.methods.registry import get_method
from mmg_bench.models.adapter import UnsupportedModelError
from mmg_bench.tokens import LayerTokens, Selection

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class KeepsAll(InsideMethod):
    """Leaves every token where it is, between attention and MLP of every layer but the last."""

    name: ClassVar[str] = "keeps_all"
    before_mlp: ClassVar[bool] = True

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth))

    def select_inside(self, tokens: LayerTokens) -> Selection:
        return Selection(torch.arange(len(tokens.positions)))


@dataclass(frozen=True)
class ReadsAhead(KeepsAll):
    """Asks for attention that there is not yet."""

    name: ClassVar[str] = "reads_ahead"
    heads: bool = False

    def select_inside(self, tokens: LayerTokens) -> Selection:
        if self.heads:
            return Selection(tokens.attention.heads().visual)
        return Selection(tokens.attention(own=True)[0, 0].argsort())


def _model(text: PreTrainedConfig) -> tuple[Any, dict[str, Tensor]]:
    """A model that scatters a video of four frames into such a language model, and a prompt for it."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=32, patch_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=[[32, 32]],
    )
    prompt = {
        "input_ids": torch.tensor([[10] + [4] * 64 + [11, 12, 13]]),
        "pixel_values_videos": torch.randn(1, 4, 3, 32, 32),
    }
    return LlavaNextVideoForConditionalGeneration(config).eval(), prompt


@pytest.mark.parametrize("text", [MixtralConfig(**SIZES, num_local_experts=2), Phi3Config(**SIZES)], ids=type)
def test_layers_made_as_usual_are_served(text: PreTrainedConfig) -> None:
    model, prompt = _model(text)
    with torch.no_grad():
        stock = model(**prompt).logits
        with KeepsAll()(model):
            torch.testing.assert_close(model(**prompt).logits, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        GraniteConfig(**SIZES, residual_multiplier=0.22),
        Glm4Config(**SIZES, head_dim=8),  # a norm behind the MLP
        Olmo2Config(**SIZES),  # the norm is of what the attention gives
        Gemma2Config(**SIZES, head_dim=8, layer_types=["full_attention"] * LAYERS),
        StableLmConfig(**SIZES, use_parallel_residual=True),  # no such norm
    ],
    ids=type,
)
def test_other_layers_are_refused(text: PreTrainedConfig) -> None:
    model, _ = _model(text)
    with pytest.raises(UnsupportedModelError, match=r"layers of \w+ cannot be pruned before their MLP"):
        KeepsAll()(model).__enter__()
    with pytest.raises(UnsupportedModelError, match=r"choose a method that prunes between layers"):
        get_method("framefusion")(model).__enter__()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_without_a_norm_before_their_attention_are_not_looked_at() -> None:
    model, prompt = _model(Olmo2Config(**SIZES))
    says = "layers of Olmo2DecoderLayer have no norm before their attention"
    with pytest.raises(UnsupportedModelError, match=says), get_method("fastv")(model):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad(), get_method("mmg_vid", retention_ratio=0.5)(model) as run:
        model(**prompt)
    assert run.report[0].realised_tokens == 32


def test_layers_without_rotary_embeddings_are_pruned_before_the_first() -> None:
    model, prompt = _model(BioGptConfig(**SIZES))
    with torch.no_grad(), get_method("random", retention_ratio=0.5)(model) as run:
        model(**prompt)
    assert run.report[0].realised_tokens == 32


def _fusion() -> Any:
    return get_method("framefusion", retention_ratio=0.3, similarity_lower_bound=0.4)


def test_a_call_that_failed_in_an_mlp_leaves_nothing_behind(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, processor = deep
    layer = model.model.language_model.layers[0]
    text = processor(text=["how many times does the star flash ?"], return_tensors="pt")
    one = {name: ids[:, :1] for name, ids in text.items()}

    def fail(*_: Any) -> None:
        raise MemoryError

    with torch.no_grad():
        stock = [model(**prompt).logits for prompt in (text, one)]
        for prompt, expected in zip((text, one), stock, strict=True):
            with _fusion()(model):
                handle = layer.mlp.down_proj.register_forward_pre_hook(fail)
                with pytest.raises(MemoryError):
                    model(**inputs)
                handle.remove()
                assert torch.equal(model(**prompt).logits, expected)


def test_hooks_that_were_there_before_see_what_goes_on(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """transformers leaves such hooks on a model once it was asked for hidden states."""
    model, _ = deep
    seen: list[Tensor] = []
    handle = model.model.language_model.layers[1].register_forward_hook(lambda m, a, output: seen.append(output))
    with torch.no_grad(), _fusion()(model) as run:
        states = [model(**inputs, output_hidden_states=True).hidden_states for _ in range(2)]
    handle.remove()
    assert run.prompt_tokens is not None
    behind = run.prompt_tokens - run.report[0].realised_tokens
    lengths = [run.prompt_tokens, *(behind + n for _, n in run.stages)]
    for one in states:
        assert [state.shape[1] for state in one[: len(lengths)]] == lengths
        assert torch.equal(one[2], seen[0])
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize(("heads", "what"), [(False, "own attention is"), (True, "heads are")])
def test_attention_of_the_next_layer_is_not_known_there(
    heads: bool, what: str, deep: tuple[Any, Any], inputs: dict[str, Tensor]
) -> None:
    says = f"reads_ahead: before an MLP, the next layer's {what} not known"
    with ReadsAhead(heads=heads)(deep[0]), pytest.raises(ValueError, match=says):
        deep[0](**inputs)


def test_layers_that_are_run_again_for_gradients_are_refused(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Their gradients would be those of layers in which nothing was pruned."""
    model, _ = deep
    model.train()
    model.gradient_checkpointing_enable()
    try:
        with _fusion()(model) as run:
            with pytest.raises(ValueError, match=r"prunes within layers, .*\.gradient_checkpointing_disable"):
                model(**inputs)
            with torch.no_grad():
                model(**inputs)
            assert run.stages
        with get_method("fastv", retention_ratio=0.3)(model):
            model(**inputs, use_cache=False).logits[:, -1].sum().backward()
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()


def test_caches_below_are_not_pruned_from_there() -> None:
    with pytest.raises(TypeError, match="Both: before_mlp and prunes_caches cannot be combined"):

        class Both(KeepsAll):
            prunes_caches: ClassVar[bool] = True


def test_a_chain_prunes_where_its_second_part_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastV, "before_mlp", True)
    monkeypatch.setattr(FastV, "finished", lambda self, state: state == "done")
    chain = get_method("chain", before="random", inside="fastv")
    assert chain.before_mlp
    assert chain.finished((torch.arange(3), "done"))
    assert not chain.finished((torch.arange(3), None))
    assert not get_method("chain", before="random", inside="pdrop").before_mlp
