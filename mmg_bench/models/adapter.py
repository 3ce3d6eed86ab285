"""What the hooks must know of a model family, and which family a model belongs to."""

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
"""`model.config.model_type` -> adapter; `model.config.mmg_family`, where a conversion of ours set it, goes before."""
FALLBACK = "mmg_bench.models.scatter:Scatter"
"""Adapter of all other types, where the model has what it takes."""

_MASKED_OUTSIDE = "it makes the masks of its layers, in which visual tokens may see one another, outside its decoder"
REFUSED = {
    **dict.fromkeys(("gemma4", "gemma4_unified", "molmo2"), _MASKED_OUTSIDE),
    "ernie4_5_vl_moe": "its layers are told which columns are visual, and send those to experts of their own",
    "hy_v4_vl": "each row of a video's tokens ends with one more, which its placeholders count",
    "kimi_k25": "it cuts videos into chunks, each with a grid of its own, and makes one frame of each",
    "qwen4_exp": "its layers read the ids of the tokens beside their embeddings, which pruning does not follow",
}
"""`model_type` -> why `FALLBACK` must not try to serve it."""

WEIGHED = ("sdpa", "eager")
"""Attention implementations that take a mask to be added to the scores."""

_MARK = "mmg_bench_call"  # attribute of what a vision tower returned, and of a tensor in it: which call that was

_USUAL_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}

Layout = tuple[int, int, int]
"""`(T, H, W)` of a video's visual tokens."""


class UnsupportedModelError(ValueError):
    """No adapter knows the model, or the adapter cannot supply what a method needs."""


class Adapter(ABC):
    """One model family: where its parts are and how its visual tokens are laid out. Holds no state of a run."""

    package: ClassVar[str | None] = None
    """What the family's processor needs beyond what is installed with mmg-bench."""
    read: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `VideoTokens` that are read from what the family's tower attends to (`tower.py`)."""

    def __init__(self, model: Any):
        self.model = model

    @property
    def supplies(self) -> frozenset[str]:
        """Optional fields of `VideoTokens` that the adapter can fill for this model."""
        return self.read

    @property
    def from_siglip(self) -> frozenset[str]:
        """Those that it can fill beside, once the model has its original SigLIP checkpoint."""
        return frozenset()

    @property
    def timed(self) -> bool:
        """Whether prompts or position ids hold the times of frames, so that preprocessing must be told them."""
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
        """The attention of a decoder layer, with `q_proj`, `k_proj`, `head_dim` and `scaling`.

        Raises UnsupportedModelError where it may be computed otherwise, by what the layer is made of.
        """
        if not hasattr(layer, "input_layernorm"):
            raise UnsupportedModelError(
                f"layers of {type(layer).__name__} have no norm before their attention, and how they compute it is not "
                "known: choose a method that prunes before the language model, such as mmg_vid"
            )
        return layer.self_attn

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last decoder layer."""
        norm: nn.Module = self.language_model.norm
        return norm

    def normalised(self, layer: Any, hidden: Tensor) -> Tensor:
        """What the attention of a decoder layer gets of the layer's input `[S, D]`."""
        normalised: Tensor = layer.input_layernorm(hidden)
        return normalised

    def mlp(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """The norm behind the attention of a decoder layer, and its MLP: the layer ends with `x + mlp(norm(x))`.

        In place of an MLP whose output passes a norm of its own, that norm.
        Raises UnsupportedModelError where the layer may end otherwise, by what it is made of.
        """
        made_of = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)}
        if made_of != _USUAL_LAYER or getattr(layer, "residual_multiplier", 1) != 1:
            raise UnsupportedModelError(
                f"layers of {type(layer).__name__} cannot be pruned before their MLP: they are not made as usual, of "
                f"{', '.join(sorted(_USUAL_LAYER))} alone; choose a method that prunes between layers, such as fastv"
            )
        return layer.post_attention_layernorm, layer.mlp

    def rotary(self, hidden: Tensor, ids: Tensor) -> Any:
        """The rotary embeddings that the language model makes of position ids `[..., B, S]` for its layers."""
        # of four, the first counts the text, for masks only
        return self.language_model.rotary_emb(hidden, ids[-3:] if ids.dim() == 3 else ids)

    def rows(self, rotary: Any, row: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[S, width]` of one row of those embeddings."""
        cos, sin = rotary
        return cos[row if len(cos) > 1 else 0], sin[row if len(sin) > 1 else 0]

    def next_ids(self, mask: Tensor) -> Tensor:
        """Position ids `[..., B, 1]` of the last of the columns in `mask` `[B, S]`, one that was decoded."""
        return mask.sum(-1, keepdim=True) - 1

    @property
    def deltas(self) -> Tensor | None:
        """`[B, 1]`: by how much position ids of later text differ from its columns, as the model last counted them.

        None where they do not.
        """
        return None

    def column(self, ids: Tensor) -> int | None:
        """Which column of the whole prompt the first of position ids `[..., B, S]` stands for; None if they do not say.

        On a GPU it waits for them.
        """
        return int(ids[0, 0]) if ids.dim() == 2 else None

    @property
    def interleaved(self) -> bool:
        """Whether rotary embeddings turn each number of a head with its neighbour, and not half with half."""
        return False

    @property
    @abstractmethod
    def video_token_id(self) -> int:
        """Id of the placeholder of a visual token."""

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids of the placeholders of all visual tokens, those of images too: what is no text."""
        image = getattr(self.model.config, "image_token_id", None)
        return [self.video_token_id] if image is None else [self.video_token_id, image]

    @property
    def trailing(self) -> int:
        """Placeholders behind the `T * H * W` tokens of a video (newline tokens): never counted, always kept."""
        return 0

    def placeholders(self, layout: Layout) -> int:
        """How many placeholders a video has, those of newlines included."""
        return math.prod(layout) + self.trailing

    def body(self, layout: Layout) -> slice | Tensor:
        """Which of a video's placeholders are its `T * H * W` tokens, in raster order."""
        return slice(math.prod(layout))

    def in_a_row(self, layout: Layout) -> int:
        """How many placeholders of a video stand side by side; other tokens may stand between such runs."""
        return self.placeholders(layout)

    def holds_videos(self, inputs: dict[str, Any]) -> bool:
        """Whether a forward call with these keyword arguments brings videos."""
        return self.encoded(inputs) is not None or inputs.get("pixel_values_videos") is not None

    def encoded(self, inputs: dict[str, Any]) -> Any:
        """What a forward call with these keyword arguments brings instead of pixels; None where it encodes itself."""
        return (inputs.get("mm_encoder_outputs") or {}).get("video")

    def one_video(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the processor made of one video, so laid out that several can be concatenated for `encode`."""
        return tensors

    @abstractmethod
    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        """The videos that were encoded for a forward call with these keyword arguments, in order."""

    def additions(self, kwargs: dict[str, Any], kept: Kept | None) -> tuple[dict[str, Any], list[Tensor]]:
        """What the language model adds to the hidden states behind its first layers, `[B, K, D]` for each of them.

        Taken out of the keyword arguments of its call, and narrowed to the columns that are `kept`.
        """
        return kwargs, []

    @abstractmethod
    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        """Encode what the processor made of one or several videos, once.

        Returns their tokens, with the fields in `needs` filled, and the keyword arguments by which `generate` takes
        the encoded videos instead of pixels (pass them through `fresh`).
        """

    @abstractmethod
    def capture(self, needs: Collection[str]) -> AbstractContextManager[Capture]:
        """A context that records, of each vision-tower call, what the fields in `needs` are made of."""

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """What `model` lacks for this adapter, for an error; None when it has everything."""
        return None

    def check(self, needs: Collection[str], who: str, *, siglip: bool = False) -> None:
        """Raise UnsupportedModelError when the family cannot supply what `who` needs.

        `siglip`: whether the model will have its SigLIP checkpoint, though it is not loaded yet.
        """
        if (lacking := self.lacking_for(needs, who, siglip=siglip)) is not None:
            raise UnsupportedModelError(": ".join((who, *lacking)))

    def lacking_for(self, needs: Collection[str], who: str, *, siglip: bool = False) -> tuple[str, str] | None:
        """What the family cannot supply of what `who` needs, and what to do about it; None when it has everything."""
        supplied = {*self.supplies, "query", *(self.from_siglip if siglip else ())}
        if not (missing := sorted(set(needs) - supplied)):
            return None
        fault = (
            f"models of type {self.model.config.model_type!r} do not supply {', '.join(missing)} (they supply "
            f"{', '.join(sorted(self.supplies)) or 'nothing'})"
        )
        ways = [*_stand_in(who, supplied), *self._ways(missing), "choose another method or model"]
        return fault, ", or ".join(ways)

    def stages(self, method: Method) -> tuple[tuple[int, ...], int | None]:
        """The layers before which `method` prunes, and the one from which on it hides keys.

        Raises UnsupportedModelError where that is not to be had of these layers, and ValueError for layers that the
        model does not have.
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
                f"attn_implementation={' or '.join(WEIGHED)}, or have it do without, as by proportional=False"
            )
        for layer in layers if method.before_mlp else ():
            self.mlp(self.layers[layer - 1])
        return layers, key_layer

    def not_inside(self) -> str | None:
        """Where a method would prune inside the language model, and why it cannot; None where it can.

        To follow the words "<method> prunes".
        """
        kinds = set(getattr(self.text_config, "layer_types", None) or ())
        if kinds - {"full_attention"}:
            return (
                "inside the language model, whose layers must attend to all that is before them: "
                f"this one has {', '.join(sorted(kinds))}"
            )
        if type_of(self.model) not in FAMILIES:  # a wrong guess of how its layers attend would show nowhere
            return (
                f"inside the language model, and how layers of models of type {self.model.config.model_type!r} compute "
                "attention is not known here: that needs an entry in FAMILIES (mmg_bench/models/adapter.py) and its "
                f"tests; supported: {', '.join(FAMILIES)}"
            )
        return None

    def _ways(self, fields: Collection[str]) -> list[str]:
        """How a model of the family comes to supply some fields, in the imperative."""
        return []


def _mark_of(output: Any) -> object:
    """Which call of the tower this is of, or was copied from; None where that is not known."""
    return getattr(output, _MARK, None) or getattr(getattr(output, "last_hidden_state", None), _MARK, None)


class Capture(ABC):
    """What was recorded of the vision tower's last call."""

    mark: object
    """Of what that call returned; None where there is nothing to be told by."""

    def note_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the tower. The model hands on what its tower returned, and completes that in place."""
        self.mark = _mark_of(output) or object()
        for part in (output, getattr(output, "last_hidden_state", None)):
            if isinstance(part, ModelOutput | Tensor):
                setattr(part, _MARK, self.mark)

    def claim(self, encoded: Any, copied: bool) -> None:
        """Before a call that brings encoded videos, or pixels (None): forget what is not of these videos.

        `generate` encodes first, and brings the same again at each step, if it has no cache. `copied`: whether what it
        brings may have been copied to another device, and so have lost its mark; it is then taken to be of this call.
        """
        mark = _mark_of(encoded)
        if encoded is None or (mark is not self.mark if mark is not None else not copied):
            self.forget()

    def forget(self) -> None:
        """Drop what was recorded."""
        self.mark = None

    def fields(self, first: int, count: int) -> dict[str, Tensor]:
        """The optional fields of `VideoTokens` for frames `[first, first + count)` of the call; none, unless said."""
        return {}

    def video(self, features: Tensor, grid: tuple[int, int], first: int) -> VideoTokens:
        """The video whose frames begin with the `first` of the call, all where its `features` `[T, N, D]` are."""
        given = self.fields(first, len(features))
        return VideoTokens(features, grid, **{name: value.to(features.device) for name, value in given.items()})


@contextmanager
def hooked(captured: Capture, handles: Collection[Any]) -> Iterator[Capture]:
    """What hooks record, which are removed at the end: these `handles`."""
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def unseen(needs: Collection[str]) -> RuntimeError:
    """The error for fields of `VideoTokens` of which the vision tower has told nothing."""
    return RuntimeError(
        f"{', '.join(sorted(needs))}: the vision tower did not encode these frames for this call, inside the context: "
        "pass pixels, or the tokens of `Adapter.encode` to `pruning` as `encoded`"
    )


def marked(made: Any, like: Any) -> Any:
    """What was made of a vision tower's output, marked as of the same call."""
    setattr(made, _MARK, _mark_of(like))
    return made


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """A copy of encoded videos for one call of `generate`, which repeats them in place when it searches with beams."""
    outputs = {name: copy.copy(output) for name, output in arguments["mm_encoder_outputs"].items()}
    return {**arguments, "mm_encoder_outputs": outputs}


def _stand_in(who: str, supplied: Collection[str]) -> list[str]:
    """How the registered method labelled `who` does without, given fields that are supplied; empty where it cannot.

    The options stand without a prefix: each command, a table's file and Python have their own way to give them.
    """
    name, parameters = read_label(who)
    for part in (name, *(read_label(value)[0] for value in parameters.values())):  # of a chain, the parts
        for options in method_class(part).stand_ins if part in method_names() else ():
            if get_method(part, **options).needs <= set(supplied):
                said = " and ".join(f"{option}={value}" for option, value in options.items())
                return [f"take its stand-in, {part} with {said}"]
    return []


def unserved(what: str, kind: object, fault: str) -> UnsupportedModelError:
    """The error for a model of a type that no adapter serves."""
    return UnsupportedModelError(
        f"no adapter for {what} (model_type {kind!r}): {fault}; supported: {', '.join(FAMILIES)}"
    )


def type_of(model: Any) -> str:
    """What `FAMILIES` calls the type of `model`, if it is there."""
    config = getattr(model, "config", None)
    return str(getattr(config, "mmg_family", None) or getattr(config, "model_type", None))


def unwrapped(model: Any) -> Any:
    """`model`, or what it wraps: PEFT's models, compiled ones."""
    if hasattr(model, "get_base_model"):  # PEFT's own `model` is a wrapper, too
        model = model.get_base_model()
    return getattr(model, "_orig_mod", model)  # of torch.compile


def adapter_for(model: Any) -> Adapter:
    """The adapter of `model`, or of what it wraps.

    Raises UnsupportedModelError, naming the supported families, when there is none.
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
