"""Records: one line per question and cell, append-only. Everything that is shown is computed from them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from mmg_bench.runner.lines import read_lines


@dataclass(frozen=True)
class Record:
    """One cell's answer to one question."""

    model: str
    benchmark: str
    frames: int
    """Frames sampled from the video for every question."""
    method: str
    """Label of the method as shown in tables, such as `mmg_vid` or `mmg_vid(positions=contiguous)`."""
    retention_ratio: float
    cell: str
    """Key of model x benchmark x method x every parameter: records of the same cell differ only in the question."""
    question: str
    """Id of the question, unique within the benchmark."""
    asked: str
    """Digest of prompt, target, generation arguments and the rest, in case the task's files change."""
    video: str
    """Id of the video: questions about the same video are not independent."""
    skill: str
    target: str
    prediction: str | None
    """The generated text, even if scoring it failed; None if the question failed before that."""
    score: float | None
    """Score in 0..1 from the benchmark's own scorer; None if the question failed."""
    error: str | None
    """What went wrong, or None."""
    realised_tokens: int | None
    """Visual tokens that entered layer 0 of the language model."""
    total_tokens: int | None
    """T * N of the video."""
    prompt_tokens: int | None
    """All tokens that entered layer 0: visual, newline and text."""
    stages: list[list[int]] | None
    """`[layer, visual tokens that entered it]` for each later layer before which the method pruned."""
    provenance: str
    """Key into the table's provenance.json."""
    coverage: float | None = None
    """Share of the video's tokens for which a kept one stands (`measure.fidelity`); None if all of them entered layer
    0, and if the question failed."""
    quantisation_error: float | None = None
    """Mean squared distance of the video's tokens from the nearest kept one, over their variance; None likewise."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies a record within a run."""
        return self.cell, self.question, self.asked


_FIELDS = frozenset(f.name for f in fields(Record))
_LATER = frozenset(f.name for f in fields(Record) if f.default is not MISSING)
"""Fields that older versions did not write."""
_TEXTS = tuple(f.name for f in fields(Record) if f.type == "str")


def _outcome(record: Record) -> Record:
    """A record without what may differ between machines that give the same answer."""
    return replace(record, provenance="", coverage=None, quantisation_error=None)


def read_records(folder: Path) -> list[Record]:
    """All records of a run folder (`records*.jsonl`), in the order written, one per cell and question.

    An answer takes precedence over failures of the same question and cell; without one, the last failure is kept.
    Raises ValueError for a line that is not a record, and for two answers of one cell and question that disagree;
    equal repeats (from two overlapping commands) count once.
    """
    seen: dict[tuple[str, str, str], Record] = {}
    for path in sorted(folder.glob("records*.jsonl")):
        for number, row in read_lines(path, _FIELDS, _LATER):
            record = Record(**row)
            if wrong := [name for name in _TEXTS if not isinstance(row[name], str)]:
                raise ValueError(
                    f"{path}:{number}: {wrong[0]}={row[wrong[0]]!r}: not a string; delete the line and run again"
                )
            scored = isinstance(record.score, int | float) and 0 <= record.score <= 1
            if (record.error is None) != scored:
                raise ValueError(
                    f"{path}:{number}: score={record.score!r}, error={record.error!r}: a record has either a score in "
                    "0..1 or an error; delete the line and run again"
                )
            other = seen.get(record.key)
            if other is None or other.error is not None:
                seen[record.key] = record
            elif record.error is None and _outcome(other) != _outcome(record):
                raise ValueError(
                    f"{path}:{number}: a second, different record of question {record.question!r} in cell "
                    f"{record.cell!r}: delete one of the lines"
                )
    return list(seen.values())
