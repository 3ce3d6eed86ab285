"""Files that are whole or not there, and what tells one content from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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


def digest_of(files: Iterable[Path]) -> str:
    """Digest of files, one behind the other: 12 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
