"""A video LLM ready to answer: model, processor and adapter behind one small interface."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mmg_bench.files import digest_of
from mmg_bench.models import llava_video, siglip
from mmg_bench.models.adapter import Adapter, adapter_for, fresh
from mmg_bench.models.checking import ModelError, attention_lacks, bare_adapter, check_folder, explained
from mmg_bench.models.geometry import is_named, named, random_model, unknown
from mmg_bench.models.hub import commit_of, not_cached
from mmg_bench.models.pixels import settle_frames
from mmg_bench.models.spec import ModelSpec, folder_of
from mmg_bench.options import make_current
from mmg_bench.tokens import VideoTokens

if TYPE_CHECKING:
    from mmg_bench.benchmarks.video import Timing

NEW_TOKENS = 1024
"""Maximum number of tokens to generate if a task sets none, as in lmms-eval's own LLaVA models."""
_SETTINGS = (".json", ".jinja", ".model", ".txt")
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Pixels:
    """Videos as processed by the model's own processor."""

    tensors: dict[str, Tensor]
    """The vision tower's input, and what the model needs to know about it (grids, times)."""
    texts: list[str]
    """The text that represents each video in a prompt: placeholders, and the words that the processor adds."""
    times: list[Tensor | None]
    """When each frame of each video is shown, in seconds, float32 on the model's device; None where it is not known."""


@dataclass(frozen=True)
class Encoded:
    """Videos encoded by the vision tower: the input of pruning, and what `generate` takes instead of pixels."""

    tokens: list[VideoTokens]
    arguments: dict[str, Any]
    texts: list[str]
    """As in `Pixels`."""


class VideoLLM:
    """An unmodified transformers video LLM with its processor. Raises ModelError if it cannot be loaded."""

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        self.device = spec.torch_device
        make_current(self.device)
        self.model, self.processor = _load(spec)
        if spec.device_map is None:
            self.model.to(self.device)
        self.model.eval()
        if getattr(self.model.config, "mmg_family", None) == llava_video.FAMILY:
            llava_video.attach(self.model, self.processor)
        self.adapter: Adapter = adapter_for(self.model)
        self._siglip: str | None = None  # identifies the SigLIP checkpoint, once loaded

    @cached_property
    def weights(self) -> str:
        """Identifier of the weights: the commit of a hub model, a digest of a checkpoint folder, or `random`."""
        if self.spec.weights == "random":
            return "random"
        return _identity(self.spec.name, self.spec.path, self.spec.revision)

    @cached_property
    def settings(self) -> str | None:
        """`settings_of` for this model."""
        return settings_of(self.spec)

    def prepare(self, needs: Collection[str]) -> None:
        """Load what the fields in `needs` require beyond the model: the SigLIP checkpoint, if the spec names one.

        Raises ModelError if it cannot be loaded.
        """
        source = self.spec.siglip
        if source is None or self._siglip is not None or not siglip.FIELDS & set(needs):
            return
        with explained("the SigLIP checkpoint", source, self.spec.option("siglip")):
            siglip.attach(self.model, source, self.processor.tokenizer, self.spec.siglip_revision)
        self._siglip = _identity("siglip", source, self.spec.siglip_revision)

    def weights_for(self, needs: Collection[str]) -> str:
        """As `weights`, plus the identifier of the SigLIP checkpoint if one of `needs` comes from it."""
        return f"{self.weights} {self._siglip}" if self._siglip and siglip.FIELDS & set(needs) else self.weights

    def preprocess(self, frames: NDArray[np.uint8], timing: Timing | None = None) -> Pixels:
        """Process one video `[T, H, W, 3]` with the model's processor, on the model's device; no frame is dropped.

        Raises ValueError if the model needs the times of frames and `timing` does not give them.
        """
        from transformers.video_utils import VideoMetadata

        times = None
        if timing is not None and timing.fps is not None:
            metadata = VideoMetadata(timing.total, timing.fps, frames_indices=list(timing.indices))
            metadata.duration = timing.total / timing.fps
            times = torch.tensor(metadata.timestamps, dtype=torch.float32, device=self.device)
        elif self.adapter.timed:
            raise ValueError(
                f"models of type {self.model.config.model_type!r} need the times of frames: pass `preprocess` the "
                "timing of a video whose frame rate is known"
            )
        else:
            metadata = VideoMetadata(len(frames))
        # [T, 3, H, W]: channels first, so that no processor has to guess
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        made = self.processor(
            text=[self.processor.video_token],
            videos=[video],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_text_replacement_offsets=True,
            return_tensors="pt",
        )
        (replaced,) = made.pop("text_replacement_offsets")
        tensors = {k: v.to(self.device) for k, v in made.items() if isinstance(v, Tensor) and k not in _OF_TEXT}
        texts = [video["replacement"] for video in replaced]
        return Pixels(self.adapter.one_video(tensors), texts, [times])

    def encode(self, pixels: Pixels, needs: Collection[str]) -> Encoded:
        """Run the vision tower and projector once, filling `times` and the optional fields named in `needs`."""
        videos, arguments = self.adapter.encode(pixels.tensors, needs)
        timed = zip(videos, pixels.times, strict=True)
        return Encoded([replace(video, times=_of_frames(video, t)) for video, t in timed], arguments, pixels.texts)

    def tokenize(self, question: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and any other prompt inputs of the model, `[1, S]` int64 each.

        The prompt is a question about videos in the model's own template; `texts` represent the videos.
        """
        content = [{"type": "video"} for _ in texts] + [{"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, *rest = text.split(self.processor.video_token)
        if len(rest) != len(texts):
            raise ValueError(f"the chat template made {len(rest)} placeholders for {len(texts)} videos: {text!r}")
        prompt = before + "".join(video + after for video, after in zip(texts, rest, strict=True))
        made = self.processor.tokenizer(prompt, return_tensors="pt")
        inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            kinds = self.processor.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(kinds)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def generate(self, inputs: dict[str, Tensor], encoded: Encoded, generation: dict[str, Any]) -> str:
        """The text generated by the model's own `generate`."""
        until = generation.get("until") or []
        arguments = {k: v for k, v in generation.items() if k in ("max_new_tokens", "num_beams", "do_sample")}
        arguments.setdefault("max_new_tokens", NEW_TOKENS)
        if arguments.get("do_sample"):
            arguments |= {k: generation[k] for k in ("temperature", "top_p") if k in generation}
        else:  # greedy unless the task says otherwise, whatever a checkpoint's own settings say
            arguments |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.no_grad():  # outside inference mode, torch reports in-place changes of tensors made inside it
            ids = self.model.generate(
                **inputs, **fresh(encoded.arguments), **arguments, logits_processor=[_refuse_what_is_no_number]
            )
        text: str = self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text.strip()


def _of_frames(video: VideoTokens, times: Tensor | None) -> Tensor | None:
    """`VideoTokens.times`, from those of the sampled frames: if several make one of the video's, evenly spaced in them.

    As in Tango's code for Qwen2.5-VL.
    """
    if times is None:
        return None
    times = times.to(video.features.device)  # a model that is spread over devices may encode on another one
    if len(times) == video.frames:
        return times
    return functional.interpolate(times[None, None], video.frames, mode="linear", align_corners=True)[0, 0]


def settings_of(spec: ModelSpec) -> str | None:
    """Digest of the other files in a checkpoint folder that affect answers: configuration, templates, tokenizer.

    None for a hub model, which its revision identifies completely, and for one that is built by its name.
    """
    folder = folder_of(spec.path)
    if folder is None or not folder.is_dir() or is_named(spec):
        return None
    return digest_of(sorted(file for file in folder.iterdir() if file.suffix in _SETTINGS))


def _refuse_what_is_no_number(ids: Tensor, logits: Tensor) -> Tensor:
    """Logits processor that changes nothing and raises RuntimeError for NaN and plus infinity.

    `generate` would turn NaN into an ordinary token, and so into a wrong answer. Minus infinity rules a token out.
    """
    if not bool((logits < math.inf).all()):
        raise RuntimeError(
            "the model's logits are NaN or infinite: if it runs in half precision, try model.dtype=float32; otherwise "
            "its weights may be damaged"
        )
    return logits


def _identity(name: str, path: str, revision: str | None) -> str:
    folder = folder_of(path)
    if folder is None:
        return f"{path}@{commit_of(path, revision)}"
    return f"{name}@{digest_of(sorted(folder.glob('*.safetensors')))}"


def _load(spec: ModelSpec) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import cached_file

    folder, what, option = folder_of(spec.path), f"model {spec.name!r}", spec.option("path")
    if folder is not None and not is_named(spec):
        check_folder(folder, option)
    if lacking := attention_lacks(spec.attn_implementation):
        given = f"{spec.option('attn_implementation')}={spec.attn_implementation!r}"
        raise ModelError(f"{given}: this machine lacks {lacking}; install it, or use sdpa")
    if spec.weights == "random":
        return _random(spec)
    source = spec.path if folder is None else str(folder)
    if folder is None:
        with explained(what, source, option):
            if absent := not_cached(source, spec.revision):
                cached_file(source, "config.json", revision=spec.revision)
        if absent:  # checks the model type before gigabytes are downloaded
            bare_adapter(spec)
    with explained(what, source, option):
        processor = AutoProcessor.from_pretrained(source, revision=spec.revision)
    settle_frames(processor, spec)  # before gigabytes are loaded
    with explained(what, source, option):
        model, loaded = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attn_implementation,
            device_map=spec.device_map,
            output_loading_info=True,
        )
    if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f"{source} is not a complete checkpoint of {type(model).__name__}: {len(missing)} of its tensors are "
            f"missing, such as {', '.join(missing[:3])}; copy the whole folder again, or correct config.json"
        )
    return model, processor


def _random(spec: ModelSpec) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor

    folder, by_name = folder_of(spec.path), is_named(spec)
    if folder is None and not by_name:
        raise ModelError(unknown(spec.name))
    with explained(f"model {spec.name!r}", spec.path, spec.option("path")):
        if by_name:
            config, processor = named(spec.name)
        else:
            config, processor = (kind.from_pretrained(str(folder)) for kind in (AutoConfig, AutoProcessor))
    settle_frames(processor, spec)
    dtype = getattr(torch, spec.dtype)
    return random_model(config, dtype, spec.attn_implementation, spec.torch_device), processor
