"""What a table needs that this machine lacks: said before hours are spent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mmg_bench.models.siglip import FIELDS


def missing(
    model: Mapping[str, Any],
    benchmarks: Sequence[Mapping[str, Any]],
    needs_gpu: bool,
    needs: Collection[str] = (),
) -> list[str]:
    """One line for each thing that is not there: GPU, weights, data. Empty when the table can run. Stays offline.

    `needs`: optional fields of `VideoTokens` that the methods ask for.
    """
    lines = []
    if needs_gpu:
        import torch

        if not torch.cuda.is_available():
            lines.append("a GPU: torch sees no CUDA device")
    random = model.get("weights") == "random"
    if model["path"] != "embedded" and not random and not _has_weights(model["path"], model.get("revision")):
        lines.append(f"the weights of {model['path']} ({_size(model['path'], 'model', model.get('download_gb'))})")
    extra = model.get("siglip")
    if extra is not None and FIELDS & set(needs) and not _has_weights(extra):
        lines.append(f"the weights of {extra}, for its pooling head and text tower ({_size(extra, 'model', None)})")
    for benchmark in benchmarks:
        repo = benchmark.get("dataset")
        if repo is not None and not _has_data(benchmark):
            size = _size(repo, "dataset", benchmark.get("download_gb"))
            lines.append(f"the data of {benchmark['name']}: {repo} ({size})")
    return lines


def _has_weights(path: str, revision: str | None = None) -> bool:
    """Whether it is a folder, or every file of the checkpoint is in the local hub cache."""
    if Path(path).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(path, name, revision=revision)
        return found if isinstance(found, str) else None

    index = cached("model.safetensors.index.json")
    names = (
        ["model.safetensors"]
        if index is None
        else sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    )
    return all(cached(name) is not None for name in ("config.json", *names))


def _has_data(benchmark: Mapping[str, Any]) -> bool:
    """Whether the annotations are in the local hub cache and the video folder holds something."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"datasets--{benchmark['dataset'].replace('/', '--')}" / "snapshots"
    videos = Path(HF_HOME) / benchmark["videos"]
    return all(folder.is_dir() and any(folder.iterdir()) for folder in (snapshots, videos))


def _size(repo: str, kind: str, known: float | None) -> str:
    """Size of a download: the one in the configuration, else asked of the hub while it can be reached."""
    if known is not None:
        return f"about {known:g} GB"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return "size unknown while HF_HUB_OFFLINE is set"
    if not _hub_answers():
        return "size unknown: the hub cannot be reached"
    from huggingface_hub import HfApi

    info: Any = HfApi().repo_info(repo, repo_type=kind, files_metadata=True, timeout=20)
    return f"{sum(file.size or 0 for file in info.siblings) / 1e9:.0f} GB"


@cache
def _hub_answers() -> bool:
    from huggingface_hub.constants import ENDPOINT

    address = urlparse(ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
