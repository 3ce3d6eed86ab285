"""Golden vectors: outputs of the official implementations at function level, and how ours are compared with them.

A folder holds `inputs.npz` (arrays `<case>/<name>`) and one `<method>.npz` for each method, whose `meta` describes its
runs. To check a method, add `tests/golden_<method>.py` with `CHECKERS = {"<file stem>": check}` and
`check(run: Run, inputs: Inputs) -> None`, which calls `run.check(output_name, our_value)` for what it reproduces.
`MMG_GOLDEN_DEVICE=cuda` has the methods run on a GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmg_bench.tokens import VideoTokens

Checker = Callable[["Run", "Inputs"], None]

TOLERANCE = 2e-5
DEVICE = torch.device(os.environ.get("MMG_GOLDEN_DEVICE", "cpu"))
"""Where the methods run."""


def folders() -> list[Path]:
    """Where the vectors are: only `MMG_GOLDEN_DIR` if it is set, else the committed subset and a full set beside us."""
    if chosen := os.environ.get("MMG_GOLDEN_DIR"):
        return [Path(chosen)]
    here = Path(__file__).resolve().parent
    return [p for p in (here / "golden", here.parents[1] / "shared" / "golden") if (p / "inputs.npz").is_file()]


@cache
def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    return np.load(path)  # lazy: reads an array when it is asked for


@dataclass(frozen=True)
class Inputs:
    """The arrays that went into a run, as tensors: `inputs["feat"]`, shared or the method's own."""

    keys: dict[str, tuple[Path, str]]
    case: str
    folder: Path
    device: torch.device

    def __getitem__(self, name: str) -> Tensor:
        """By last part of the key ("feat"), or the full key where that is ambiguous ("in/S_grid/newline")."""
        path, key = self.keys[name]
        return torch.from_numpy(np.array(_arrays(path)[key])).to(self.device)

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    @property
    def grid(self) -> tuple[int, int]:
        height, width = _arrays(self.folder / "inputs.npz")[f"{self.case}/grid"].tolist()
        return height, width

    def tokens(self, **optional: Tensor) -> VideoTokens:
        """`VideoTokens` of the run's `feat`, with the optional fields given."""
        return VideoTokens(self["feat"], self.grid, **optional)


@dataclass(frozen=True)
class Run:
    """One run of an official function: its hyper-parameters, outputs and how far these can be relied on."""

    folder: Path
    stem: str
    id: str
    meta: dict[str, Any]

    @property
    def hyper(self) -> dict[str, Any]:
        return self.meta["hyper"]

    @property
    def error(self) -> str | None:
        """What the official code raised, in place of outputs."""
        return self.meta.get("official_error")

    @property
    def names(self) -> list[str]:
        return list(self.meta.get("outputs", {}))

    def output(self, name: str) -> np.ndarray:
        return _arrays(self.folder / f"{self.stem}.npz")[f"{self.id}/{name}"]

    def inputs(self, device: torch.device = DEVICE) -> Inputs:
        keys = {}
        for file, field in ((f"{self.stem}.npz", "method_inputs"), ("inputs.npz", "shared_inputs")):
            for key in self.meta[field]:
                keys[key] = keys[key.rsplit("/", 1)[-1]] = (self.folder / file, key)
        return Inputs(keys, self.meta["case"], self.folder, device)

    def flagged(self, name: str) -> bool:
        """Whether this output hangs on rounding, noise or ties in the official code, so that only its shape counts."""
        meta = self.meta
        sensitive = {*meta.get("noise_sensitive_outputs", ()), *meta.get("tie_sensitive_outputs", ())}
        stable = meta.get("indices_stable_rel1e-6", True) and meta.get("indices_stable_exact_cdist", True)
        if stable:
            return name in sensitive
        # Unstable indices: those that differ are named; every float output may follow them.
        differs = {d for key in ("differs", "differs_exact_cdist") for d in meta.get("stability", {}).get(key, ())}
        return name in sensitive | differs or not differs or self.output(name).dtype.kind == "f"

    def check(self, name: str, actual: Any, *, tolerance: float = TOLERANCE, strict: bool = False) -> None:
        """Compare our value of output `name` with the official one.

        Integers exactly, floats to `tolerance` of the largest magnitude; where flagged, only shapes, and the entries
        marked as stable. `strict` ignores the flags.
        """
        actual = np.asarray(actual.detach().cpu() if isinstance(actual, Tensor) else actual)
        expected = self.output(name)
        where = f"{self.stem}/{self.id}/{name}"
        assert actual.shape == expected.shape, f"{where}: shape {actual.shape}, official {expected.shape}"
        if self.flagged(name) and not strict:
            if f"{name}_noise_stable" in self.names:
                self._check_stable_entries(name, actual, expected)
        elif expected.dtype.kind == "f":
            assert np.isfinite(actual).all(), f"{where}: not finite"
            error = np.abs(actual - expected).max(initial=0.0)
            bound = tolerance * np.abs(expected).max(initial=0.0)
            assert error <= bound, f"{where}: off by {error:.3g}, allowed {bound:.3g}"
        else:
            wrong = actual != expected
            assert not wrong.any(), (
                f"{where}: {wrong.sum()} of {wrong.size} differ, at {np.argwhere(wrong)[:5].tolist()}"
            )

    def _check_stable_entries(self, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
        """Flat token indices of which some are random: the stable ones must be there, and each frame's count right."""
        stable = expected[self.output(f"{name}_noise_stable")]
        missing = np.setdiff1d(stable, actual)
        assert missing.size == 0, f"{self.stem}/{self.id}/{name}: lacks {missing[:5].tolist()}"
        height, width = self.inputs().grid
        per_frame = [np.bincount(a // (height * width)).tolist() for a in (actual, expected)]
        assert per_frame[0] == per_frame[1], f"{self.stem}/{self.id}/{name}: counts per frame differ: {per_frame}"


def all_runs() -> list[Run]:
    """Every run of every file of every folder."""
    runs = []
    for folder in folders():
        for path in sorted(folder.glob("*.npz")):
            if path.stem == "inputs":
                continue
            meta = json.loads(str(_arrays(path)["meta"]))["runs"]
            runs += [Run(folder, path.stem, run_id, m) for run_id, m in meta.items()]
    return runs
