"""Model families: what the hooks need to know about each, and the lookup of a model's family."""

from __future__ import annotations

import copy
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.utils import ModelOutput

from mmg_bench.contract import layers_of
from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import get_method, method_class, method_names, read_label
from mmg_bench.models.kept import Kept
from mmg_bench.tokens import VideoTokens

FAMILIES = {
    "llava_onevision": "mmg_bench.models.llava_onevision:LlavaOnevision",
    "llava_video": "mmg_bench.models.llava_video:LlavaVideo",
    "qwen2_vl": "mmg_bench.models.qwen2_5_vl:Qwen25VL",
    "qwen2_5_vl": "mmg_bench.models.qwen2_5_vl:Qwen25VL",
    "exaone4_5": "mmg_bench.models.qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "mmg_bench.models.qwen3_vl:Qwen3VL",
    "cosmos3_omni": "mmg_bench.models.qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "mmg_bench.models.qwen3_vl:Qwen3VL",
    "qwen3_5": "mmg_bench.models.qwen3_vl:Qwen3VL",
    "qwen3_5_moe": "mmg_bench.models.qwen3_vl:Qwen3VL",
    "glm4v": "mmg_bench.models.glm4v:Glm4V",
    "glm4v_moe": "mmg_bench.models.glm4v:Glm4V",
    "glm46v": "mmg_bench.models.glm4v:Glm4V",
    "glmga": "mmg_bench.models.glm4v:Glm4V",
    "glm_ocr": "mmg_bench.models.glm4v:Glm4V",
    "internvl": "mmg_bench.models.internvl:InternVL",
    "smolvlm": "mmg_bench.models.smolvlm:SmolVLM",
    "llava_next_video": "mmg_bench.models.llava_next_video:LlavaNextVideo",
    "video_llama_3": "mmg_bench.models.video_llama_3:VideoLlama3",
}
"""`model.config.model_type` -> adapter. `model.config.mmg_family`, set by our own conversions, takes precedence."""
FALLBACK = "mmg_bench.models.scatter:Scatter"
"""Adapter for all other types, provided the model has the required parts."""

_MASKED_OUTSIDE = "its attention masks, which may let visual tokens attend to one another, are made outside its decoder"
REFUSED = {
    **dict.fromkeys(("gemma4", "gemma4_unified", "molmo2"), _MASKED_OUTSIDE),
    "ernie4_5_vl_moe": "its layers receive the columns of visual tokens, and route these to separate experts",
    "hy_v4_vl": "each row of a video's tokens ends with an extra token, which its placeholders include",
    "kimi_k25": "it splits videos into chunks, each with its own grid, and turns each chunk into one frame",
    "qwen4_exp": "its layers read token ids as well as embeddings, and pruning does not adjust these ids",
}
"""`model_type` -> why `FALLBACK` must not be used for it."""

WEIGHED = ("sdpa", "eager")
"""Attention implementations that accept a mask added to the scores."""

_MARK = "mmg_bench_call"  # attribute of a vision tower's output, and of a tensor in it: identifies the call

_USUAL_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}

Layout = tuple[int, int, int]
"""`(T, H, W)` of a video's visual tokens."""


class UnsupportedModelError(ValueError):
    """No adapter knows the model, or the adapter cannot supply what a method needs."""


class Adapter(ABC):
    """One model family: where its parts are and how its visual tokens are laid out. Holds no run state."""

    package: ClassVar[str | None] = None
    """Package that the family's processor needs and mmg-bench does not install."""
    read: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `VideoTokens` that are derived from the attention of the family's tower (`tower.py`)."""

    def __init__(self, model: Any):
        self.model = model

    @property
    def supplies(self) -> frozenset[str]:
        """Optional fields of `VideoTokens` that the adapter can fill for this model."""
        return self.read

    @property
    def from_siglip(self) -> frozenset[str]:
        """Further fields that it can fill once the model has its original SigLIP checkpoint."""
        return frozenset()

    @property
    def timed(self) -> bool:
        """Whether prompts or position ids contain frame times, so that preprocessing needs them."""
        return False

    @property
    @abstractmethod
    def multimodal(self) -> nn.Module:
        """The module whose forward takes `input_ids` and scatters video features into the embeddings."""

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The decoder, called with `inputs_embeds`."""

    @property
    def text_config(self) -> Any:
        """The language model's configuration."""
        return self.language_model.config

    @property
    def layers(self) -> Sequence[Any]:
        """The language model's decoder layers."""
        return self.language_model.layers

    def attention_module(self, layer: Any) -> Any:
        """The attention module of a decoder layer, with `q_proj`, `k_proj`, `head_dim` and `scaling`.

        Raises UnsupportedModelError if the layer's submodules suggest that attention may be computed differently.
        """
        if not hasattr(layer, "input_layernorm"):
            raise UnsupportedModelError(
                f"layers of {type(layer).__name__} have no norm before their attention, so how they compute attention "
                "is not known: choose a method that prunes before the language model, such as mmg_vid"
            )
        return layer.self_attn

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer."""
        norm: nn.Module = self.language_model.norm
        return norm

    def normalised(self, layer: Any, hidden: Tensor) -> Tensor:
        """The input of a decoder layer's attention, computed from the layer's input `[S, D]`."""
        normalised: Tensor = layer.input_layernorm(hidden)
        return normalised

    def mlp(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """The norm after the attention of a decoder layer, and its MLP: the layer ends with `x + mlp(norm(x))`.

        If the MLP's output passes through its own norm, that norm is returned in place of the MLP.
        Raises UnsupportedModelError if the layer's submodules suggest that it may end differently.
        """
        made_of = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)}
        if made_of != _USUAL_LAYER or getattr(layer, "residual_multiplier", 1) != 1:
            raise UnsupportedModelError(
                f"layers of {type(layer).__name__} cannot be pruned before their MLP: they may not end in "
                "x + mlp(norm(x)), as the usual ones do; choose a method that prunes between layers, such as fastv"
            )
        return layer.post_attention_layernorm, layer.mlp

    def rotary(self, hidden: Tensor, ids: Tensor) -> Any:
        """The rotary embeddings that the language model computes from position ids `[..., B, S]` for its layers."""
        # with four axes, the first one counts the text and is used for masks only
        return self.language_model.rotary_emb(hidden, ids[-3:] if ids.dim() == 3 else ids)

    def rows(self, rotary: Any, row: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[S, width]` of one row of those embeddings."""
        cos, sin = rotary
        return cos[row if len(cos) > 1 else 0], sin[row if len(sin) > 1 else 0]

    def next_ids(self, mask: Tensor) -> Tensor:
        """Position ids `[..., B, 1]` of the last column in `mask` `[B, S]`, which is a decoded token."""
        return mask.sum(-1, keepdim=True) - 1

    @property
    def deltas(self) -> Tensor | None:
        """`[B, 1]`: offset of later text's position ids from its columns, as the model last computed it.

        None if there is no offset.
        """
        return None

    def column(self, ids: Tensor) -> int | None:
        """Column of the whole prompt that the first of position ids `[..., B, S]` refers to; None if unknown.

        If they are on a GPU, this waits for it.
        """
        return int(ids[0, 0]) if ids.dim() == 2 else None

    @property
    def interleaved(self) -> bool:
        """Whether rotary embeddings rotate each element of a head with its neighbour, not half with half."""
        return False

    @property
    @abstractmethod
    def video_token_id(self) -> int:
        """Id of the placeholder for a visual token."""

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids of all visual placeholders, including those of images: everything that is not text."""
        image = getattr(self.model.config, "image_token_id", None)
        return [self.video_token_id] if image is None else [self.video_token_id, image]

    @property
    def trailing(self) -> int:
        """Placeholders after the `T * H * W` tokens of a video (newline tokens): never counted, always kept."""
        return 0

    def placeholders(self, layout: Layout) -> int:
        """Number of placeholders of a video, including newlines."""
        return math.prod(layout) + self.trailing

    def body(self, layout: Layout) -> slice | Tensor:
        """Which of a video's placeholders are its `T * H * W` tokens, in raster order."""
        return slice(math.prod(layout))

    def in_a_row(self, layout: Layout) -> int:
        """Number of adjacent placeholders in a run of a video; other tokens may separate such runs."""
        return self.placeholders(layout)

    def holds_videos(self, inputs: dict[str, Any]) -> bool:
        """Whether a forward call with these keyword arguments contains videos."""
        return self.encoded(inputs) is not None or inputs.get("pixel_values_videos") is not None

    def encoded(self, inputs: dict[str, Any]) -> Any:
        """Encoded videos that a forward call receives instead of pixels; None if the call encodes them itself."""
        return (inputs.get("mm_encoder_outputs") or {}).get("video")

    def one_video(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor's output for one video, in a layout that can be concatenated across videos for `encode`."""
        return tensors

    @abstractmethod
    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        """Layouts of the videos that were encoded for a forward call with these keyword arguments, in order."""

    def additions(self, kwargs: dict[str, Any], kept: Kept | None) -> tuple[dict[str, Any], list[Tensor]]:
        """Tensors that the language model adds to the hidden states after its first layers, `[B, K, D]` for each.

        They are removed from the keyword arguments of its call and narrowed to the columns that are `kept`.
        """
        return kwargs, []

    @abstractmethod
    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        """Encode the processor's output for one or several videos, once.

        Returns their tokens, with the fields in `needs` filled, and the keyword arguments that pass the encoded videos
        to `generate` instead of pixels (pass them through `fresh`).
        """

    @abstractmethod
    def capture(self, needs: Collection[str]) -> AbstractContextManager[Capture]:
        """A context that records, for each vision-tower call, what the fields in `needs` are computed from."""

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """What `model` lacks for this adapter, for an error message; None if it has everything."""
        return None

    def check(self, needs: Collection[str], who: str, *, siglip: bool = False) -> None:
        """Raise UnsupportedModelError if the family cannot supply what `who` needs.

        `siglip`: whether the model will have its SigLIP checkpoint, even if that is not loaded yet.
        """
        if (lacking := self.lacking_for(needs, who, siglip=siglip)) is not None:
            raise UnsupportedModelError(": ".join((who, *lacking)))

    def lacking_for(self, needs: Collection[str], who: str, *, siglip: bool = False) -> tuple[str, str] | None:
        """What `who` needs and the family cannot supply, and what to do about it; None if nothing is missing."""
        supplied = {*self.supplies, "query", "times", *(self.from_siglip if siglip else ())}
        if not (missing := sorted(set(needs) - supplied)):
            return None
        fault = (
            f"models of type {self.model.config.model_type!r} do not supply {', '.join(missing)} (they supply "
            f"{', '.join(sorted(self.supplies)) or 'nothing'})"
        )
        ways = [*_stand_in(who, supplied), *self._ways(missing), "choose another method or model"]
        return fault, ", or ".join(ways)

    def stages(self, method: Method) -> tuple[tuple[int, ...], int | None]:
        """The layers before which `method` prunes, and the first layer at which it hides keys.

        Raises UnsupportedModelError if these layers do not support that, and ValueError for layers that the model does
        not have.
        """
        layers, key_layer = layers_of(method, len(self.layers))
        if not layers and key_layer is None:
            return layers, key_layer
        if (fault := self.not_inside()) is not None:
            raise UnsupportedModelError(f"{method.name} prunes {fault}")
        kind = getattr(self.text_config, "_attn_implementation", None)
        if method.weighs and kind not in WEIGHED:
            raise UnsupportedModelError(
                f"{method.name} adds to attention scores, which {kind} cannot: load the model with "
                f"attn_implementation={' or '.join(WEIGHED)}, or turn this off if the method has an option for it "
                "(pact's is proportional=False)"
            )
        for layer in layers if method.before_mlp else ():
            self.mlp(self.layers[layer - 1])
        return layers, key_layer

    def not_inside(self) -> str | None:
        """Where a method would prune inside the language model, and why it cannot; None if it can.

        The text continues "<method> prunes".
        """
        kinds = set(getattr(self.text_config, "layer_types", None) or ())
        if kinds - {"full_attention"}:
            return (
                "inside the language model, which requires all layers to be full_attention: "
                f"this model has {', '.join(sorted(kinds))}"
            )
        if type_of(self.model) not in FAMILIES:  # a wrong guess about their attention would go unnoticed
            return (
                f"inside the language model, and how layers of models of type {self.model.config.model_type!r} compute "
                "attention is not known: add an entry to FAMILIES (mmg_bench/models/adapter.py), with tests; "
                f"supported: {', '.join(FAMILIES)}"
            )
        return None

    def _ways(self, fields: Collection[str]) -> list[str]:
        """Ways to make a model of the family supply some fields, in the imperative."""
        return []


def _mark_of(output: Any) -> object:
    """The tower call that `output`, or the output that it was copied from, belongs to; None if unknown."""
    return getattr(output, _MARK, None) or getattr(getattr(output, "last_hidden_state", None), _MARK, None)


class Capture(ABC):
    """Data recorded from the vision tower's last call."""

    mark: object
    """Mark of that call's output; None if there is nothing to identify it by."""

    def note_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the tower. The model passes its tower's output on and completes it in place."""
        self.mark = _mark_of(output) or object()
        for part in (output, getattr(output, "last_hidden_state", None)):
            if isinstance(part, ModelOutput | Tensor):
                setattr(part, _MARK, self.mark)

    def claim(self, encoded: Any, copied: bool) -> None:
        """Before a call with encoded videos, or pixels (None): forget what does not belong to these videos.

        `generate` encodes first and, without a cache, passes the same output at each step. `copied`: whether the output
        may have been copied to another device and so lost its mark; it is then taken to belong to the recorded call.
        """
        mark = _mark_of(encoded)
        if encoded is None or (mark is not self.mark if mark is not None else not copied):
            self.forget()

    def forget(self) -> None:
        """Drop the recorded data."""
        self.mark = None

    def fields(self, first: int, count: int) -> dict[str, Tensor]:
        """The optional fields of `VideoTokens` for frames `[first, first + count)` of the call; none by default."""
        return {}

    def video(self, features: Tensor, grid: tuple[int, int], first: int) -> VideoTokens:
        """The video that starts at frame `first` of the call, on the device of its `features` `[T, N, D]`."""
        given = self.fields(first, len(features))
        return VideoTokens(features, grid, **{name: value.to(features.device) for name, value in given.items()})


@contextmanager
def hooked(captured: Capture, handles: Collection[Any]) -> Iterator[Capture]:
    """Yield what hooks record, and remove the hooks (`handles`) at the end."""
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def unseen(needs: Collection[str]) -> RuntimeError:
    """The error for fields of `VideoTokens` that were not recorded from the vision tower."""
    return RuntimeError(
        f"{', '.join(sorted(needs))}: the vision tower did not encode these frames for this call, inside the context: "
        "pass pixels to the model, or the tokens from `Adapter.encode` to `pruning` as `encoded`"
    )


def marked(made: Any, like: Any) -> Any:
    """Mark `made`, derived from a vision tower's output `like`, as belonging to the same call."""
    setattr(made, _MARK, _mark_of(like))
    return made


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """A copy of encoded videos for one call of `generate`, which repeats them in place during beam search."""
    outputs = {name: copy.copy(output) for name, output in arguments["mm_encoder_outputs"].items()}
    return {**arguments, "mm_encoder_outputs": outputs}


def _stand_in(who: str, supplied: Collection[str]) -> list[str]:
    """How the registered method labelled `who` can run with the supplied fields alone; empty if it cannot.

    The options have no prefix: each command, a table's file and Python pass them in their own way.
    """
    name, parameters = read_label(who)
    for part in (name, *(read_label(value)[0] for value in parameters.values())):  # the parts of a chain
        for options in method_class(part).stand_ins if part in method_names() else ():
            if get_method(part, **options).needs <= set(supplied):
                said = " and ".join(f"{option}={value}" for option, value in options.items())
                return [f"use its stand-in, {part} with {said}"]
    return []


def unserved(what: str, kind: object, fault: str) -> UnsupportedModelError:
    """The error for a model type that no adapter supports."""
    return UnsupportedModelError(
        f"no adapter for {what} (model_type {kind!r}): {fault}; supported: {', '.join(FAMILIES)}"
    )


def type_of(model: Any) -> str:
    """The key of `model`'s type in `FAMILIES`, if it is there."""
    config = getattr(model, "config", None)
    return str(getattr(config, "mmg_family", None) or getattr(config, "model_type", None))


def unwrapped(model: Any) -> Any:
    """`model` without a PEFT or torch.compile wrapper."""
    if hasattr(model, "get_base_model"):  # PEFT's own `model` is a wrapper too
        model = model.get_base_model()
    return getattr(model, "_orig_mod", model)  # set by torch.compile


def adapter_for(model: Any) -> Adapter:
    """The adapter for `model`, or for the model that it wraps.

    Raises UnsupportedModelError, naming the supported families, if there is none.
    """
    model = unwrapped(model)
    kind = type_of(model)
    if kind in REFUSED:
        raise unserved(type(model).__name__, kind, REFUSED[kind])
    module, name = FAMILIES.get(kind, FALLBACK).split(":")
    adapter: type[Adapter] = getattr(importlib.import_module(module), name)
    if kind not in FAMILIES and (lacking := adapter.lacking(model)):
        raise unserved(type(model).__name__, kind, f"it has no {lacking}")
    return adapter(model)
