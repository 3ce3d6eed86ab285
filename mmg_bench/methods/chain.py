"""Chain: one method before the language model, and another inside it on the tokens that the first one keeps."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.methods.registry import built_in, get_method, method_class, read_label, write_label
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

DEPTH = 32
"""Layers of the model for which `prunes_inside` is tried."""
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def value_of(text: str) -> Any:
    """The value of an option as written in a label: true, false or null, a number, or otherwise a word."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _prunes_inside(method: Method) -> bool:
    """Whether the method prunes inside a language model of `DEPTH` layers; also true if it refuses that depth."""
    try:
        return method.prunes_inside(DEPTH)
    except ValueError:  # names a layer beyond it
        return True


@dataclass(frozen=True)
class Chain(Method):
    """Two methods one after the other: `before` chooses the tokens that enter, `inside` prunes them further.

    Idea: a method before the language model knows the video, one inside it also knows the question. Each has its own
    budget, so their shares multiply.

    Source: those of the parts; the composition is ours. Parameters: see the fields; the parts are written as tables
    print them, `fastvid(frame_source=mean, salience=received)`.
    `retention_ratio` is that of `before`; `inside_ratio` is that of `inside`, relative to the tokens that enter.
    Position ids are those of `before`, also inside, unless the run says otherwise: one numbering for both parts.
    """

    before: str = field(default="mmg_vid", metadata={"labelled": True})
    """A method that prunes before the language model and not inside it (use `inner=false` for methods that do both)."""
    inside: str = field(default="fastv", metadata={"labelled": True})
    """A method that prunes only inside the language model: dart, fastv, pact, pdrop, sparsevlm, v2drop."""
    inside_ratio: float = 0.5
    """`retention_ratio` of `inside`, in that method's own sense, relative to the tokens that enter."""

    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "inside_ratio", 0, 1, low_open=True)
        before, inside = self.parts
        for which, part in (("before", before), ("inside", inside)):  # canonical spelling: one label, one key
            object.__setattr__(self, which, write_label(part.name, part.changed))
        if isinstance(before, InsideMethod):
            raise ValueError(
                f"chain.before={self.before!r}: {before.name} prunes only inside the language model; give it as "
                f"chain.inside={self.before!r}, and one that prunes before the model, such as mmg_vid, as chain.before"
            )
        if _prunes_inside(before):
            raise ValueError(
                f"chain.before={self.before!r}: {before.name} prunes inside the language model too; switch that off "
                f"if it has an option for it, as in '{before.name}(inner=false)', or choose another method"
            )
        if not isinstance(inside, InsideMethod):
            choices = ", ".join(name for name in built_in() if issubclass(method_class(name), InsideMethod))
            raise ValueError(
                f"chain.inside={self.inside!r}: {inside.name} does not prune only inside the language model; choose "
                f"one of these: {choices}, or your own method derived from InsideMethod"
            )
        if unread := sorted(inside.needs - {"query"}):
            raise ValueError(
                f"chain.inside={self.inside!r}: {inside.name} reads {', '.join(unread)} of the whole video, but gets "
                "only the tokens that chain.before keeps; choose another method"
            )
        taken = {
            "needs": before.needs | inside.needs,
            "exact": before.exact,
            "ordered_channels": before.ordered_channels or inside.ordered_channels,
            "inside_positions": inside.inside_positions,
            "prunes_caches": inside.prunes_caches,
            "before_mlp": inside.before_mlp,
            "weighs": inside.weighs,
        }
        for what, value in taken.items():
            object.__setattr__(self, what, value)

    @property
    def positions(self) -> Positions:  # type: ignore[override]
        """Those of `before`."""
        return self.parts[0].positions

    @cached_property
    def parts(self) -> tuple[Method, Method]:
        """`before` and `inside`."""
        return self._part("before", self.retention_ratio), self._part("inside", self.inside_ratio)

    def _part(self, which: str, ratio: float) -> Method:
        given = getattr(self, which)
        example = "fastv(layer=3)" if which == "inside" else "mmg_vid(tau=0.9)"
        label = "".join(given.split()).strip("'\"") if isinstance(given, str) else ""
        if not re.fullmatch(r"[^()=,]+(\(\w+=.*\)|\(control\))?", label) or label.count("(") != label.count(")"):
            raise ValueError(f"chain.{which}={given!r}: it must be a method, such as {example!r}")
        name, options = read_label(label)
        if name == self.name:
            raise ValueError(f"chain.{which}={given!r}: a part of a chain cannot be a chain; choose another method")
        if name == "dense":
            raise ValueError(f"chain.{which}={given!r}: dense prunes nothing; run the other part without a chain")
        own = {"retention_ratio": "inside_ratio" if which == "inside" else "retention_ratio", "positions": "positions"}
        for option in own.keys() & options.keys():
            raise ValueError(
                f"chain.{which}={given!r}: a part has no {option} of its own; set the {own[option]} of the chain"
            )
        try:
            return get_method(name, retention_ratio=ratio, **{o: value_of(text) for o, text in options.items()})
        except ValueError as error:
            raise ValueError(f"chain.{which}={given!r}: {error}") from error

    def budget(self, tokens: VideoTokens) -> int:
        return self.parts[0].budget(tokens)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        before, inside = self.parts
        pruned = before.select(tokens)
        # the second part sees nothing but these: one frame of K tokens
        entering = VideoTokens(pruned.features.unsqueeze(0), (1, len(pruned)), query=tokens.query)
        handed_on = inside.select(entering)
        notes = {**pruned.notes, **handed_on.notes}
        return replace(pruned, notes=notes, state=(pruned.positions, handed_on.state))

    def layers(self, depth: int) -> tuple[int, ...]:
        """Those of `inside`."""
        return self.parts[1].layers(depth)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        entered, state = tokens.state
        left = torch.searchsorted(entered, tokens.positions)  # [n], into those that entered
        own = replace(tokens, positions=left, total=len(entered), state=state)
        chosen = self.parts[1].select_inside(own)
        return replace(chosen, state=(entered, chosen.state))

    def finished(self, state: Any) -> bool:
        return self.parts[1].finished(state[1])

    def key_layer(self, depth: int) -> int | None:
        """That of `inside`."""
        return self.parts[1].key_layer(depth)

    def select_keys(self, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return self.parts[1].select_keys(attention, memory)
