"""What the hooks (listed in `hooks.py`) do: prune a prompt, and adjust later calls to the pruned prompt."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from mmg_bench.contract import ContractError, Faults, check_kind, check_values
from mmg_bench.elapsed import Elapsed
from mmg_bench.models import siglip
from mmg_bench.models.adapter import Adapter, Capture, Layout
from mmg_bench.models.attend import textless, unhooked
from mmg_bench.models.caches import CACHE, cache_of, is_static
from mmg_bench.models.inside import Inside, untraced
from mmg_bench.models.kept import Kept
from mmg_bench.models.places import Place, Row, places, shifted
from mmg_bench.models.prompt import Prompt, Span
from mmg_bench.models.run import Run, VideoReport
from mmg_bench.tokens import QUESTION_FIELDS, PrunedTokens, VideoTokens

_NUMBERS = itertools.count()  # of contexts
PROMPT = "mmg_bench_prompt"
"""Attribute of a cache that holds its `Prompt`."""
_Outcome = tuple[PrunedTokens, Elapsed, bool]  # kept tokens, time, and whether these are all tokens, untouched
_WHOLE = (
    "pass the whole conversation at once, with its videos and without a cache, or only the new tokens, step by step"
)


def _has_pixels(kwargs: dict[str, Any]) -> bool:
    """Whether a call with these arguments encodes images or videos itself."""
    return any(kwargs.get(pixels) is not None for pixels in ("pixel_values", "pixel_values_videos"))


def _reorder_cache(layers: Sequence[Any], prompt: Prompt, rows: Tensor) -> None:
    """`reorder_cache` for a cache with these layers and for its prompt. Called by beam search."""
    for part in (*layers, prompt):
        part.reorder_cache(rows)


def _forget(cache: Any) -> None:
    """Remove from `cache`, if it is a cache, the prompt data attached to it."""
    if isinstance(cache, Cache):
        for name in (PROMPT, "reorder_cache"):
            vars(cache).pop(name, None)


class Splice:
    """The hooks and their shared state."""

    def __init__(self, adapter: Adapter, run: Run, encoded: Sequence[VideoTokens] | None, captured: Capture) -> None:
        self.adapter, self.run, self.encoded, self.captured = adapter, run, encoded, captured
        self.inside = Inside(adapter, run.method, run.positions, self._note_stage, self._look_over)
        self.faults: list[Faults] = []  # pending checks of this call
        self.pruned: dict[int, _Outcome] = {}  # results for `encoded`, for methods that ignore the question
        self.call: dict[str, Any] | None = None  # arguments of a call with videos, its `input_ids` on the host
        self.ids: Tensor | None = None  # `[B, S]` of the current call, if it has any
        self.shown = False  # whether the call contains images or videos
        self.unnumbered = False  # whether the model itself computes the position ids
        self.counted = False  # whether it computes them from the length of its cache, because it got no mask
        self.number = next(_NUMBERS)  # of this context
        self.within: int | None = None  # thread of the current call of the whole model
        self.brought: Any = None  # encoded videos passed to that call
        self.labelled = False  # whether labels were passed to it
        self.indexed = False  # whether it asks for logits of specific columns
        self.drafted = False  # whether it asks for logits of several tokens at the end, as for drafted ones
        self.prefilled: Prompt | None = None  # in the current forward call
        self.reached = False  # whether a call with videos reached the language model

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError(
            f"a model copied inside a context of {self.run.method.name} would keep its hooks for good: close the "
            "context before copying the model"
        )

    def note_purpose(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the whole model: note labels, requested logits and encoded videos.

        Labels have the length of the whole prompt, logits that of the pruned one. In assisted decoding, drafted tokens
        follow the prompt in the same call. If layers are spread over devices, the multimodal module receives a copy.
        """
        thread = threading.get_ident()
        if self.within not in (None, thread):  # each call would use the notes of the other
            raise RuntimeError(
                "a model that is being pruned was called from two threads at once: call it from one at a time (if an "
                "earlier call was interrupted, reopen the context)"
            )
        self.within, self.labelled, self.reached = thread, kwargs.get("labels") is not None, False
        self.brought = self.adapter.encoded(kwargs)
        wanted = kwargs.get("logits_to_keep", 0)
        self.indexed, self.drafted = isinstance(wanted, Tensor), isinstance(wanted, int) and wanted > 1

    def locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the multimodal module: note where the visual tokens are, if the call contains videos."""
        self.call = None
        mask = kwargs.get("attention_mask")
        self.unnumbered = kwargs.get("position_ids") is None
        self.counted = self.unnumbered and mask is None
        self.ids = ids = args[0] if args else kwargs.get("input_ids")
        self.shown = _has_pixels(kwargs) or bool(kwargs.get("mm_encoder_outputs"))
        if not self.adapter.holds_videos(kwargs):
            return
        if ids is None:
            raise ValueError(
                "a prompt with videos was passed as inputs_embeds: pass input_ids, which identify the visual tokens"
            )
        spread = hasattr(self.adapter.model, "hf_device_map")
        self.captured.claim(self.brought if self.within is not None else self.adapter.encoded(kwargs), copied=spread)
        # The GPU has little work queued yet, so that waiting for it here is cheap. From here on, everything outside
        # tensors is known.
        self.call = {**kwargs, "input_ids": ids.to("cpu", copy=True)}
        if self.drafted and (self.inside.at or self.run.method.needs & QUESTION_FIELDS):
            raise self._undraftable("reads the end of the prompt, but logits of several tokens there were requested")
        self._check_steps()
        looks_at_text = self.inside.needed or self.run.method.needs & QUESTION_FIELDS
        if looks_at_text and isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
            raise ValueError(
                f"{self.run.method.name} reads the end of the text, but a prompt is padded there: pad prompts on "
                "the left (processor.tokenizer.padding_side)"
            )

    def cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the language model: prune at prefill, and adjust the arguments at each decoding step."""
        embeds, cache = kwargs["inputs_embeds"], cache_of(kwargs)
        past = cache.get_seq_length() if cache is not None else 0
        prompt: Prompt | None = None
        self.prefilled, self.reached = None, self.call is not None
        if not past:
            _forget(cache)  # it was emptied for reuse
        if self.call is not None:
            prompt, embeds = self._prefill(embeds, self.call, past)
        elif past:
            prompt = self._resume(cache, past, embeds)
        else:  # a prompt without videos
            self.run.report, self.run.prompt_tokens = [], embeds.shape[1]
        if prompt is None:
            self.inside.stop()
            return None
        return args, self._narrow(kwargs, prompt, embeds, past)

    def _prefill(self, embeds: Tensor, call: dict[str, Any], past: int) -> tuple[Prompt | None, Tensor]:
        """Prune a prompt `[B, S, D]`: what decoding needs to know about it, if anything, and embeddings `[B, K, D]`."""
        if past:
            raise ValueError(f"a prompt with videos was passed with a filled cache: {_WHOLE}")
        kept, embeds, spans = self._prune(embeds, call)
        if self.labelled and (kept is not None or self.inside.at):
            raise ValueError(
                "labels do not match a pruned prompt: leave them out, and compare the last logits with the "
                "text after the video"
            )
        if kept is not None or self.inside.at:
            self._check_columns()
        if kept is not None or self.inside.needed:
            said, deltas = call["input_ids"], self.adapter.deltas
            self.prefilled = Prompt(self.number, kept, spans, rows=len(embeds), said=said, deltas=deltas)
        return self.prefilled, embeds

    def _resume(self, cache: Any, past: int, embeds: Tensor) -> Prompt | None:
        """The pruned prompt of this cache of `past` columns, which `embeds` follow; None if it has none."""
        prompt: Prompt | None = getattr(cache, PROMPT, None)
        if prompt is None:
            return None
        if prompt.context != self.number:
            raise ValueError("the cache belongs to a prompt that was pruned in another context: continue it there")
        # the kept columns of a single prompt apply to each of its copies; what its steps attended to does not
        rows = len(embeds)
        if rows != prompt.rows and (prompt.rows > 1 or self.inside.key_layer is not None):
            raise ValueError(
                f"the cache of {prompt.rows} pruned prompts was passed with {rows} rows: repeat or select prompts "
                "before the first call, not in the cache"
            )
        self._check_steps()
        self.inside.settle(prompt, embeds.device)
        prompt.crop(past)
        return prompt

    def _check_columns(self) -> None:
        """Raise ValueError if the call asks for logits of specific columns, whose numbers pruning has changed."""
        if self.indexed:
            raise ValueError(
                "logits_to_keep names columns of a prompt, which move when it is pruned: pass the number of last "
                "logits to keep, or leave it out"
            )

    def _check_steps(self) -> None:
        """Raise ValueError if a method that hides keys step by step is given several steps to verify at once."""
        if self.drafted and self.inside.key_layer is not None:
            raise self._undraftable(
                "hides keys by what each step attends to, but logits of several steps were requested"
            )

    def _undraftable(self, why: str) -> ValueError:
        return ValueError(
            f"{self.run.method.name} {why} at once, as in assisted decoding: leave out assistant_model and "
            "prompt_lookup_num_tokens, and do not set logits_to_keep above 1"
        )

    def _narrow(self, kwargs: dict[str, Any], prompt: Prompt, embeds: Tensor, past: int) -> dict[str, Any]:
        """The language model's arguments for the pruned prompt: `embeds`, with matching mask and position ids.

        They cover the prompt itself, or the tokens after `past` columns of the pruned prompt.
        """
        mask, ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
        unlike = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
        if unlike or is_static(cache_of(kwargs)):
            raise ValueError(
                "pruning needs a 2-D attention mask, and a cache that grows: leave cache_implementation and custom "
                "masks unset"
            )
        batch, width = kwargs["inputs_embeds"].shape[:2]
        removed = prompt.kept.removed if prompt.kept is not None and past else 0
        behind = past + removed  # columns before this call if none had been removed
        again = removed if past and self._repeats(prompt, past, behind, width, mask, ids) else 0
        if again:
            self._check_columns()
        if past:
            embeds, width, removed = embeds[:, again:], width - again, removed - again
            ids = None if ids is None else self._of_prompt(ids[..., again:], prompt)
            prompt.hear(None if self.ids is None else self.ids[:, again:], behind)
        if mask is None:  # without one, transformers treats a jump in position ids as a border between sequences
            mask = torch.ones(batch, behind + width, dtype=torch.long, device=embeds.device)
        if ids is None:
            ids = torch.arange(behind, behind + width, device=embeds.device)[None]
        elif self.counted or (self.unnumbered and ids.dim() == 2):  # EXAONE 4.5 ignores its mask
            ids = ids + removed
        mask, ids = mask.to(embeds.device), ids.to(embeds.device)
        ids = ids.expand(*ids.shape[:-2], batch, -1)
        kwargs, additions = self.adapter.additions(kwargs, None if past else prompt.kept)
        additions = [added[:, again:] for added in additions]
        if prompt.kept is not None:
            mask = prompt.kept.mask(mask)
            if past:
                ids = prompt.kept.later(ids)
            else:
                prompt.kept, ids = prompt.kept.numbered(ids, mask)
        self.inside.begin(prompt, mask, ids, additions, prefill=not past)
        return {**kwargs, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": ids}

    def _repeats(
        self, prompt: Prompt, past: int, behind: int, width: int, mask: Tensor | None, ids: Tensor | None
    ) -> bool:
        """Whether the first of `width` columns are already in the cache, whose `past` columns stand for `behind`.

        Given a cache and all ids so far, `generate` feeds those after the cache's length. In a second turn, it thus
        repeats as many columns as pruning removed. Raises ValueError if the columns start at another position.
        """
        first: int | None = None  # column of the whole prompt at which they start, if known
        if mask is not None:
            first = mask.shape[1] - width
        elif ids is not None and not self.unnumbered and width > 1:
            # not counted from the cache; not for single tokens, each of which would have to wait for the GPU
            first = self.adapter.column(ids)
        removed = behind - past
        if first == behind or (first is None and not (width > 1 and removed and self._has_placeholders())):
            return False
        possible = first in (None, past) and width > removed
        if possible and self.ids is not None and prompt.holds(self.ids[:, :removed], past):
            return True
        if first is None and (self.drafted or self.shown):
            return False
        drafted = ", without drafted tokens (assistant_model, prompt_lookup_num_tokens)" if self.drafted else ""
        raise ValueError(
            f"these tokens neither continue nor repeat what the cache of the pruned prompt holds: {_WHOLE}{drafted}"
        )

    def _has_placeholders(self) -> bool:
        """Whether a call contains video placeholders, as when it repeats the end of a prompt. Waits for the GPU."""
        return self.ids is not None and bool((self.ids == self.adapter.video_token_id).any())

    def _of_prompt(self, ids: Tensor, prompt: Prompt) -> Tensor:
        """Position ids as the model would continue them after this prompt, even if it saw another one since."""
        last = self.adapter.deltas
        if self.shown and ids.shape[:-2] == (4,):  # `generate` counts anew for it; other callers continue
            prompt.deltas = last
        # ids that neither the model nor `generate` computed are the caller's own
        counted = self.unnumbered or ids.shape[:-2] in ((1,), (4,))
        if prompt.deltas is last or prompt.deltas is None or last is None or not counted or ids.dim() == 2:
            return ids
        return torch.cat([ids[:-3], ids[-3:] + (prompt.deltas - last).to(ids.device)])

    def remember(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the language model: attach a prefilled prompt to its cache."""
        if self.prefilled is None:
            return
        if (cache := getattr(output, CACHE)) is not None:
            setattr(cache, PROMPT, self.prefilled)
            # not bound to the cache, which would then reference itself
            cache.reorder_cache = partial(_reorder_cache, cache.layers, self.prefilled)
        self.prefilled = None

    def finish(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the multimodal module, even if it failed before it reached the language model."""
        self.call = self.ids = None
        self.shown = self.unnumbered = self.counted = False
        if _has_pixels(kwargs):
            self.captured.forget()
        if self.within is None:
            self._read_faults()

    def conclude(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the whole model, even if it failed: the GPU has all its work queued by now, so waiting is fine."""
        if self.within != threading.get_ident():  # a refused call
            return
        self.within, self.brought = None, None
        self.labelled = self.indexed = self.drafted = False
        self._read_faults()
        if output is not None and self.adapter.holds_videos(kwargs) and not (self.reached and self.inside.reached):
            raise unhooked(self.run.method)

    def _read_faults(self) -> None:
        faults, self.faults = self.faults, []
        try:
            for fault in faults:
                fault.raise_any()
        except ContractError:
            self.pruned.clear()
            raise

    def _look_over(self, faults: Faults) -> None:
        """Raise faults at once, or, on a GPU, after all its work is queued."""
        if faults.right.is_cuda:
            self.faults.append(faults)
        else:
            faults.raise_any()

    def _note_stage(self, video: int, layer: int, left: Tensor) -> None:
        report = self.run.report[video]
        if layer not in dict(report.stages):  # not yet noted for another copy
            self.run.report[video] = replace(report, left=left, stages=(*report.stages, (layer, len(left))))

    def _prune(self, embeds: Tensor, call: dict[str, Any]) -> tuple[Kept | None, Tensor, list[Span]]:
        """Prune every video of a prompt `[B, S, D]`: the kept columns, their embeddings `[B, K, D]`, and the videos.

        If all tokens stay unchanged, return `None` and the same embeddings: dense is exactly the stock model.
        """
        ids = call["input_ids"]
        rows = [Row(ids.shape[1], embeds.device) for _ in ids]
        self.run.report, whole = [], True
        for place in places(ids, self.adapter, self._layouts(call)):
            body = place.body(embeds.device)
            pruned, elapsed, untouched = self._pruned(place, body, embeds, ids)
            whole = whole and untouched
            if place.video == len(self.run.report):  # its first copy
                where, features = pruned.positions, pruned.features
                report = VideoReport(
                    place.total, len(pruned), place.layout, where, features, where, elapsed, dict(pruned.notes)
                )
                self.run.report.append(report)
            rows[place.row].add(place, body, pruned)
        width = max(row.finish() for row in rows)
        self.run.prompt_tokens = width
        if not whole:
            kept = Kept.rows([row.left for row in rows], ids.shape[1], self.run.positions == "contiguous")
            embeds = kept.gather(embeds)
        spans = []
        for number, row in enumerate(rows):
            padding = width - row.length
            for place, columns, pruned in row.videos:
                if not whole:
                    embeds[number, shifted(columns, padding)] = pruned.features.to(embeds.dtype)
                if self.inside.needed:
                    columns = row.whole[columns] if isinstance(columns, slice) else columns
                    columns, text = columns + padding, row.text(place) + padding
                    spans.append(Span(number, place.video, columns, text, pruned.positions, place.total, pruned.state))
        return None if whole else kept, embeds, spans

    def _layouts(self, call: dict[str, Any]) -> list[Layout]:
        """Layouts of the videos that were encoded for a call, in order."""
        if self.encoded is not None:
            return [(tokens.frames, *tokens.grid) for tokens in self.encoded]
        return self.adapter.layouts(call, self.captured)

    def _pruned(self, place: Place, body: slice | Tensor, embeds: Tensor, ids: Tensor) -> _Outcome:
        """Prune one video, whose tokens are columns `body` of prompts `[B, S, D]`; `ids` `[B, S]` are on the host."""
        method, video = self.run.method, place.video
        if video in self.pruned:
            return self.pruned[video]
        if self.encoded is not None:
            tokens = self.encoded[video].to(embeds.device)
        else:
            frames, *grid = place.layout
            features = embeds[place.row, body].unflatten(0, (frames, -1))
            tokens = self.captured.video(features, (grid[0], grid[1]), place.first)
        if "query" in method.needs:
            if not len(query := embeds[place.row, place.text(embeds.device)]):
                raise textless(method)
            tokens = replace(tokens, query=query)
        elapsed = Elapsed(embeds.device)
        if "joint_query" in method.needs and (source := siglip.attached(self.adapter.model)) is not None:
            query = source.joint_query(ids[place.row, place.end :])
            tokens = replace(tokens, joint_query=query.to(embeds.device))
        pruned = untraced(method.prune, tokens)
        elapsed.stop()
        check_kind(method, tokens, pruned)
        untouched = pruned.is_all_of(tokens)
        if not untouched:
            self._look_over(check_values(method, tokens, pruned))
        outcome = pruned, elapsed, untouched
        if self.encoded is not None and not method.needs & QUESTION_FIELDS:
            self.pruned[video] = outcome
        return outcome
