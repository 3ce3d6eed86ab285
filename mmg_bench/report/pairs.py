"""The two sides of a comparison, and the models and numbers of frames at which both have answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from mmg_bench.methods.registry import at_ratio
from mmg_bench.report.answers import Label
from mmg_bench.runner.records import Record


@dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison."""

    method: str
    """Label."""
    retention_ratio: float
    frames: int | None = None
    """If None in both sides, there is a table for each number of frames at which both answered. If None in one side, it
    stands for the only number at which that side answered."""

    def __str__(self) -> str:
        return at_ratio(self.method, self.retention_ratio)

    def answered(self, found: Record | Label) -> bool:
        """Whether a record, or the records of a label, belong to this side."""
        mine = (found.method, found.retention_ratio) == (self.method, self.retention_ratio)
        return mine and self.frames in (None, found.frames)


@dataclass(frozen=True)
class Match:
    """What a table compares: two sides of one model, with their numbers of frames."""

    model: str
    a: Side
    b: Side

    @property
    def apart(self) -> tuple[str, ...]:
        """Settings that may differ between the two."""
        return () if self.a.frames == self.b.frames else ("model.frames",)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two in messages: only what tells them apart."""
        a, b = self.a, self.b
        if a.method != b.method:
            return a.method, b.method
        if a.retention_ratio != b.retention_ratio:
            return str(a), str(b)
        return f"{a.method} with {a.frames} frames", f"{b.method} with {b.frames} frames"

    @property
    def where(self) -> str:
        frames = f"{self.a.frames} and {self.b.frames}" if self.apart else f"{self.a.frames}"
        return f"({self.model}, {frames} frames)"

    @property
    def title(self) -> str:
        if self.apart:
            return f"A: {self.a}, {self.a.frames} frames; B: {self.b}, {self.b.frames} frames; {self.model}"
        return f"A: {self.a}; B: {self.b}; {self.model}, {self.a.frames} frames"

    def labels(self, found: Collection[Label]) -> list[dict[str, Label]]:
        """For each side, benchmark -> its label."""
        of_model = [label for label in found if label.model == self.model]
        return [{label.benchmark: label for label in of_model if side.answered(label)} for side in (self.a, self.b)]


def matches(found: Collection[Label], a: Side, b: Side) -> list[Match]:
    """The tables to make: one for each model, and for each number of frames if neither side names its own.

    Raises ValueError if only one side names its frames, and the other answered at several numbers of frames, or turns
    out to be the same as the first.
    """
    if a.frames is b.frames is None:
        cells = sorted({(label.model, label.frames) for label in found})
        return [Match(model, replace(a, frames=frames), replace(b, frames=frames)) for model, frames in cells]
    made = [Match(m, _with_frames("a", a, b, m, found), _with_frames("b", b, a, m, found)) for m in _models(found)]
    if same := next((match.a for match in made if match.a == match.b), None):
        raise ValueError(
            f"A and B are both {same} with {same.frames} frames: give one of them another number of frames"
        )
    return made


def why_apart(found: Collection[Label], a: Side, b: Side) -> str:
    """Why there is no table of the two, and the remedy."""
    for model in _models(found):
        one, other = _frames(a, model, found), _frames(b, model, found)
        if a.frames is b.frames is None and one and other and not {*one} & {*other}:
            return (
                f"{a} answered with {_listed(one)} frames and {b} with {_listed(other)}: run both in one command, or "
                f"compare them with a.frames={one[0]} b.frames={other[0]}"
            )
    return f"{a} and {b} have no benchmark in common: run both in one command"


def _with_frames(letter: str, side: Side, other: Side, model: str, found: Collection[Label]) -> Side:
    """A side with its number of frames: the one that it names, else the only one at which it has a model's answers."""
    if side.frames is not None:
        return side
    numbers = _frames(side, model, found)
    if len(numbers) > 1 and _frames(other, model, found):
        raise ValueError(
            f"{letter}.frames=null: {side} has answers of {model} with {_listed(numbers)} frames; choose one"
        )
    return replace(side, frames=numbers[0] if numbers else other.frames)  # without answers: the other's


def _models(found: Collection[Label]) -> list[str]:
    return sorted({label.model for label in found})


def _frames(side: Side, model: str, found: Collection[Label]) -> list[int]:
    """The numbers of frames at which a side has answers of a model."""
    return sorted({label.frames for label in found if label.model == model and side.answered(label)})


def _listed(numbers: Collection[int]) -> str:
    return " and ".join(map(str, numbers))
