"""Records: one line a question and cell, append-only, from which everything shown anywhere is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Record:
    """What one cell answered to one question."""

    model: str
    benchmark: str
    frames: int
    """Frames sampled from the video for every question."""
    method: str
    """Label of the method as tables show it, such as `mmg_vid` or `mmg_vid(positions=contiguous)`."""
    retention_ratio: float
    cell: str
    """Key of model x benchmark x method x every parameter: two records with one cell differ in the question only."""
    question: str
    """Id of the question, unique within the benchmark."""
    asked: str
    """Digest of prompt, target, generation arguments and the rest: the task's files may come to ask something else."""
    video: str
    """Id of the video: questions about one video are not independent."""
    skill: str
    target: str
    prediction: str | None
    """The generated text; None when the question failed."""
    score: float | None
    """Score in 0..1 by the benchmark's own scorer; None when the question failed."""
    error: str | None
    """What went wrong, or None."""
    realised_tokens: int | None
    """Visual tokens that entered layer 0 of the language model."""
    total_tokens: int | None
    """T * N of the video."""
    prompt_tokens: int | None
    """All tokens that entered layer 0: visual, newline and text."""
    stages: list[list[int]] | None
    """`[layer, visual tokens that entered it]` of each later layer before which the method pruned."""
    provenance: str
    """Key into the table's provenance.json."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What must be unique in a run."""
        return self.cell, self.question, self.asked


_NAMES = {f.name for f in fields(Record)}


class RecordFile:
    """Appends records to a JSON-lines file, flushed to the disk after each; use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file = path.open("a", encoding="utf-8")

    def _drop_torn_line(self) -> None:
        """A process that was killed while writing leaves a line without its end; appending to it would lose two."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as f:
            content = f.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                f.truncate(end)

    def append(self, records: Iterable[Record]) -> None:
        """Write records and wait until they are on the disk.

        Raises OSError, naming the file and the remedy, when the disk is full.
        """
        try:
            self._file.write("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write records ({error.strerror}): free some space or set another `output_dir`, then run "
                "the same command again; it goes on after the last whole record",
                str(self.path),
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_records(folder: Path) -> list[Record]:
    """All records of a run folder (`records*.jsonl`), in the order written.

    A torn last line is dropped. Raises ValueError for any other line that is not a record, and for two records of one
    cell and question that disagree; equal repeats (two commands that overlapped) count once.
    """
    seen: dict[tuple[str, str, str], Record] = {}
    for path in sorted(folder.glob("records*.jsonl")):
        for number, row in _rows(path):
            if set(row) != _NAMES:
                raise ValueError(
                    f"{path}:{number}: not a record of this version of mmg_bench (fields {sorted(set(row) ^ _NAMES)} "
                    "differ): move the folder away and run again"
                )
            record = Record(**row)
            if replace(seen.setdefault(record.key, record), provenance="") != replace(record, provenance=""):
                raise ValueError(
                    f"{path}:{number}: a second, different record of question {record.question!r} in cell "
                    f"{record.cell!r}: delete one of the lines"
                )
    return list(seen.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline behind it: torn while written
                return
            raise ValueError(f"{path}:{number}: not JSON ({error}): delete the line and run again") from error


def drop_errors(folder: Path, files: str = "records*.jsonl") -> None:
    """Take the records of failed questions out of the `files` of a run folder, so that they are tried again."""
    for path in sorted(folder.glob(files)):
        rows = [row for _, row in _rows(path)]
        good = [row for row in rows if row.get("error") is None]
        if len(good) < len(rows):
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in good), encoding="utf-8")
            partial.replace(path)
