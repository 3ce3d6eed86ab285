"""A video LLM ready to answer: model, processor and adapter behind one small face."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmg_bench.files import digest_of
from mmg_bench.models import llava_video, siglip
from mmg_bench.models.adapter import Adapter, UnsupportedModelError, adapter_for, fresh, unserved
from mmg_bench.models.hub import cached, check_reachable, not_cached, read_config
from mmg_bench.options import check_text, check_whole, device_of, dtype_of, make_current
from mmg_bench.tokens import VideoTokens

if TYPE_CHECKING:
    from mmg_bench.benchmarks.video import Timing

EMBEDDED = Path(__file__).parent / "embedded"
"""Checkpoint folder of the embedded model."""
NEW_TOKENS = 1024
"""Tokens to generate at most where a task does not say: as lmms-eval's own LLaVA models."""
ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager")
_NEEDED = ("config.json", "tokenizer_config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja")
_SETTINGS = (".json", ".jinja", ".model", ".txt")
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_OLDER_NAMES = {
    "processor_config.json": ("preprocessor_config.json", "video_preprocessor_config.json"),
    "chat_template.jinja": ("chat_template.json",),
    "tokenizer.json": ("vocab.json", "tokenizer.model"),
}


class ModelError(RuntimeError):
    """A model that cannot be loaded; the message names what is missing and the remedy."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it runs."""

    name: str
    path: str
    """Hub id, checkpoint folder, or `embedded` for the one inside the package."""
    revision: str | None = None
    """Commit of the hub repository."""
    frames: int = 32
    """Frames sampled uniformly from a video."""
    dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    device: str = "auto"
    """`auto` takes a GPU when there is one."""
    device_map: str | None = None
    """How accelerate spreads the layers over several devices, such as `auto`; None: everything on `device`."""
    siglip: str | None = None
    """Original SigLIP checkpoint of the vision tower: hub id or folder. For methods that need its pooling head or text
    tower (fastvid, cdpruner); read only when one does."""
    siglip_revision: str | None = None
    """Commit of its hub repository."""
    weights: str = "pretrained"
    """`random` builds the architecture alone: of a checkpoint folder, or else the one that is known by `name`."""
    called: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the command that runs calls the options of these names, where not `model.<name>`: for messages alone."""

    def __post_init__(self) -> None:
        if self.weights not in ("pretrained", "random"):
            raise ValueError(f"{self.option('weights')}={self.weights!r}: choose pretrained or random")
        if self.weights == "random" and self.device_map is not None:
            given = f"{self.option('device_map')}={self.device_map!r}"
            raise ValueError(f"{given}: random weights go to one device; set it to null")
        check_text(self.option("name"), self.name)
        check_text(self.option("path"), self.path)
        check_whole(self.option("frames"), self.frames, 1)
        dtype_of(self.option("dtype"), self.dtype)
        if self.attn_implementation not in ATTENTIONS and "/" not in str(self.attn_implementation):  # a hub kernel's
            given = f"{self.option('attn_implementation')}={self.attn_implementation!r}"
            raise ValueError(f"{given}: choose {', '.join(ATTENTIONS)}")

    def option(self, name: str) -> str:
        """What the command that runs calls one of the fields above, for messages."""
        return self.called.get(name, f"model.{name}")

    def described(self) -> dict[str, Any]:
        """The fields that tell one model from another, for provenance."""
        return {name: value for name, value in asdict(self).items() if name != "called"}

    @property
    def torch_device(self) -> torch.device:
        """The device that `auto` stands for, or the one named. Raises ValueError where there is none."""
        return device_of(self.option("device"), self.device)


@dataclass(frozen=True)
class Pixels:
    """Videos as the model's own processor makes them."""

    tensors: dict[str, Tensor]
    """What the vision tower takes, and what the model is told of it (grids, times)."""
    texts: list[str]
    """What stands for each video in a prompt: placeholders, and the words that the model's processor puts there."""


@dataclass(frozen=True)
class Encoded:
    """Videos as the vision tower left them: what pruning sees, and what `generate` takes instead of pixels."""

    tokens: list[VideoTokens]
    arguments: dict[str, Any]
    texts: list[str]
    """As of `Pixels`."""


class VideoLLM:
    """An unmodified transformers video LLM with its processor. Raises ModelError when it cannot be loaded."""

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
        self._siglip: str | None = None  # identifies the SigLIP checkpoint, once it is read

    @cached_property
    def weights(self) -> str:
        """What identifies the weights: the revision of a hub model, a digest of a checkpoint folder, or `random`."""
        if self.spec.weights == "random":
            return "random"
        revision = self.spec.revision or getattr(self.model.config, "_commit_hash", None)
        return _identity(self.spec.name, self.spec.path, revision)

    @cached_property
    def settings(self) -> str | None:
        """Digest of what else lies in a checkpoint folder and decides answers: configuration, templates, tokenizer.

        None for a hub model, all of which its revision identifies.
        """
        folder = folder_of(self.spec.path)
        if folder is None:
            return None
        return digest_of(sorted(file for file in folder.iterdir() if file.suffix in _SETTINGS))

    def prepare(self, needs: Collection[str]) -> None:
        """Load what the fields in `needs` take beyond the model: the SigLIP checkpoint, where the spec names one.

        Raises ModelError when it cannot be loaded.
        """
        source = self.spec.siglip
        if source is None or self._siglip is not None or not siglip.FIELDS & set(needs):
            return
        with _explained("the SigLIP checkpoint", source, folder_of(source), self.spec.option("siglip")):
            attached = siglip.attach(self.model, source, self.processor.tokenizer, self.spec.siglip_revision)
        self._siglip = _identity("siglip", source, attached.revision)

    def weights_for(self, needs: Collection[str]) -> str:
        """As `weights`, with those of the SigLIP checkpoint where one of `needs` comes from it."""
        return f"{self.weights} {self._siglip}" if self._siglip and siglip.FIELDS & set(needs) else self.weights

    def preprocess(self, frames: NDArray[np.uint8], timing: Timing | None = None) -> Pixels:
        """One video `[T, H, W, 3]` as the model's processor makes it, on the model's device; no frame is left out.

        Raises ValueError where the model wants the times of frames and `timing` does not tell them.
        """
        from transformers.video_utils import VideoMetadata

        if timing is not None and timing.fps is not None:
            metadata = VideoMetadata(timing.total, timing.fps, frames_indices=list(timing.indices))
            metadata.duration = timing.total / timing.fps
        elif self.adapter.timed:
            raise ValueError(
                f"models of type {self.model.config.model_type!r} want the times of frames: give preprocess their "
                "timing, of a video that tells its frames a second"
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
        return Pixels(self.adapter.one_video(tensors), [video["replacement"] for video in replaced])

    def encode(self, pixels: Pixels, needs: Collection[str]) -> Encoded:
        """Run the vision tower and projector once, filling the optional fields named in `needs`."""
        return Encoded(*self.adapter.encode(pixels.tensors, needs), pixels.texts)

    def tokenize(self, question: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and what else the model takes of a prompt, `[1, S]` int64 each.

        The prompt is a question about videos by the model's own template; `texts` are what stands for the videos.
        """
        content = [{"type": "video"} for _ in texts] + [{"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, *rest = text.split(self.processor.video_token)
        if len(rest) != len(texts):
            raise ValueError(f"the chat template made {len(rest)} places for {len(texts)} videos: {text!r}")
        prompt = before + "".join(video + after for video, after in zip(texts, rest, strict=True))
        made = self.processor.tokenizer(prompt, return_tensors="pt")
        inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            kinds = self.processor.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(kinds)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def generate(self, inputs: dict[str, Tensor], encoded: Encoded, generation: dict[str, Any]) -> str:
        """The generated text, by the model's own `generate`."""
        until = generation.get("until") or []
        arguments = {k: v for k, v in generation.items() if k in ("max_new_tokens", "num_beams", "do_sample")}
        arguments.setdefault("max_new_tokens", NEW_TOKENS)
        if arguments.get("do_sample"):
            arguments |= {k: generation[k] for k in ("temperature", "top_p") if k in generation}
        else:  # greedy unless the task says otherwise, whatever a checkpoint's own settings say
            arguments |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            ids = self.model.generate(**inputs, **fresh(encoded.arguments), **arguments)
        text: str = self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text.strip()


def folder_of(path: str) -> Path | None:
    """The checkpoint folder, or None for a hub id."""
    if path == "embedded":
        return EMBEDDED
    folder = Path(path).expanduser()
    return folder if folder.exists() or path.startswith((".", "/", "~")) else None


def _identity(name: str, path: str, revision: str | None) -> str:
    folder = folder_of(path)
    if folder is None:
        return f"{path}@{revision}"
    return f"{name}@{digest_of(sorted(folder.glob('*.safetensors')))}"


def _load(spec: ModelSpec) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import cached_file

    folder = folder_of(spec.path)
    if folder is not None:
        check_folder(folder, spec.option("path"))
    if lacking := attention_lacks(spec.attn_implementation):
        given = f"{spec.option('attn_implementation')}={spec.attn_implementation!r}"
        raise ModelError(f"{given} cannot run here, which lacks {lacking}: install it, or take sdpa")
    if spec.weights == "random":
        return _random(spec, folder)
    source = spec.path if folder is None else str(folder)
    if folder is None:  # its kind is seen before gigabytes are fetched
        with _explained(f"model {spec.name!r}", source, folder, spec.option("path")):
            cached_file(source, "config.json", revision=spec.revision)
        bare_adapter(spec)
    with _explained(f"model {spec.name!r}", source, folder, spec.option("path")):
        processor = AutoProcessor.from_pretrained(source, revision=spec.revision)
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
            f"{source} is no whole checkpoint of {type(model).__name__}: {len(missing)} of its tensors are missing, "
            f"such as {', '.join(missing[:3])}; copy the whole folder again, or correct config.json"
        )
    return model, processor


def attention_lacks(name: str) -> str | None:
    """What is missing here for attention of that name; None when it can run."""
    from transformers import utils

    if utils.is_kernels_available():  # transformers takes these from the hub
        return None
    if "/" in name:
        return "the package kernels"
    present = {
        "flash_attention_2": utils.is_flash_attn_2_available,
        "flash_attention_3": utils.is_flash_attn_3_available,
    }
    return None if name not in present or present[name]() else f"what {name} needs: its package, and a GPU"


@contextlib.contextmanager
def _explained(what: str, source: str, folder: Path | None, option: str) -> Iterator[None]:
    """Turn what transformers raises while it loads `what` into ModelError."""
    from huggingface_hub.errors import HFValidationError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, HFValidationError) as error:
        where = "there is no such folder here, and the hub cache" if folder is None else "the folder"
        raise ModelError(
            f"{what} cannot be loaded from {source!r}: {where} lacks something ({_first_line(error)}); "
            f"download it while online (mmg-bench doctor says how), or set {option} to a complete checkpoint folder"
        ) from error
    except ImportError as error:
        raise ModelError(f"{what} needs a package that is not installed: {_first_line(error)}") from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{what} at {source!r} is damaged or of another kind: {_first_line(error)}") from error


def _random(spec: ModelSpec, folder: Path | None) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor

    from mmg_bench.models.geometry import named, random_model

    if folder is None:
        config, processor = named(spec.name)
    else:
        config, processor = (kind.from_pretrained(str(folder)) for kind in (AutoConfig, AutoProcessor))
    dtype = getattr(torch, spec.dtype)
    return random_model(config, dtype, spec.attn_implementation, spec.torch_device), processor


def bare_adapter(spec: ModelSpec) -> Adapter | None:
    """The adapter of the model that is meant, without its weights: what its family can do. Nothing is downloaded.

    None where its configuration is neither on this machine nor known without a download. Raises UnsupportedModelError
    where no adapter serves its family, and ModelError where its configuration is damaged.
    """
    from transformers import AutoModelForImageTextToText

    try:
        config = _config(spec)
        if config is None:
            return None
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        if getattr(config, "mmg_family", None) == llava_video.FAMILY:
            llava_video.attach(model, SimpleNamespace())  # no processor: nothing is prepared
        return adapter_for(model)
    except UnsupportedModelError:
        raise
    except ImportError as error:
        raise ModelError(f"model {spec.name!r} needs a package: {_first_line(error)}") from error
    except Exception as error:  # a wrong entry of a configuration shows as one of many kinds
        raise ModelError(
            f"the configuration of model {spec.name!r} ({spec.path}) is damaged: {_first_line(error)}; copy the "
            f"checkpoint's config.json again, or set {spec.option('path')} to another"
        ) from error


def _config(spec: ModelSpec) -> Any | None:
    """The configuration of the model that is meant, as far as it is known here; of its type, if only that is."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING

    from mmg_bench.models.geometry import GEOMETRIES, TYPES

    folder, file = folder_of(spec.path), None
    if folder is not None:
        file = folder / "config.json"
    elif spec.weights == "random":
        known = GEOMETRIES.get(spec.name)
        return None if known is None else AutoConfig.for_model(**known.config)
    else:
        with contextlib.suppress(ValueError):  # no hub id: loading says so
            file = cached(spec.path, "config.json", spec.revision)
    if file is None or not file.is_file():
        return AutoConfig.for_model(TYPES[spec.path]) if spec.path in TYPES else None
    kind = read_config(file).get("model_type")
    if kind not in SEEING:
        raise unserved(spec.path, kind, "transformers has no model of this type that is shown videos")
    return AutoConfig.from_pretrained(str(file.parent))


def check_hub(spec: ModelSpec, needs: Mapping[str, Collection[str]]) -> None:
    """Raise an error for what would end a command with this model, and is known before it is loaded or downloaded.

    UnsupportedModelError: no adapter serves its family, or the family does not supply what methods need. ModelError:
    a checkpoint of the hub is needed that is not in its cache, and the hub is out of reach (loading would find out
    too, after minutes of trying); or one is damaged.
    `needs`: fields that each method asks for, by its label.
    """
    if (adapter := bare_adapter(spec)) is not None:
        for label, fields in needs.items():
            adapter.check(fields, label, siglip=spec.siglip is not None)
    wanted = []
    if spec.weights != "random":
        wanted.append((f"model {spec.name!r}", spec.path, spec.revision, spec.option("path")))
    if spec.siglip is not None and any(siglip.FIELDS & set(fields) for fields in needs.values()):
        wanted.append(("the SigLIP checkpoint", spec.siglip, spec.siglip_revision, spec.option("siglip")))
        folder = folder_of(spec.siglip)
        if folder is not None and (fault := siglip.lacks(folder)):
            raise ModelError(f"{spec.option('siglip')}={spec.siglip}: {fault}; name the tower's original checkpoint")
    for what, source, revision, option in wanted:
        folder = folder_of(source)
        with _explained(what, source, folder, option):
            if folder is None and not_cached(source, revision):
                check_reachable(source, revision)


def check_folder(folder: Path, option: str) -> None:
    """Raise ModelError, naming what is missing, unless `folder`, which `option` names, is a complete checkpoint."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such checkpoint folder; set {option} to one, or to a hub id")
    missing = [name for name in _NEEDED if not any((folder / n).is_file() for n in (name, *_OLDER_NAMES.get(name, ())))]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ModelError(
            f"{folder} is no complete checkpoint: {', '.join(missing)} missing; copy the whole folder again"
        )


def _first_line(error: Exception) -> str:
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
