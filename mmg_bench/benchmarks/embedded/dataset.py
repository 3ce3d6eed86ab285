"""The embedded benchmark on disk: a JSON-lines file of questions, and videos that are rendered on first use."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from mmg_bench.benchmarks.embedded.questions import sample_questions
from mmg_bench.benchmarks.embedded.render import VERSION, write_video
from mmg_bench.benchmarks.embedded.world import World, make_rng, make_world
from mmg_bench.files import written_whole

VIDEOS = 64  # in the test split, with about six questions each
SPLIT = "test"


def cache_folder() -> Path:
    """The folder of generated data: `$MMG_BENCH_CACHE`, or `~/.cache/mmg_bench`."""
    return Path(os.environ.get("MMG_BENCH_CACHE") or "~/.cache/mmg_bench").expanduser()


def question_rows(worlds: list[World]) -> list[dict[str, Any]]:
    """The question rows of the videos, at most one per skill and video."""
    rows = []
    for world in worlds:
        video = f"{world.split}-{world.index:04d}"
        for number, q in enumerate(sample_questions(world, 1, make_rng(world.split, world.index, stream=1))):
            rows.append(
                {
                    "question_id": f"{video}-{number}",
                    "video": f"{video}.mp4",
                    "skill": q.skill,
                    "question": q.text,
                    "answer": q.answer,
                    "choices": list(q.choices),
                }
            )
    return rows


@cache
def prepare(videos: int = VIDEOS) -> Path:
    """Write the questions of the test split and return their file.

    The folder's name is a digest of everything that happens in the videos and of how it is drawn, so data of another
    version of this package is never mistaken for this one's.
    """
    worlds = [make_world(SPLIT, index) for index in range(videos)]
    rows = question_rows(worlds)
    digest = hashlib.sha256(repr((VERSION, worlds, rows)).encode()).hexdigest()[:12]
    path = cache_folder() / f"embedded-{digest}" / f"{SPLIT}.jsonl"
    if not path.exists():
        with written_whole(path) as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def video_file(name: str) -> Path:
    """The mp4 file of a video of the test split, rendered unless an earlier call has done so."""
    path = prepare().parent / name
    if not path.exists():
        write_video(make_world(SPLIT, int(path.stem.rsplit("-", 1)[1])), path)
    return path
