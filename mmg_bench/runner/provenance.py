"""Where a number comes from: everything needed to reproduce it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmg_bench
from mmg_bench.files import locked, written_whole

if TYPE_CHECKING:
    import torch

PACKAGES = ("mmg-bench", "torch", "torchvision", "transformers", "lmms-eval", "decord", "numpy")
ASKED = "asked"
"""Field of an entry stored with records: keys of the cells its command last asked for, answered then or earlier."""
COMMIT = "MMG_BENCH_COMMIT"
"""Environment variable that names the commit if the code is a copy without its git history."""


def command() -> str:
    """The running command, as a user would type it again."""
    return f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip()


def describe(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Settings of a run together with machine, versions, commit, date and command."""
    import torch  # imported late: reading provenance does not need it

    from mmg_bench.measure.gpu import gpu_facts

    return {
        **settings,
        "device": _device_name(device),
        **gpu_facts(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def register(folder: Path, entry: dict[str, Any], cells: Iterable[str] = ()) -> str:
    """Add an entry to `folder`/provenance.json and return its key. `cells`: see `ASKED`.

    Entries that differ only in the date, or in the share of the work the command takes, become one. It has the first
    date as `date`, the last as `last_date`, and the last command that takes all of the work, if there is one.
    """
    words = str(entry.get("command", "")).split()
    command = " ".join(word for word in words if not word.startswith(("shard.", "workers=")))
    key = key_of({**entry, "command": command}, apart=("date",))
    with _alone(folder):
        entries = read(folder)
        if key in entries:
            whole = {} if any(word.startswith("shard.") for word in words) else {"command": entry.get("command")}
            entry = {**entries[key], **whole, "last_date": entry.get("date")}
        if wanted := sorted(set(cells)):
            entry = {**entry, ASKED: wanted}
        write(folder, {**entries, key: entry})
    return key


def add(folder: Path, entries: dict[str, Any]) -> None:
    """Add entries to those in `folder`/provenance.json. Of two with the same key, the later one is kept."""
    with _alone(folder):
        there = read(folder)
        later = {k: entry for k, entry in entries.items() if k not in there or last_date(entry) >= last_date(there[k])}
        write(folder, {**there, **later})


def last_date(entry: Mapping[str, Any]) -> str:
    """When an entry's command was last run, with the same code."""
    return str(entry.get("last_date") or entry.get("date"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing `folder`/provenance.json: shards and commands may share a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".provenance.lock").open("w") as lock, locked(lock):
        yield


def key_of(entry: dict[str, Any], apart: Sequence[str] = ("date", "command")) -> str:
    """Digest of an entry without the fields in `apart`."""
    stable = {k: v for k, v in entry.items() if k not in apart}
    return hashlib.sha256(json.dumps(stable, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read(folder: Path) -> dict[str, Any]:
    """All entries of `folder`/provenance.json; none if there is no such file."""
    path = folder / "provenance.json"
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ValueError("not a JSON object of objects")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or start again in another folder") from None
    return entries


def check_explains(folder: Path, keys: Iterable[str]) -> None:
    """Raise ValueError if `folder`/provenance.json lacks any of the keys: no table can be made without them."""
    if lost := sorted(set(keys) - read(folder).keys()):
        raise ValueError(
            f"{folder}/provenance.json has no entry {', '.join(lost)}, which records there refer to: restore it, or "
            "start again in another folder"
        )


def write(folder: Path, entries: dict[str, Any]) -> None:
    """Write provenance.json atomically, so that an interruption leaves the old one."""
    with written_whole(folder / "provenance.json") as file:
        file.write_text(json.dumps(entries, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

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
    """The commit named by the environment variable, else the checkout's, else `unknown`.

    If code or configurations differ from the checkout's commit, `+` and a digest of the difference follow it.
    """
    if given := os.environ.get(COMMIT):
        return given
    package = Path(mmg_bench.__file__).parent
    parts = [str(package), str(package.parent / "configs")]

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", package.parent, *arguments], capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", mmg_bench.__file__)  # a copy may be installed below another checkout
        head = git("rev-parse", "--short=12", "HEAD").decode().strip()
        changes = git("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", *parts)
        new = git("ls-files", "-z", "--others", "--exclude-standard", "--", *parts)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    for name in filter(None, new.split(b"\0")):
        file = package.parent / os.fsdecode(name)
        changes += name + (file.read_bytes() if file.is_file() else b"")  # an editor's dangling link is no file
    return f"{head}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else head
