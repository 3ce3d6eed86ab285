"""Which model a command uses, and how it runs: the configuration, before any of the model is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmg_bench.options import check_number, check_text, check_whole, device_of, dtype_of

if TYPE_CHECKING:
    import torch

EMBEDDED = Path(__file__).parent / "embedded"
"""Checkpoint folder of the embedded model."""
PIXEL_BOUNDS = ("min_pixels", "max_pixels")
"""Options for the size of frames, for processors that do not resize all frames to one size."""
TOLD_IF_SET = ("fps", *PIXEL_BOUNDS)
"""Options that most models do not have: provenance and record keys contain them only if they are set."""
ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager")


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
    fps: float | None = None
    """Frames per second to sample, `frames` at most; None: always `frames`, however long the video is."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Least and most pixels, as the model's video processor counts them: per frame (Qwen2-VL, Qwen2.5-VL, EXAONE), for
    all frames together (Qwen3-VL, Qwen3.5, GLM), or least per frame and most for all frames together (VideoLLaMA3).
    None: the checkpoint's own values."""
    dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    device: str = "auto"
    """`auto` uses a GPU if there is one."""
    device_map: str | None = None
    """How accelerate spreads the layers over several devices, such as `auto`; None: everything on `device`."""
    siglip: str | None = None
    """Original SigLIP checkpoint of the vision tower: hub id or folder. For methods that need its pooling head or text
    tower (cdpruner, fastvid, tango); read only when one does."""
    siglip_revision: str | None = None
    """Commit of its hub repository."""
    weights: str = "pretrained"
    """`random` builds only the architecture: from a checkpoint folder, if there is one, or else the one of `name`."""
    called: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Names that the running command uses for options, if not `model.<name>`; only for messages.

    Not compared, and so not a setting: neither an option of a command nor part of `described`.
    """

    def __post_init__(self) -> None:
        if self.weights not in ("pretrained", "random"):
            raise ValueError(f"{self.option('weights')}={self.weights!r}: choose pretrained or random")
        if self.weights == "random" and self.device_map is not None:
            given = f"{self.option('device_map')}={self.device_map!r}"
            raise ValueError(f"{given}: random weights go to one device; set it to null")
        check_text(self.option("name"), self.name)
        check_text(self.option("path"), self.path)
        check_whole(self.option("frames"), self.frames, 1)
        if self.fps is not None:
            check_number(self.option("fps"), self.fps)
            if not self.fps:
                raise ValueError(f"{self.option('fps')}={self.fps}: it must be above 0; null samples `frames` frames")
        for name in PIXEL_BOUNDS:
            if getattr(self, name) is not None:
                check_whole(self.option(name), getattr(self, name), 1)
        dtype_of(self.option("dtype"), self.dtype)
        if self.attn_implementation not in ATTENTIONS and "/" not in str(self.attn_implementation):  # a hub kernel
            given = f"{self.option('attn_implementation')}={self.attn_implementation!r}"
            raise ValueError(f"{given}: choose {', '.join(ATTENTIONS)}")

    def option(self, name: str) -> str:
        """The running command's name for one of the fields above, for messages."""
        return self.called.get(name, f"model.{name}")

    def described(self) -> dict[str, Any]:
        """The fields that distinguish models, for provenance; those of TOLD_IF_SET only if they are set."""
        always = (f.name for f in fields(self) if f.compare and f.name not in TOLD_IF_SET)
        return {name: getattr(self, name) for name in always} | self.set_options

    @property
    def set_options(self) -> dict[str, Any]:
        """Those of TOLD_IF_SET that are set."""
        return {name: value for name in TOLD_IF_SET if (value := getattr(self, name)) is not None}

    @property
    def torch_device(self) -> torch.device:
        """The device that `auto` stands for, or the one named. Raises ValueError if it does not exist."""
        return device_of(self.option("device"), self.device)


def folder_of(path: str) -> Path | None:
    """The checkpoint folder, or None for a hub id."""
    if path == "embedded":
        return EMBEDDED
    folder = Path(path).expanduser()
    return folder if folder.exists() or path.startswith((".", "/", "~")) else None
