"""Functions of the lmms-eval task `mmg_embedded`."""

from __future__ import annotations

import re
from typing import Any

from mmg_bench.benchmarks.embedded.dataset import prepare, video_file

TEST_FILE = str(prepare())


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The path of the video, in a list."""
    return [str(video_file(doc["video"]))]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question, and the required form of the answer."""
    return doc["question"] + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the first word of the answer is correct, else 0."""
    words = re.findall(r"\w+", results[0].lower())
    return {"exact_word": float(words[:1] == [doc["answer"]])}
