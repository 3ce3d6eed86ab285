"""Pruning inside an unmodified transformers model, by hooks on that one instance, all of them removed on exit.

Two hooks do it. One before the multimodal module's forward notes, from `input_ids`, where the visual tokens lie. One
before the language model's forward takes the kept rows of the prompt at prefill, and the matching columns of the
attention mask at every later step. Methods that prune inside the language model get more (`inside.py`). The model's own
code does everything else.
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
from mmg_bench.models import siglip
from mmg_bench.models.adapter import Adapter, Capture, adapter_for
from mmg_bench.models.inside import Inside, Span
from mmg_bench.models.kept import Kept, left_padded
from mmg_bench.tokens import QUESTION_FIELDS, PrunedTokens, VideoTokens

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class VideoReport:
    """What was done to one video of one prompt."""

    total_tokens: int
    realised_tokens: int
    """Visual tokens that enter layer 0."""
    prune_seconds: float
    """Spent before layer 0; what a method does inside the language model is part of its forward."""
    notes: dict[str, Any]
    stages: tuple[tuple[int, int], ...] = ()
    """`(layer, visual tokens that enter it)` of each later layer before which the method pruned."""


@dataclass
class Run:
    """A model in which a method prunes; `report` tells of the last prompt."""

    method: Method
    positions: Positions
    report: list[VideoReport] = field(default_factory=list)
    prompt_tokens: int | None = None
    """Tokens that entered layer 0 at the last prefill: visual, newline and text."""

    @property
    def stages(self) -> list[list[int]]:
        """`[layer, visual tokens that enter it]` of all videos of the last prompt together."""
        return [[same[0][0], sum(n for _, n in same)] for same in zip(*(v.stages for v in self.report), strict=True)]


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
        if splice.inside.needed:
            splice.inside.install(stack)
        _ACTIVE.add(model)
        stack.callback(_ACTIVE.discard, model)
        yield run


class _Splice:
    """The two hooks and what they share."""

    def __init__(
        self, adapter: Adapter, run: Run, encoded: Sequence[VideoTokens] | None, captured: Capture | None
    ) -> None:
        self.adapter, self.run, self.encoded, self.captured = adapter, run, encoded, captured
        self.inside = Inside(adapter, run.method, run.positions, self._note_stage)
        self.pruned: dict[int, tuple[PrunedTokens, float]] = {}  # of `encoded`, for methods that ignore the question
        self.visual: Tensor | None = None  # [B, S] bool, between the two hooks of one forward
        self.ids: Tensor | None = None  # [B, S], likewise
        self.frames = 0
        self.kept: Kept | None = None  # of the prompt that is being decoded
        self.active = False  # whether that prompt holds videos that the method prunes

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
        self.ids, self.visual, self.frames = ids, ids == self.adapter.video_token_id, frames

    def cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the language model: prune at prefill, and follow up at each decoding step."""
        embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        mask, ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
        past = cache.get_seq_length() if cache is not None else 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise ValueError("pruning needs a 2-D attention mask: leave cache_implementation and custom masks unset")
        spans: list[Span] | None = None
        if self.visual is not None:
            if past:
                raise ValueError("a prompt with videos came with a filled cache: pass the whole conversation at once")
            self.kept, embeds, spans = self._prune(embeds, self.visual)
            self.active = self.kept is not None or self.inside.needed
        elif not past:  # a prompt without video
            self.active = False
        elif self.active:
            self.kept = self.inside.settled(self.kept)
        if not self.active:
            self.inside.stop()
            return None
        batch, width = kwargs["inputs_embeds"].shape[:2]
        # columns before this call, had none been removed
        behind = past + (self.kept.removed if self.kept is not None and past else 0)
        if mask is None:  # without one, transformers takes a jump in position ids for a border between sequences
            mask = torch.ones(batch, behind + width, dtype=torch.long, device=embeds.device)
        if ids is None:
            ids = torch.arange(behind, behind + width, device=embeds.device)[None]
        ids = ids.expand(*ids.shape[:-2], batch, -1)
        if self.kept is not None:
            mask = self.kept.mask(mask)
            ids = self.kept.ids(ids, mask, prefill=spans is not None)
        self.inside.begin(mask, ids, spans)
        return args, {**kwargs, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": ids}

    def _note_stage(self, video: int, layer: int, tokens: int) -> None:
        report = self.run.report[video]
        self.run.report[video] = replace(report, stages=(*report.stages, (layer, tokens)))

    def _prune(self, embeds: Tensor, visual: Tensor) -> tuple[Kept | None, Tensor, list[Span]]:
        """Prune every video of a prompt `[B, S, D]`: what is left, its embeddings `[B, K, D]`, and its videos in them.

        Where every token stays, `None` and the very same embeddings, so that dense is exactly the stock model.
        """
        assert self.ids is not None
        grid, trailing = self.adapter.grid, self.adapter.trailing
        per_video = self.frames * grid[0] * grid[1]
        self.run.report = []
        indices, rows, spans = [], [], []
        for row, seen in enumerate(visual):
            columns, features, end, width = [], [], 0, 0
            for span in seen.nonzero().flatten().split(per_video + trailing):
                first, last = int(span[0]), int(span[-1])
                if len(span) != per_video + trailing or last - first + 1 != len(span):
                    raise ValueError(
                        f"prompt {row} holds {len(span)} visual placeholders in columns {first} to {last}, not "
                        f"{per_video + trailing} in a row for {self.frames} frames: use the model's own processor"
                    )
                body = embeds[row, first : first + per_video].unflatten(0, (self.frames, -1))  # [T, N, D]
                text = embeds[row, last + 1 :], self.ids[row, last + 1 :]
                pruned, seconds = self._pruned(len(self.run.report), body, *text)
                self.run.report.append(VideoReport(per_video, len(pruned), seconds, dict(pruned.notes)))
                columns += [torch.arange(end, first, device=embeds.device), first + pruned.positions]
                features += [embeds[row, end:first], pruned.features.to(embeds.dtype)]
                start = width + first - end
                width = start + len(pruned)
                spans.append(Span(row, start, width + trailing, pruned.positions, per_video, pruned.state))
                end = first + per_video
            columns.append(torch.arange(end, embeds.shape[1], device=embeds.device))
            features.append(embeds[row, end:])
            indices.append(torch.cat(columns))
            rows.append(torch.cat(features))
        self.run.prompt_tokens = max(len(index) for index in indices)
        if all(video.realised_tokens == per_video for video in self.run.report):
            return None, embeds, spans
        kept = Kept.of(indices, embeds.shape[1], self.run.positions == "contiguous")
        padding = [kept.index.shape[1] - len(index) for index in indices]
        spans = [replace(s, start=s.start + padding[s.row], end=s.end + padding[s.row]) for s in spans]
        return kept, left_padded(rows)[0], spans

    def _pruned(self, video: int, features: Tensor, text: Tensor, ids: Tensor) -> tuple[PrunedTokens, float]:
        """Prune the `video`-th video, whose tokens are `features` `[T, N, D]`; also the seconds it took.

        `text` `[L, D]` and `ids` `[L]` are what follows it in the prompt.
        """
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
        if "joint_query" in method.needs and (source := siglip.attached(self.adapter.model)) is not None:
            tokens = replace(tokens, joint_query=source.joint_query(ids))
        started = _now(features)
        pruned = method.prune(tokens)
        outcome = pruned, _now(features) - started
        if self.encoded is not None and not method.needs & QUESTION_FIELDS:
            self.pruned[video] = outcome
        return outcome


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
