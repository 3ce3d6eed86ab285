"""Where a number comes from: everything needed to obtain it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmg_bench.measure.gpu import gpu_facts

PACKAGES = ("mmg-bench", "torch", "torchvision", "transformers", "lmms-eval", "decord", "numpy")
_UNSTABLE = ("date", "command")  # differ between two runs of one thing
COMMIT = "MMG_BENCH_COMMIT"
"""Environment variable that names the commit where the code is a copy without its history."""


def describe(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Settings of a run together with machine, versions, commit, date and command."""
    return {
        **settings,
        "device": _device_name(device),
        **gpu_facts(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def register(folder: Path, entry: dict[str, Any]) -> str:
    """Add an entry to `folder`/provenance.json and return its key; equal settings share one entry."""
    key, entries = key_of(entry), read(folder)
    if key not in entries:
        write(folder, {**entries, key: entry})
    return key


def key_of(entry: dict[str, Any]) -> str:
    """Digest of an entry, date and command apart."""
    stable = {k: v for k, v in entry.items() if k not in _UNSTABLE}
    return hashlib.sha256(json.dumps(stable, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read(folder: Path) -> dict[str, Any]:
    """All entries of `folder`/provenance.json; none when there is no such file."""
    path = folder / "provenance.json"
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or start anew in another folder") from None
    return entries


def write(folder: Path, entries: dict[str, Any]) -> None:
    """Write provenance.json in one step, so that a stop in the middle leaves the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".provenance.{os.getpid()}"  # shards may write side by side
    partial.write_text(json.dumps(entries, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
    partial.replace(folder / "provenance.json")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({len(models) or '?'} cores)"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # not every command needs every package
        return None


def _commit() -> str:
    """What the environment names; else the commit of the checkout, `+` behind it when files differ; or `unknown`."""
    git = ["git", "-C", str(Path(__file__).parent)]
    if given := os.environ.get(COMMIT):
        return given
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    state = [*git, "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(state, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip()[:12] + ("+" if changed else "")
