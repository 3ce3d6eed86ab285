"""Pruning inside an unmodified transformers model, by hooks on that one instance, all of them removed on exit.

Two hooks do it. One before the multimodal module's forward notes, from `input_ids`, where the visual tokens lie. One
before the language model's forward takes the kept rows of the prompt at prefill, and the matching columns of the
attention mask at every later step. The model's own code does everything else.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.methods.base import Method, Positions, check_choice
from mmg_bench.models.adapter import Adapter, Capture, adapter_for
from mmg_bench.tokens import QUESTION_FIELDS, PrunedTokens, VideoTokens

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class VideoReport:
    """What was done to one video of one prompt."""

    total_tokens: int
    realised_tokens: int
    prune_seconds: float
    notes: dict[str, Any]


@dataclass
class Run:
    """A model in which a method prunes; `report` tells of the last prompt."""

    method: Method
    positions: Positions
    report: list[VideoReport] = field(default_factory=list)
    prompt_tokens: int | None = None
    """Tokens that entered layer 0 at the last prefill: visual, newline and text."""


@dataclass(frozen=True)
class _Kept:
    """What is left of a prompt `[B, S]` after pruning; rows are padded on the left to one length."""

    index: Tensor  # [B, K] columns of the prompt
    real: Tensor  # [B, K] bool; False where a row is padded
    removed: Tensor  # [B] columns taken out
    prompt: int  # S

    def gather(self, values: Tensor) -> Tensor:
        """The kept columns of `values` `[B, S, ...]`."""
        index = self.index.reshape(*self.index.shape, *[1] * (values.dim() - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def mask(self, attention_mask: Tensor) -> Tensor:
        """The kept columns, and all behind the prompt, of a 2-D attention mask `[B, >= S]`."""
        prompt = self.gather(attention_mask[:, : self.prompt]) * self.real.to(attention_mask.dtype)
        return torch.cat([prompt, attention_mask[:, self.prompt :]], dim=1)


@contextmanager
def pruning(
    model: Any,
    method: Method,
    positions: Positions | None = None,
    encoded: Sequence[VideoTokens] | None = None,
) -> Iterator[Run]:
    """Let `model` prune every video of every prompt with `method` while the context is open.

    `positions` overrides the method's own choice: `original` keeps the position ids that the tokens had in the whole
    prompt, `contiguous` renumbers the rest without gaps. `encoded` are the tokens of the prompt's videos, in order,
    where they were encoded beforehand (`Adapter.encode`); each is then pruned once for all prompts, unless the method
    looks at the question.

    Raises UnsupportedModelError for a model (or a need of the method) that no adapter serves, and RuntimeError when
    the model prunes already.
    """
    adapter = adapter_for(model)
    adapter.check(method.needs, method.name)
    run = Run(method, positions or method.positions)
    check_choice(run, "positions", ("original", "contiguous"))
    if model in _ACTIVE:
        raise RuntimeError(f"{type(model).__name__} is being pruned already: leave that context before opening another")
    with ExitStack() as stack:
        captured = None
        if encoded is None:
            captured = stack.enter_context(adapter.capture(method.needs))
        splice = _Splice(adapter, run, encoded, captured)
        for module, hook in ((adapter.multimodal, splice.locate), (adapter.language_model, splice.cut)):
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        _ACTIVE.add(model)
        stack.callback(_ACTIVE.discard, model)
        yield run


class _Splice:
    """The two hooks and what they share."""

    def __init__(
        self, adapter: Adapter, run: Run, encoded: Sequence[VideoTokens] | None, captured: Capture | None
    ) -> None:
        self.adapter, self.run, self.encoded, self.captured = adapter, run, encoded, captured
        self.pruned: dict[int, tuple[PrunedTokens, float]] = {}  # of `encoded`, for methods that ignore the question
        self.visual: Tensor | None = None  # [B, S] bool, between the two hooks of one forward
        self.frames = 0
        self.kept: _Kept | None = None  # of the prompt that is being decoded

    def locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the multimodal module: note where the visual tokens are, if the call holds videos."""
        self.visual = None
        frames = self.adapter.frames(kwargs)
        if frames is None:
            return
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ValueError(
                "a prompt with videos was passed as inputs_embeds: pass input_ids, which tell visual tokens"
            )
        self.visual, self.frames = ids == self.adapter.video_token_id, frames

    def cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the language model: prune at prefill, and follow up at each decoding step."""
        embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        mask, ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
        past = cache.get_seq_length() if cache is not None else 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise ValueError("pruning needs a 2-D attention mask: leave cache_implementation and custom masks unset")
        if self.visual is not None:
            if past:
                raise ValueError("a prompt with videos came with a filled cache: pass the whole conversation at once")
            outcome = self._prune(embeds, self.visual)
            self.kept = outcome[0] if outcome else None
        elif not past:  # a prompt without video
            self.kept = None
        if self.kept is None:
            return None
        kept = self.kept
        batch, width = embeds.shape[:2]
        # columns before this call, had none been removed
        behind = past + kept.prompt - kept.index.shape[1] if past else 0
        if mask is None:  # without one, transformers takes a jump in position ids for a border between sequences
            mask = torch.ones(batch, behind + width, dtype=torch.long, device=embeds.device)
        if ids is None:
            ids = torch.arange(behind, behind + width, device=embeds.device)[None]
        mask, ids = kept.mask(mask), ids.expand(batch, -1)
        if self.visual is None:
            if self.run.positions == "contiguous":
                ids = ids - kept.removed[:, None]
        else:
            assert outcome is not None
            embeds = outcome[1]
            ids = kept.gather(ids) if self.run.positions == "original" else (mask.cumsum(-1) - 1).clamp(min=0)
        return args, {**kwargs, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": ids}

    def _prune(self, embeds: Tensor, visual: Tensor) -> tuple[_Kept, Tensor] | None:
        """Prune every video of a prompt `[B, S, D]`: what is left, and its embeddings `[B, K, D]`.

        None when every token stays, so that dense is exactly the stock model.
        """
        grid, trailing = self.adapter.grid, self.adapter.trailing
        per_video = self.frames * grid[0] * grid[1]
        self.run.report = []
        indices, rows = [], []
        for row, seen in enumerate(visual):
            columns, features, end = [], [], 0
            for span in seen.nonzero().flatten().split(per_video + trailing):
                first, last = int(span[0]), int(span[-1])
                if len(span) != per_video + trailing or last - first + 1 != len(span):
                    raise ValueError(
                        f"prompt {row} holds {len(span)} visual placeholders in columns {first} to {last}, not "
                        f"{per_video + trailing} in a row for {self.frames} frames: use the model's own processor"
                    )
                body = embeds[row, first : first + per_video].unflatten(0, (self.frames, -1))  # [T, N, D]
                pruned, seconds = self._pruned(len(self.run.report), body, embeds[row, last + 1 :])
                self.run.report.append(VideoReport(per_video, len(pruned), seconds, dict(pruned.notes)))
                columns += [torch.arange(end, first, device=embeds.device), first + pruned.positions]
                features += [embeds[row, end:first], pruned.features.to(embeds.dtype)]
                end = first + per_video
            columns.append(torch.arange(end, embeds.shape[1], device=embeds.device))
            features.append(embeds[row, end:])
            indices.append(torch.cat(columns))
            rows.append(torch.cat(features))
        self.run.prompt_tokens = max(len(index) for index in indices)
        if all(video.realised_tokens == per_video for video in self.run.report):
            return None
        index, real = _left_padded(indices)
        removed = embeds.shape[1] - real.sum(1)
        return _Kept(index, real, removed, embeds.shape[1]), _left_padded(rows)[0]

    def _pruned(self, video: int, features: Tensor, text: Tensor) -> tuple[PrunedTokens, float]:
        """Prune the `video`-th video, whose tokens are `features` `[T, N, D]`; also the seconds it took."""
        method = self.run.method
        if video in self.pruned:
            return self.pruned[video]
        if self.encoded is not None:
            tokens = self.encoded[video]
        else:
            assert self.captured is not None
            extras = self.captured.fields(video * self.frames, self.frames)
            tokens = VideoTokens(features, self.adapter.grid, **extras)
        if "query" in method.needs:
            tokens = replace(tokens, query=text)
        started = _now(features)
        pruned = method.prune(tokens)
        outcome = pruned, _now(features) - started
        if self.encoded is not None and not method.needs & QUESTION_FIELDS:
            self.pruned[video] = outcome
        return outcome


def _left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack rows `[K_i, ...]` of unequal length, zeros on the left; also `[B, K]` bool, False where padded."""
    longest = max(len(row) for row in rows)
    stacked = torch.stack([torch.cat([row.new_zeros(longest - len(row), *row.shape[1:]), row]) for row in rows])
    counts = torch.tensor([len(row) for row in rows], device=stacked.device)
    return stacked, torch.arange(longest, device=stacked.device) >= longest - counts[:, None]


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
