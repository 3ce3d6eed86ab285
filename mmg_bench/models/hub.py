"""Checkpoints of the hub: what of them lies in the local cache, and whether the rest can be fetched."""

from __future__ import annotations

import json
from pathlib import Path


def not_cached(repo: str, revision: str | None) -> list[str]:
    """Files of a checkpoint that the local hub cache lacks."""
    from huggingface_hub import constants, try_to_load_from_cache

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(repo, name, constants.HF_HUB_CACHE, revision)
        return found if isinstance(found, str) else None

    def lacking(weights: str) -> list[str]:
        index = cached(f"{weights}.index.json")
        names = [weights] if index is None else sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
        return [name for name in ("config.json", *names) if cached(name) is None]

    found = lacking("model.safetensors")
    return found if lacking("pytorch_model.bin") else []


def check_reachable(repo: str, revision: str | None) -> None:
    """Ask the hub once for a checkpoint and raise OSError where nothing answers; any answer will do."""
    from huggingface_hub import constants, get_session, hf_hub_url

    url = hf_hub_url(repo, "config.json", revision=revision)
    try:
        get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=False)
    except Exception as error:  # of the client's own kinds
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}") from error
