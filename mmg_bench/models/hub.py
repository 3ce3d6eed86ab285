"""Hub checkpoints: their configuration, which files are in the local cache, and whether the rest can be fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_config(file: Path) -> dict[str, Any]:
    """The contents of a `config.json`. Raises ValueError, naming the file, if it is not a valid one."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a model configuration")
    return config


def cached(repo: str, name: str, revision: str | None) -> Path | None:
    """A file of a checkpoint in the local hub cache; None if it is not there. Raises ValueError for an invalid id."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, constants.HF_HUB_CACHE, revision)
    return Path(found) if isinstance(found, str) else None


def commit_of(repo: str, revision: str | None) -> str | None:
    """The cached commit of a checkpoint's revision, or of its newest one; the revision itself if it is not cached."""
    config = cached(repo, "config.json", revision)
    return revision if config is None else config.parent.name


def not_cached(repo: str, revision: str | None) -> list[str]:
    """Files of a checkpoint that the local hub cache lacks."""

    def lacking(weights: str) -> list[str]:
        index = cached(repo, f"{weights}.index.json", revision)
        names = [weights] if index is None else sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [name for name in ("config.json", *names) if cached(repo, name, revision) is None]

    found = lacking("model.safetensors")
    return found if lacking("pytorch_model.bin") else []


def check_reachable(repo: str, revision: str | None) -> None:
    """Query the hub once for a checkpoint and raise OSError if it does not answer; any answer will do."""
    from huggingface_hub import constants, get_session, hf_hub_url

    url = hf_hub_url(repo, "config.json", revision=revision)
    try:
        get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=False)
    except Exception as error:  # the client's own error types
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}") from error
