"""What `mmg-bench show` does with its composed configuration."""

from __future__ import annotations

import math
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
from mmg_bench.files import written_whole
from mmg_bench.measure.workload import standard_video
from mmg_bench.models.checking import check_model
from mmg_bench.models.hooks import VideoReport, pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.options import check_path, check_text, check_whole
from mmg_bench.report.overlay import Pictures, contact_sheet, kept_overlay

_HEIGHT = 112
"""Of a frame in the picture, in pixels."""


def show(configs: Sequence[DictConfig]) -> int:
    """Draw what each of the composed methods keeps of a video, and print what the model answers with it."""
    plain = [cfg.plain(config) for config in configs]
    values = plain[0]
    apart = ("method", "retention_ratio", "positions")
    if different := sorted(k for k in values if k not in apart and any(c[k] != values[k] for c in plain)):
        raise ValueError(f"pictures that differ in {', '.join(different)} do not fit one: make them one by one")
    check_text("question", values["question"])
    check_whole("new_tokens", values["new_tokens"], 1)
    check_whole("pictures", values["pictures"], 1)
    file, video = check_path("picture", values["picture"]), _video(values["video"])
    cells = [specs.cell({"name": "dense"}, 1.0)]
    cells += [specs.cell(c["method"], c["retention_ratio"], c["positions"]) for c in plain]
    cells = list(dict.fromkeys(cells))
    spec = specs.model_spec(values["model"])
    check_model(spec, {cell.label: cell.method.needs for cell in cells})

    llm = VideoLLM(spec)
    needs = needs_of(cells)
    llm.prepare(needs)
    clip = read_clip(video, spec.frames)
    encoded = llm.encode(llm.preprocess(clip.pixels, clip.timing), needs)
    inputs = llm.tokenize(values["question"], encoded.texts)
    print(f"{video.name}, {len(clip.pixels)} frames: {values['question']}")
    rows = []
    for cell in cells:
        with pruning(llm.model, cell.method, cell.positions, encoded=encoded.tokens) as run:
            text = llm.generate(inputs, encoded, {"max_new_tokens": values["new_tokens"]})
        (report,) = run.report
        print(f"  {_who(cell)}: {_tokens(report)}: {text}", flush=True)
        rows.append(_row(clip.pixels, report, values["pictures"]))
    with written_whole(file) as temporary:
        Image.fromarray(contact_sheet(rows, names=_names(cells))).save(temporary, format="png")
    print(f"Written: {file}")
    return 0


def _video(given: Any) -> Path:
    """The video that is meant, made if need be."""
    path = standard_video() if given == "generated" else check_path("video", given)
    if not path.exists():
        raise ValueError(f"video={given!r}: no such video; name a file, a folder of pictures, or generated")
    return path


def _names(cells: Sequence[Cell]) -> list[str]:
    """What the rows of the picture are called: no more than there is room for, where the lines printed tell all."""
    one_ratio = len({cell.method.retention_ratio for cell in cells[1:]}) < 2
    return [c.method.name if one_ratio else f"{c.method.name} {100 * c.method.retention_ratio:.4g} %" for c in cells]


def _who(cell: Cell) -> str:
    ratio = cell.method.retention_ratio
    return cell.label if ratio == 1 else f"{cell.label} at R = {100 * ratio:.4g} %"


def _tokens(report: VideoReport) -> str:
    """How many tokens a video was left with."""
    inside = f", {len(report.left)} in the last layer" if report.stages else ""
    return f"{report.realised_tokens} of {report.total_tokens} tokens{inside}"


def _row(pixels: Pictures, report: VideoReport, most: int) -> Pictures:
    """Frames `[n, height, width, 3]`, n at most `most`, what the last layer does not see of them darkened."""
    count, *grid = report.layout
    frames = pixels[:: math.ceil(len(pixels) / count)]  # some models make one of two
    which = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    size = (round(_HEIGHT * frames.shape[2] / frames.shape[1]), _HEIGHT)
    small = np.stack([np.asarray(Image.fromarray(frames[t]).resize(size)) for t in which])
    tokens: NDArray[np.bool_] = np.zeros((count, grid[0] * grid[1]), dtype=bool)
    tokens.reshape(-1)[report.left.numpy(force=True)] = True
    return kept_overlay(small, np.flatnonzero(tokens[which]), (grid[0], grid[1]))
