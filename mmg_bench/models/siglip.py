"""The parts of SigLIP that a video LLM's checkpoint omits, from the original SigLIP checkpoint.

transformers checkpoints such as LLaVA-OneVision's contain the tower, but neither its pooling head nor the text tower.
FastVID needs the head, CDPruner the space that images and texts share. Both use the original, frozen, as FastVID's own
code does: the head, after its own layer norm, reads the hidden states of the video LLM's tower.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.hub import read_config

TOWER_FIELDS = frozenset({"probe_attention", "frame_features", "joint_features"})
"""Optional fields of `VideoTokens` that the head computes from the tower's hidden states."""
FIELDS = TOWER_FIELDS | {"joint_query"}
"""All fields that an attached checkpoint supplies."""
_USUAL, _WIDTH = "google/siglip-so400m-patch14-384", 1152
"""The checkpoint from which most towers were made, and its width."""

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Siglip] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Siglip:
    """Pooling head and text tower of a SigLIP checkpoint, frozen."""

    norm: Any
    """Layer norm after the last layer; in float32, like the head, so that attention weights do not tie."""
    head: Any
    text_tower: Any
    tokenizer: Any
    """Tokenizer of the text tower."""
    reader: Any
    """Tokenizer of the language model, used to decode the question to text; None if it was not given."""

    def modules(self, needs: Collection[str]) -> list[nn.Module]:
        """The modules of the checkpoint that supply some fields."""
        head = [self.norm, self.head] if TOWER_FIELDS & set(needs) else []
        return head + ([self.text_tower] if "joint_query" in needs else [])

    @torch.no_grad()
    def tower_field(self, name: str, hidden: Tensor) -> Tensor:
        """The field `name` of frames with hidden states `hidden` `[F, P, C]`, per patch or per frame; float32.

        `frame_features` `[F, C]`: the head's output. `probe_attention` `[F, P]`: attention of its probe to each patch,
        mean over heads. `joint_features` `[F, P, C]`: the head's output for each patch alone, just as CDPruner applies
        CLIP's projection to each patch.
        """
        x = self.norm(hidden.float())
        if name == "frame_features":
            return self.head(x)
        if name == "probe_attention":
            probe = self.head.probe.expand(len(x), -1, -1)
            return self.head.attention(probe, x, x)[1].squeeze(1)
        return self.head(x.flatten(0, 1).unsqueeze(1)).unflatten(0, x.shape[:2])

    def question(self, ids: Tensor) -> str:
        """The text of the question, from the language model's token ids after the video, `[L]`.

        It ends at the first special token after it, so that it excludes what the chat template adds.
        """
        if self.reader is None:
            raise ValueError(
                "the question cannot be decoded: pass the language model's tokenizer to mmg_bench.models.siglip.attach"
            )
        special = {i for i, token in self.reader.added_tokens_decoder.items() if token.special}
        for is_special, words in groupby(ids.tolist(), special.__contains__):
            if not is_special and (text := self.reader.decode(list(words)).strip()):
                return text
        return ""

    @torch.no_grad()
    def joint_query(self, ids: Tensor) -> Tensor:
        """The question in the joint space, `[M, C]`, from the language model's token ids after the video, `[L]`.

        The ids are best on the host, which avoids a GPU sync; the result is on the text tower's device.
        As in CDPruner, a text longer than the text tower's window is split into M windows. The last one is padded
        without a mask, as in SigLIP's training.
        """
        window = self.text_tower.config.max_position_embeddings
        words: list[int] = self.tokenizer(self.question(ids))["input_ids"]
        words += [self.tokenizer.pad_token_id] * (-len(words) % window)
        batch = torch.tensor(words).view(-1, window).to(self.text_tower.device, non_blocking=True)
        return self.text_tower(input_ids=batch).pooler_output


def to_attach(width: int) -> str:
    """For an error message: which checkpoint a vision tower of some width needs."""
    if width == _WIDTH:
        return f"give the model its original SigLIP checkpoint (option `siglip`, such as {_USUAL})"
    return "give the model the SigLIP checkpoint that its tower comes from, if there is one (option `siglip`)"


def lacks(folder: Path) -> str | None:
    """Why a folder is not a SigLIP checkpoint, judged by names and configuration; None if it seems to be one."""
    if not folder.is_dir():
        return f"{folder}: no such checkpoint folder"
    if not any(folder.glob("*.safetensors")):
        return "the folder holds no weights"
    try:
        kind = read_config(folder / "config.json").get("model_type")
    except ValueError as error:
        return str(error)
    return None if kind == "siglip" else f"it is a checkpoint of type {kind!r}, not siglip"


def attach(model: nn.Module, source: str, reader: Any = None, revision: str | None = None) -> Siglip:
    """Load a SigLIP checkpoint for a LLaVA-OneVision `model`, which stays unchanged.

    `source` is a hub id, with `revision` as its commit, or a folder. From then on, `FIELDS` are supplied for this
    model. `reader` is the language model's tokenizer (`processor.tokenizer`), needed only for `joint_query`.
    Raises ValueError if the checkpoint is incomplete or of another width, OSError if it cannot be read, and
    UnsupportedModelError for a model family that uses no SigLIP checkpoint.
    """
    from transformers import AutoTokenizer, SiglipModel

    adapter = adapter_for(model)
    if not adapter.from_siglip:
        raise UnsupportedModelError(f"{type(adapter.model).__name__} does not use a separate SigLIP checkpoint")
    tower: Any = adapter.model.model.vision_tower
    siglip, info = SiglipModel.from_pretrained(source, revision=revision, dtype=tower.dtype, output_loading_info=True)
    if info["missing_keys"]:  # transformers would fill them with random numbers
        raise ValueError(
            f"{source} is not a complete SigLIP checkpoint: it lacks {', '.join(sorted(info['missing_keys'])[:3])}"
        )
    siglip.eval().requires_grad_(False)
    wide, wanted = siglip.config.vision_config.hidden_size, tower.config.hidden_size
    if wide != wanted:
        raise ValueError(
            f"the vision tower of {source} has width {wide}, but the model's has {wanted}: use the SigLIP checkpoint "
            "that the model's tower comes from"
        )
    attached = Siglip(
        norm=siglip.vision_model.post_layernorm.to(tower.device, torch.float32),
        head=siglip.vision_model.head.to(tower.device, torch.float32),
        text_tower=siglip.text_model.to(tower.device),
        tokenizer=AutoTokenizer.from_pretrained(source, revision=revision),
        reader=reader,
    )
    _ATTACHED[adapter.model] = attached
    return attached


def attached(model: nn.Module) -> Siglip | None:
    """The SigLIP parts attached to `model`, if any."""
    return _ATTACHED.get(model)
