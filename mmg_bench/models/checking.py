"""Checks of a model before it is loaded or downloaded: its family, what it lacks, and what cannot run here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mmg_bench.methods.base import Method
from mmg_bench.models import llava_video, siglip
from mmg_bench.models.adapter import Adapter, UnsupportedModelError, adapter_for, unserved
from mmg_bench.models.geometry import GEOMETRIES, is_named, unknown
from mmg_bench.models.hub import cached, check_reachable, not_cached, read_config
from mmg_bench.models.spec import ModelSpec, folder_of

_NEEDED = ("config.json", "tokenizer_config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja")
_OLDER_NAMES = {
    "processor_config.json": ("preprocessor_config.json", "video_preprocessor_config.json"),
    "chat_template.jinja": ("chat_template.json",),
    "tokenizer.json": ("vocab.json", "tokenizer.model"),
}


class ModelError(RuntimeError):
    """The model cannot be loaded; the message names what is missing and the remedy."""


def check_method(adapter: Adapter, method: Method, who: str) -> None:
    """Raise UnsupportedModelError or ValueError if `method`, labelled `who`, cannot run on a loaded model."""
    adapter.check(method.needs, who)
    adapter.stages(method)


def check_model(spec: ModelSpec, methods: Mapping[str, Method]) -> None:
    """Raise an error for problems that would stop a command and are known before the model is loaded or downloaded.

    UnsupportedModelError: no adapter supports its family, or the family does not support what methods need. ValueError:
    a method names layers that the model does not have, or random weights are requested for an unknown architecture.
    ModelError: a hub checkpoint is needed that is not in the cache, and the hub is unreachable (loading would find this
    too, but only after minutes); or a checkpoint is damaged.
    `methods`: the methods to run, by their labels.
    """
    if (bare := bare_adapter(spec)) is not None:
        for label, method in methods.items():
            bare.check(method.needs, label, siglip=spec.siglip is not None)
            bare.stages(method)
    elif spec.weights == "random" and folder_of(spec.path) is None:
        raise ValueError(
            f"{spec.option('weights')}='random': {unknown(spec.name)}; choose one of these, or set "
            f"{spec.option('path')} to a checkpoint folder"
        )
    wanted = []
    if spec.weights != "random":
        wanted.append((f"model {spec.name!r}", spec.path, spec.revision, spec.option("path")))
    if spec.siglip is not None and any(siglip.FIELDS & method.needs for method in methods.values()):
        wanted.append(("the SigLIP checkpoint", spec.siglip, spec.siglip_revision, spec.option("siglip")))
        folder = folder_of(spec.siglip)
        if folder is not None and (fault := siglip.lacks(folder)):
            raise ModelError(f"{spec.option('siglip')}={spec.siglip}: {fault}; name the tower's original checkpoint")
    for what, source, revision, option in wanted:
        with explained(what, source, option):
            if folder_of(source) is None and not_cached(source, revision):
                check_reachable(source, revision)


def bare_adapter(spec: ModelSpec) -> Adapter | None:
    """The adapter of the specified model, without its weights: what its family can do. Nothing is downloaded.

    None if its configuration is neither on this machine nor known without a download. Raises UnsupportedModelError if
    no adapter supports its family, and ModelError if its configuration is damaged or its code needs another package.
    """
    from transformers import AutoModelForImageTextToText

    try:
        if (config := _config(spec)) is None:
            return None
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        if getattr(config, "mmg_family", None) == llava_video.FAMILY:
            llava_video.attach(model, SimpleNamespace())  # no processor: none is needed here
        adapter = adapter_for(model)
        adapter.text_config._attn_implementation = spec.attn_implementation  # not all support methods that weigh it
        return adapter
    except UnsupportedModelError:
        raise
    except ImportError as error:
        raise ModelError(f"model {spec.name!r} needs a package: {_first_line(error)}") from error
    except Exception as error:  # a wrong configuration entry can raise many kinds
        raise ModelError(
            f"the configuration of model {spec.name!r} ({spec.path}) is damaged: {_first_line(error)}; copy the "
            f"checkpoint's config.json again, or set {spec.option('path')} to another checkpoint"
        ) from error


def _config(spec: ModelSpec) -> Any | None:
    """The configuration of the specified model; None if it is not known here."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING

    folder, file = folder_of(spec.path), None
    if is_named(spec):
        return AutoConfig.for_model(**GEOMETRIES[spec.name].config)
    if folder is not None:
        file = folder / "config.json"
    elif spec.weights == "random":
        return None
    else:
        with contextlib.suppress(ValueError):  # not a hub id: loading will report it
            file = cached(spec.path, "config.json", spec.revision)
    if file is None or not file.is_file():
        published = (known.config for known in GEOMETRIES.values() if known.hub == spec.path)
        return next((AutoConfig.for_model(**config) for config in published), None)
    kind = read_config(file).get("model_type")
    if kind not in SEEING:
        raise unserved(spec.path, kind, "transformers has no image-text-to-text model of this type")
    return AutoConfig.from_pretrained(str(file.parent))


def check_folder(folder: Path, option: str) -> None:
    """Raise ModelError, naming what is missing, unless `folder`, set by `option`, is a complete checkpoint."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such checkpoint folder; set {option} to one, or to a hub id")
    missing = [name for name in _NEEDED if not any((folder / n).is_file() for n in (name, *_OLDER_NAMES.get(name, ())))]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ModelError(
            f"{folder} is not a complete checkpoint: {', '.join(missing)} missing; copy the whole folder again"
        )


def attention_lacks(name: str) -> str | None:
    """What is missing on this machine for the named attention implementation; None if it can run."""
    from transformers import utils

    if utils.is_kernels_available():  # transformers loads these from the hub
        return None
    if "/" in name:
        return "the kernels package"
    present = {
        "flash_attention_2": utils.is_flash_attn_2_available,
        "flash_attention_3": utils.is_flash_attn_3_available,
    }
    return None if name not in present or present[name]() else f"what {name} needs (its package and a GPU)"


@contextlib.contextmanager
def explained(what: str, source: str, option: str) -> Iterator[None]:
    """Convert errors that transformers raises while loading `what`, set by `option`, to ModelError."""
    from huggingface_hub.errors import HFValidationError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, HFValidationError) as error:
        where = "no such local folder, and the hub cache" if folder_of(source) is None else "the folder"
        raise ModelError(
            f"{what} cannot be loaded from {source!r}: {where} is incomplete ({_first_line(error)}); "
            f"download it while online (mmg-bench doctor says how), or set {option} to a complete checkpoint folder"
        ) from error
    except ImportError as error:
        raise ModelError(f"{what} needs a package that is not installed: {_first_line(error)}") from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{what} at {source!r} is damaged or of the wrong kind: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
