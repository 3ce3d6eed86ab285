"""Carries out `mmg-bench show` with its composed configuration."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.video import read_clip
from mmg_bench.cells import Cell, needs_of
from mmg_bench.faults import told
from mmg_bench.files import written_whole
from mmg_bench.measure.fidelity import fidelity
from mmg_bench.measure.workload import video_file
from mmg_bench.models.checking import check_method, check_model
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.run import VideoReport
from mmg_bench.options import check_folder, check_path, check_text, check_whole
from mmg_bench.report.overlay import Pictures, contact_sheet, kept_overlay
from mmg_bench.tokens import VideoTokens

_SIDE = 112
"""Side of a square frame in the picture, in pixels; other shapes have the same area."""
_WIDTH = 110
"""Width of the question on the terminal, in characters."""
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Suffix of a picture's file -> its format."""


def show(configs: Sequence[DictConfig]) -> int:
    """Draw what each of the composed methods keeps of a video, and print what the model then answers."""
    plain = [cfg.plain(config) for config in configs]
    values = plain[0]
    cfg.check_alike(
        plain,
        ("method", "retention_ratio", "positions"),
        "one picture cannot combine different values of {}; make them one by one, each with its own `picture`; only "
        "method, its options, retention_ratio and positions accept several values",
    )
    _check_question(values["question"])
    check_whole("new_tokens", values["new_tokens"], 1)
    check_whole("pictures", values["pictures"], 1)
    file, video = _picture(values["picture"]), _video(values["video"])
    cells = specs.cells(plain)
    spec = specs.model_spec(values["model"])
    check_model(spec, {cell.label: cell.method for cell in cells})
    clip = read_clip(video, spec.frames, spec.fps)  # a bad video must fail before the model is loaded

    llm = VideoLLM(spec)
    needs = needs_of(cells)
    llm.prepare(needs)
    for cell in cells:
        check_method(llm.adapter, cell.method, cell.label)
    encoded = llm.encode(llm.preprocess(clip.pixels, clip.timing), needs)
    inputs = llm.tokenize(values["question"], encoded.texts)
    print(_title(video.name, len(clip.pixels), values["question"]))
    rows: dict[Cell, Pictures] = {}
    for cell in cells:
        try:
            with pruning(llm.model, cell.method, cell.positions, encoded=encoded.tokens) as run:
                text = llm.generate(inputs, encoded, {"max_new_tokens": values["new_tokens"]})
                (report,) = run.report
                counts = _tokens(report, encoded.tokens[0])
        except Exception as error:  # one method's fault must not lose the others' picture
            print(f"  {_who(cell)} failed: {told(error)}", flush=True)
            continue
        print(f"  {_who(cell)}: {counts}: {text or '(nothing)'}", flush=True)
        rows[cell] = _row(clip.pixels, report, values["pictures"])
    if rows:
        with written_whole(file) as temporary:
            sheet = contact_sheet(list(rows.values()), names=_names(list(rows)))
            Image.fromarray(sheet).save(temporary, format=_FORMATS[file.suffix.lower()])
        print(f"Written: {file}")
    return len(cells) - len(rows)


def _check_question(given: Any) -> None:
    """Raise ValueError for an empty question. `null`, which unsets other options, would be asked as a text here."""
    check_text("question", given)
    if given.strip().lower() in ("null", "none"):
        raise ValueError(
            f"question={given!r}: it is not a question; leave the option out for the default question, or ask another"
        )


def _picture(given: Any) -> Path:
    """The file to write. Raises ValueError if it cannot be a picture file."""
    path = check_path("picture", given)
    if path.is_dir() or path.suffix.lower() not in _FORMATS:
        raise ValueError(f"picture={given!r}: name a file that ends in {', '.join(_FORMATS)}")
    check_folder("picture", str(path.parent))
    return path


def _video(given: Any) -> Path:
    """The video that is meant, generated if necessary."""
    path = video_file(given)
    if not path.exists():
        raise ValueError(f"video={given!r}: no such video; name a file, a folder of pictures, or generated")
    return path


def _title(video: str, frames: int, question: str) -> str:
    """The video and the question, a long one wrapped over several rows."""
    lines = f"{video}, {frames} frame{'s' * (frames != 1)}: {question}".splitlines()
    return "\n    ".join(row for line in lines for row in textwrap.wrap(line, _WIDTH))


def _names(cells: Sequence[Cell]) -> list[str]:
    """Names of the picture's rows: only what tells them apart, for there is little room."""
    one_ratio = len({cell.method.retention_ratio for cell in cells if cell.method.name != "dense"}) < 2
    names = []
    for cell in cells:
        several = len({other.label for other in cells if other.method.name == cell.method.name}) > 1
        name = cell.label if several else cell.method.name
        names.append(name if one_ratio else f"{name} {100 * cell.method.retention_ratio:.4g} %")
    return names


def _who(cell: Cell) -> str:
    return cell.label if cell.method.retention_ratio == 1 else str(cell)


def _tokens(report: VideoReport, video: VideoTokens) -> str:
    """How many tokens a video was left with, and how many they resemble."""
    few = report.realised_tokens < report.total_tokens
    like = f", like {100 * fidelity(video.flat, report.features).coverage:.0f} % of all" if few else ""
    inside = f", {len(report.left)} in the last layer" if report.stages else ""
    return f"{report.realised_tokens} of {report.total_tokens} tokens{like}{inside}"


def _row(pixels: Pictures, report: VideoReport, most: int) -> Pictures:
    """Frames `[n, height, width, 3]`, n at most `most`, with the parts that the last layer does not see darkened."""
    count, *grid = report.layout
    frames = pixels[:: math.ceil(len(pixels) / count)]  # some models merge two frames into one
    which = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    shape = math.sqrt(frames.shape[2] / frames.shape[1])
    size = (round(_SIDE * shape), round(_SIDE / shape))
    small = np.stack([np.asarray(Image.fromarray(frames[t]).resize(size)) for t in which])
    tokens: NDArray[np.bool_] = np.zeros((count, grid[0] * grid[1]), dtype=bool)
    tokens.reshape(-1)[report.left.numpy(force=True)] = True
    return kept_overlay(small, np.flatnonzero(tokens[which]), (grid[0], grid[1]))
