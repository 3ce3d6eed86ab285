"""Which model a command means, and how it runs: as configured, before anything of it is looked at."""

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
"""Options of how large frames are made, where a processor does not make all of one size."""
TOLD_IF_SET = ("fps", *PIXEL_BOUNDS)
"""Options that most models do not have: provenance and keys of records hold them only where they are set."""
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
    """Frames a second to sample, no more than `frames`; None: `frames` of any video, however long it is."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Least and most pixels, as the model's video processor counts them: of a frame (Qwen2-VL, Qwen2.5-VL, EXAONE), of
    all frames together (Qwen3-VL, Qwen3.5, GLM), or one each (VideoLLaMA3). None: as the checkpoint has it."""
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
    """`random` builds the architecture alone: of a checkpoint folder, if there is one, or else that known by `name`."""
    called: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the command that runs calls the options of these names, where not `model.<name>`: for messages alone.

    Not compared, and so no setting: neither an option of a command nor `described`.
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
        if self.attn_implementation not in ATTENTIONS and "/" not in str(self.attn_implementation):  # a hub kernel's
            given = f"{self.option('attn_implementation')}={self.attn_implementation!r}"
            raise ValueError(f"{given}: choose {', '.join(ATTENTIONS)}")

    def option(self, name: str) -> str:
        """What the command that runs calls one of the fields above, for messages."""
        return self.called.get(name, f"model.{name}")

    def described(self) -> dict[str, Any]:
        """The fields that tell one model from another, for provenance; those of TOLD_IF_SET only where they are set."""
        always = (f.name for f in fields(self) if f.compare and f.name not in TOLD_IF_SET)
        return {name: getattr(self, name) for name in always} | self.set_options

    @property
    def set_options(self) -> dict[str, Any]:
        """Those of TOLD_IF_SET that are set."""
        return {name: value for name in TOLD_IF_SET if (value := getattr(self, name)) is not None}

    @property
    def torch_device(self) -> torch.device:
        """The device that `auto` stands for, or the one named. Raises ValueError where there is none."""
        return device_of(self.option("device"), self.device)


def folder_of(path: str) -> Path | None:
    """The checkpoint folder, or None for a hub id."""
    if path == "embedded":
        return EMBEDDED
    folder = Path(path).expanduser()
    return folder if folder.exists() or path.startswith((".", "/", "~")) else None
