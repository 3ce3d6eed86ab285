"""Append-only files of JSON lines: several processes may append, and a killed one loses only its own line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmg_bench.files import locked


class LineFile:
    """Appends to a file of JSON lines, flushed to disk after each call; use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on the disk.

        First removes an incomplete last line left by a killed process, which would also spoil the next one. Raises
        OSError, naming the file and the remedy, when the disk is full.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with locked(self._file):  # its holder is alive: no other process is in the middle of a line
                self._drop_torn_line()
                left = memoryview(text.encode())
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot be written ({error.strerror}): free some space and run the same command again (it continues "
                "after the last complete line), or set another `output_dir`",
                str(self.path),
            ) from error

    def _drop_torn_line(self) -> None:
        file = self._file.fileno()
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            self._file.truncate(os.pread(file, size, 0).rfind(b"\n") + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_lines(
    path: Path, fields: frozenset[str], optional: frozenset[str] = frozenset()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every complete line; none if there is no file. A last line without its end is skipped.

    Raises ValueError, naming the line, if one is not a JSON object with exactly these `fields`, of which those that are
    `optional` may be missing.
    """
    if not path.exists():
        return
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:  # not JSON, or not text
            raise ValueError(f"{path}:{number}: not JSON ({error}): delete the line and run again") from None
        if not isinstance(row, dict) or row.keys() | optional != fields:
            differ = sorted((row.keys() | optional) ^ fields) if isinstance(row, dict) else sorted(fields)
            raise ValueError(
                f"{path}:{number}: not written by this version of mmg_bench (fields {differ} differ): move the folder "
                "away and run again"
            )
        yield number, row
