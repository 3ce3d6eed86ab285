"""Claims tell other commands in a folder what a command is working on, so that nothing is computed twice at once.

A claim is a file in the folder, locked for as long as its process lives. A killed process therefore holds no claim, and
nothing has to be cleaned up by hand.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from mmg_bench.files import locked
from mmg_bench.runner import provenance
from mmg_bench.runner.evaluate import Shard

_GUARD = ".claims.lock"
"""Lock held while existing claims are checked and a new one is made, so that one of two equal claims comes first."""

_NO_LOCKS = "its file system has no locks, so commands cannot see that others do the same work there: run one at a time"


class ClaimedError(RuntimeError):
    """Another command is doing the same work; the message names the folder, the process and the remedy."""


@dataclass(frozen=True)
class Claim:
    """Work in a folder that only one command should do at a time."""

    folder: Path
    work: Mapping[str, str]
    """Key of a piece of work -> its name in messages."""
    shard: Shard = field(default_factory=Shard)
    """The part of the videos; other commands may do the same work on other parts."""

    def shares(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the work shared with another claim, given as read from its file."""
        index, count = other["shard"]
        if (self.shard.index - index) % math.gcd(self.shard.count, count):  # no video is in both shards
            return []
        return [name for key, name in self.work.items() if key in other["work"]]


@contextmanager
def claimed(claims: Iterable[Claim]) -> Iterator[None]:
    """Hold the claims of one command, which may overlap each other.

    Raises ClaimedError if a claim of another command overlaps. On a file system without locks, prints that nothing can
    be claimed there.
    """
    with ExitStack() as held:
        own: list[Path] = []
        told = False
        for claim in claims:
            claim.folder.mkdir(parents=True, exist_ok=True)
            with _guarded(claim.folder) as alone:
                if not alone:
                    if not told:
                        print(f"{claim.folder}: {_NO_LOCKS}", flush=True)
                    told = True
                    continue
                for other in _others(claim.folder, own):
                    if common := claim.shares(other):
                        raise ClaimedError(_told(claim.folder, other, common))
                own.append(held.enter_context(_made(claim)))
        yield


@contextmanager
def _guarded(folder: Path) -> Iterator[bool]:
    """Keep others from changing a folder's claims; yields False if its file system has no locks. Leaves no file."""
    path = folder / _GUARD
    while True:
        with path.open("w") as file, locked(file) as alone:
            if alone and not _is_at(file, path):  # its last holder has deleted it: there may be a new one
                continue
            try:
                yield alone
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _made(claim: Claim) -> Iterator[Path]:
    """The file of a claim, locked."""
    content = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": provenance.command(),
        "shard": [claim.shard.index, claim.shard.count],
        "work": list(claim.work),
    }
    path = claim.folder / f".claim-{uuid4().hex}.json"
    with path.open("x", encoding="utf-8") as file, locked(file):
        json.dump(content, file)
        file.flush()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _others(folder: Path, own: Collection[Path]) -> Iterator[dict[str, Any]]:
    """Claims of running commands; claim files left by dead ones are deleted."""
    for path in folder.glob(".claim-*.json"):
        if path in own:
            continue
        try:
            file = path.open("r+", encoding="utf-8")
        except FileNotFoundError:  # its command has just ended
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield json.load(file)
            else:
                path.unlink(missing_ok=True)


def _told(folder: Path, other: Mapping[str, Any], common: list[str]) -> str:
    """The message about a claim that stands in the way."""
    more = f" and {len(common) - 1} more" if len(common) > 1 else ""
    return (
        f"{folder}: process {other['pid']} on {other['host']} has been working there on {common[0]}{more} "
        f"since {other['since']} (`{other['command']}`): wait until it ends and run this command again, which reuses "
        "its results, or set another output_dir"
    )
