"""Files that are whole or not there, or of one process at a time, and what tells one content from another."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Faults of file systems that have no locks, as NFS may be mounted."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes at the end; nothing happens to `path` when that fails.

    Its name is of this call alone: several processes may write one file, also in containers, where all may be number 1.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # such as of a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(file: IO[Any]) -> Iterator[bool]:
    """Hold the lock of an open file, once whoever has it lets go; False without one, where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def digest_of(files: Iterable[Path]) -> str:
    """Digest of files, one behind the other: 12 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
