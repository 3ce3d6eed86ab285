from math import ceil

import torch
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods.holitom import (
    best_windows,
    group_sizes,
    merge_inside,
    merge_outer,
    static_positions,
    still_links,
)


def _newline_grid(tokens: Tensor, positions: Tensor, newline: Tensor, size: int, side: int) -> Tensor:
    """The official layout for LLaVA-Video: raster order, a newline after every row that is not empty."""
    order = positions.argsort()
    tokens, positions = tokens[order], positions[order]
    row = positions // size * side + positions % size // side  # over all frames
    return torch.cat([torch.cat([tokens[row == r], newline.view(1, -1)]) for r in row.unique()])


def check_holitom(run: Run, inputs: Inputs) -> None:
    if "retain_ratio" in run.hyper:
        _check_outer(run, inputs)
    else:
        _check_inner(run, inputs)


def _check_inner(run: Run, inputs: Inputs) -> None:
    first, tokens = len(inputs["sys_embeds"]), inputs.tokens()
    row = inputs["llm_last_row"].mean(0)  # [L]
    merged = merge_inside(tokens.flat, row[first : first + tokens.total], run.hyper["r"])
    run.check("keep_idx", merged.kept)
    run.check("merge_into", merged.target)
    run.check("tokens", merged.tokens)
    everything = torch.arange(len(row), device=row.device)  # original position ids stay
    run.check("position_ids", torch.cat([everything[:first], first + merged.kept, everything[first + tokens.total :]]))


def _check_outer(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["feat"], run.hyper
    size = features.shape[1]
    still = still_links(features, hyper["tau"])
    windows, saved = best_windows(still)
    total = features[..., 0].numel()
    ratio = min(hyper["retain_ratio"] / ((total - saved) / total), 1)
    is_static = static_positions(still, windows)
    static, dynamic = group_sizes(windows, is_static)
    tokens, positions = merge_outer(
        features,
        inputs["siglip_attn"],
        windows,
        is_static,
        [round(n * ratio) for n in static],
        [ceil(n * ratio) for n in dynamic],
        beta=hyper["Beta"],
        k=hyper["K"],
        D=hyper["D"],
    )
    run.check("windows", windows)
    run.check("static_reduction", float(saved))
    run.check("adjusted_ratio", ratio)

    inside = [(w, last) for w, (first, last) in enumerate(windows) for _ in range(first, last + 1)]
    window, end = torch.tensor(inside, device=features.device).T  # [T] each
    static_row = is_static[window].flatten()[positions]  # [K]
    order = (2 * (positions // size) + ~static_row).argsort(stable=True)  # officially static ones first in a window
    tokens, positions, static_row = tokens[order], positions[order], static_row[order]
    frame = positions // size
    run.check("tok_frame", frame)
    run.check("tok_pos", positions % size)
    run.check("tok_end_frame", torch.where(static_row, end[frame], frame))
    run.check("tok_is_static", static_row.long())
    if hyper["newline_position"] == "grid":
        run.check("tokens", _newline_grid(tokens, positions, inputs["newline"], size, inputs.grid[1]))
    else:
        run.check("tokens", tokens)


CHECKERS = {"holitom": check_holitom}
