"""Carries out `mmg-bench compare` with two methods and its composed configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench.commands.answered import read_answered
from mmg_bench.options import check_number, check_path, check_whole
from mmg_bench.report.labels import label_among, label_meant
from mmg_bench.report.pair_tables import pair_tables
from mmg_bench.report.pairs import Side
from mmg_bench.report.rows import DENSE
from mmg_bench.report.table import print_tables
from mmg_bench.runner.records import Record


def compare(methods: Sequence[str], config: DictConfig) -> int:
    """Print what one method gains over another, question by question, from the records of a run or a table.

    Raises ValueError unless `methods` are two labels with records at the requested ratios and numbers of frames.
    """
    values = cfg.plain(config)
    folder = check_path("output_dir", values["output_dir"])
    if len(methods) != 2:
        raise _not_two(methods)
    asked = [_Asked.of(letter, method, values) for letter, method in zip("ab", methods, strict=True)]
    found = read_answered(folder)
    a, b = (one.side(found.records, folder) for one in asked)
    if a == b:
        raise _not_two(methods)
    lost_by = _lost_by(values, found.records, folder)
    tables = pair_tables(found.records, found.sources, a, b, lost_by=lost_by)
    print_tables([replace(table, footnotes=(*table.footnotes, *found.notes)) for table in tables])
    return 0


def _lost_by(values: Mapping[str, Any], records: Sequence[Record], folder: Path) -> Side | None:
    """The side whose lost questions get their own line, if any. Raises ValueError for no label, dense or no records."""
    method = values["lost_by"]
    if method is None:
        return None
    if not isinstance(method, str):
        raise ValueError(f"lost_by={method!r}: give a label, such as fewer_frames, or null")
    side = _Asked(method, ("retention_ratio", values["retention_ratio"]), ("frames", None)).side(records, folder)
    if side.method == DENSE:
        raise ValueError(f"lost_by={method}: dense loses nothing against itself; give another method, or null")
    return side


def _not_two(methods: Sequence[str]) -> ValueError:
    quotes = "; put a label with spaces in quotes" if len(methods) > 2 else ""
    return ValueError(
        f"{' '.join(['compare', *methods])}: name two methods, such as: mmg-bench compare mmg_vid dpc_knn; or one "
        f"method twice with options that differ, such as: a.retention_ratio=0.1 b.retention_ratio=0.25{quotes}"
    )


@dataclass(frozen=True)
class _Own:
    """Options given for one side only."""

    retention_ratio: Any = None
    frames: Any = None


@dataclass(frozen=True)
class _Asked:
    """A side as the user asked for it. Its ratio and frames are paired with the options that set them."""

    method: str
    ratio: tuple[str, float]
    frames: tuple[str, int | None]

    @classmethod
    def of(cls, letter: str, method: str, values: Mapping[str, Any]) -> _Asked:
        """What the configuration says of the side `letter`. Raises ValueError for an invalid ratio or frame number."""
        given = values[letter]
        if not isinstance(given, dict):
            raise ValueError(f"{letter}={given!r}: give {letter}.retention_ratio or {letter}.frames")
        own = _Own(**cfg.known(_Own, given, letter))

        def chosen(option: str) -> tuple[str, Any]:
            alone = getattr(own, option)
            return (option, values[option]) if alone is None else (f"{letter}.{option}", alone)

        ratio, frames = chosen("retention_ratio"), chosen("frames")
        check_number(*ratio)
        if frames[1] is not None:
            check_whole(*frames, 1, ", or null for every number of frames")
        return cls(method, ratio, frames)

    def side(self, records: Sequence[Record], folder: Path) -> Side:
        """The side that is meant. Raises ValueError, listing what there is, if it has no records."""
        ratios: dict[str, list[float]] = {}
        for r in records:
            known = ratios.setdefault(r.method, [])
            known += [r.retention_ratio] * (r.retention_ratio not in known)
        listed = [f"{label} ({', '.join(f'{r:g}' for r in known)})" for label, known in ratios.items()]
        there = f"there are: {'; '.join(listed) or 'none'}"
        label = label_among(self.method, ratios)
        if label is None:
            raise ValueError(f"no {self.method} in {folder}; {label_meant(self.method, ratios)}{there}")
        (by, ratio), (by_frames, frames) = self.ratio, self.frames
        if label == DENSE:
            if by != "retention_ratio" and ratio != 1:
                raise ValueError(
                    f"{by}={ratio:g}: dense only has ratio 1; leave the option out, or set it for the other side"
                )
            ratio = 1.0
        if ratio not in ratios[label]:
            raise ValueError(f"no {label} at {by}={ratio:g} in {folder}; {there}")
        side = Side(label, ratio, frames)
        if not any(map(side.answered, records)):
            anyhow = replace(side, frames=None)
            every = " and ".join(map(str, sorted({r.frames for r in records if anyhow.answered(r)})))
            raise ValueError(f"{by_frames}={frames}: in {folder}, {side} has answers with {every} frames only")
        return side
