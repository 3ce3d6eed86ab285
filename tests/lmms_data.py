"""Small data sets in the schema of published benchmarks: annotations as the hub's repositories lay them out, and videos
where each task's own code looks for them below HF_HOME. All questions and videos are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world

Rows = list[dict[str, Any]]
WORDS = ("red", "blue", "green", "yellow", "none of these")
THINGS = ("ring", "star", "square", "ball")


@dataclass(frozen=True)
class Part:
    """What one configuration of a data set holds."""

    config: str
    split: str
    file: str
    rows: Rows


@dataclass(frozen=True)
class Made:
    """A data set: its parts, and its videos' places below HF_HOME."""

    parts: Sequence[Part]
    videos: Sequence[str]

    @property
    def questions(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def write(self, annotations: Path, hf_home: Path) -> None:
        """Write the annotations as a copy of the hub's repository, and the videos."""
        configs = []
        for part in self.parts:
            file = annotations / part.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(part.rows))
            files = [{"split": part.split, "path": part.file}]
            configs.append({"config_name": part.config, "data_files": files})
        (annotations / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
        for number, name in enumerate(self.videos):
            _write_one(hf_home / name, number)


def _write_one(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        write_video(make_world("train", number, sampled=4), path, size=32)
        return
    from PIL import Image

    from mmg_bench.benchmarks.embedded.render import render_frames

    path.mkdir(exist_ok=True)  # a folder of frames in place of a video
    for i, picture in enumerate(render_frames(make_world("train", number, sampled=4), list(range(6)), 32)):
        Image.fromarray(picture).save(path / f"{i:05d}.jpg")


def _question(n: int) -> tuple[str, list[str], int]:
    """A question, its options and the right one's index."""
    return f"What colour is the {THINGS[n % 4]} number {n}?", [*WORDS[n % 3 :], *WORDS[: n % 3]][:4], (3 * n + 1) % 4


def videomme() -> Made:
    rows: Rows = []
    for n in range(6):
        text, options, right = _question(n)
        rows.append(
            {
                "video_id": f"{n // 3 + 1:03d}",
                "duration": ("short", "long")[n // 3],
                "domain": "Knowledge",
                "sub_category": "Humanity & History",
                "url": "",
                "videoID": f"clip{n // 3}",
                "question_id": f"{n // 3 + 1:03d}-{n % 3 + 1}",
                "task_type": "Counting Problem",
                "question": text,
                "options": [f"{letter}. {option}." for letter, option in zip("ABCD", options, strict=True)],
                "answer": "ABCD"[right],
            }
        )
    part = Part("videomme", "test", "videomme/test-00000-of-00001.json", rows)
    return Made([part], [f"videomme/data/clip{v}.mp4" for v in range(2)])


def mvbench() -> Made:
    """Four of its tasks: two of them give different videos one name, one has times, one has a folder of frames."""
    videos = {
        "moving_count": "clevrer/video_validation/video_1.mp4",
        "character_order": "perception/videos/video_1.mp4",
        "action_sequence": "star/Charades_segment/AB12C.mp4",
        "episodic_reasoning": "tvqa/video_fps3_hq_segment/show_clip_14",
    }
    parts = []
    for t, (name, video) in enumerate(videos.items()):
        rows: Rows = []
        for n in range(2):
            text, options, right = _question(4 * t + n)
            rows.append({"video": Path(video).name, "question": text, "candidates": options, "answer": options[right]})
            if name == "action_sequence":
                rows[-1] |= {"start": 1.5, "end": 3.0}
        parts.append(Part(name, "train", f"json/{name}.json", rows))
    return Made(parts, [f"mvbench_video/{video}" for video in videos.values()])


def mlvu() -> Made:
    """Unequal numbers of questions a type, so that the mean over the types is not that over the questions."""
    kinds = ["plotQA", "plotQA", "plotQA", "needle", "ego", "ego", "count", "order", "anomaly_reco", "topic_reasoning"]
    rows: Rows = []
    for n, kind in enumerate(kinds):
        text, options, right = _question(n)
        lines = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
        rows.append(
            {
                "video_name": f"{kind}_{n // 2}.mp4",
                "duration": 20.5,
                "question": f"{text}\n{lines}",
                "answer": "ABCD"[right],
                "task_type": kind,
            }
        )
    part = Part("default", "test", "mlvu/test-00000-of-00001.json", rows)
    return Made([part], sorted({f"mlvu/{row['video_name']}" for row in rows}))


def longvideobench() -> Made:
    rows: Rows = []
    for n in range(6):
        text, options, right = _question(n)
        options = [*options[: 4 - n % 2], *["N/A"] * (1 + n % 2)]
        rows.append(
            {
                "video_id": f"v{n // 2}",
                "id": f"v{n // 2}_{n % 2}",
                "video_path": f"v{n // 2}.mp4",
                "subtitle_path": f"v{n // 2}_en.json",
                "correct_choice": right % (4 - n % 2),
                "question": text,
                **{f"option{i}": option for i, option in enumerate(options)},
                "duration": 190.16,
                "duration_group": (15, 600, 3600)[n // 2],
                "question_category": ("TOS", "T2A")[n % 2],
                "topic_category": "NP-News-Programs",
                "starting_timestamp_for_subtitles": 0.0,
            }
        )
    part = Part("default", "validation", "validation-00000-of-00001.json", rows)
    return Made([part], [f"datasets/longvideobench/videos/v{v}.mp4" for v in range(3)])


def egoschema_subset() -> Made:
    rows: Rows = []
    for n in range(3):
        text, options, right = _question(n)
        letters = [f"{letter}. {option}" for letter, option in zip("ABCDE", [*options, "no colour"], strict=True)]
        # the right option's index is text here, and a number in what the task parses
        rows.append({"question": text, "video_idx": f"e{n}", "option": letters, "answer": str(right)})
    part = Part("Subset", "test", "Subset/test-00000-of-00001.json", rows)
    return Made([part], [f"egoschema/videos/e{n}.mp4" for n in range(3)])


def nextqa_mc() -> Made:
    rows: Rows = []
    for n in range(3):
        text, options, right = _question(n)
        choices = {f"a{i}": option for i, option in enumerate([*options, "no colour"])}
        rows.append({"video": 1000 + n // 2, "question": text, "answer": right, "qid": n, "type": "TN", **choices})
    part = Part("MC", "test", "MC/test-00000-of-00001.json", rows)
    return Made([part], [f"nextqa/NExTVideo/{1000 + v}.mp4" for v in range(2)])


def perceptiontest() -> Made:
    rows: Rows = []
    for n in range(3):
        text, options, right = _question(n)
        rows.append(
            {
                "video_name": f"video_{n // 2}",
                "question": text,
                "question_id": str(n),
                "options": options[:3],
                "answer_id": str(right % 3),
                "area": "memory",
                "reasoning": "descriptive",
                "tag": ["colour"],
            }
        )
    part = Part("mc_question_val", "validation", "mc_question_val/validation-00000-of-00001.json", rows)
    return Made([part], [f"perceptiontest_val/videos/video_{v}.mp4" for v in range(2)])


def tempcompass() -> Made:
    choice = {"question": "What happens?\nA. it grows\nB. it shrinks", "answer": "B. it shrinks"}
    yes_no = {"question": "Does it grow?", "answer": "no"}
    caption = {
        "question": "Which fits?\nCaption A: It grows.\nCaption B: It shrinks.",
        "answer": "Caption B: It shrinks.",
    }
    parts = [
        Part(name, "test", f"{name}/test-00000-of-00001.json", [{"video_id": "t0", "dim": "action", **row}])
        for name, row in (("multi-choice", choice), ("yes_no", yes_no), ("caption_matching", caption))
    ]
    return Made(parts, ["tempcompass/videos/t0.mp4"])


DATA_SETS: Mapping[str, Any] = {
    f.__name__: f
    for f in (
        videomme,
        mvbench,
        mlvu,
        longvideobench,
        egoschema_subset,
        nextqa_mc,
        perceptiontest,
        tempcompass,
    )
}


def letter_model(folder: Path) -> Path:
    """A tiny model that reads the questions' words and answers in options' letters alone, as a checkpoint folder."""
    import torch

    from mmg_bench.models.small import SmallSpec, small_llava_onevision

    torch.manual_seed(3)
    spec = SmallSpec(
        image_size=32, patch_size=4, vision_width=16, vision_layers=2, vision_mlp=32,
        text_width=32, text_layers=2, text_heads=4, text_kv_heads=2, text_mlp=64,
    )  # fmt: skip
    model, processor = small_llava_onevision(["a", "b", "c", "d", *THINGS, *WORDS, *map(str, range(10))], spec)
    with torch.no_grad():  # strong layers, so that an answer depends on the video and the whole question
        for weight in model.model.language_model.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(10)
        model.model.image_newline.normal_()
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    letters = tokenizer.convert_tokens_to_ids(["a", "b", "c", "d"])
    model.generation_config.suppress_tokens = sorted(set(range(len(tokenizer))) - {*letters, end})
    model.generation_config.begin_suppress_tokens = [end]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = None  # it would lower the letters' case
    content["model"]["vocab"] = {w.upper() if len(w) == 1 else w: i for w, i in content["model"]["vocab"].items()}
    file.write_text(json.dumps(content))
    return folder
