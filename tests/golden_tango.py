from math import ceil

import torch

from golden_cases import Inputs, Run
from mmg_bench.methods._merge import unit
from mmg_bench.methods.holitom import best_windows, group_sizes, static_positions, still_links
from mmg_bench.methods.tango import reduce_segments, rotated


def check(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["video"], run.hyper
    size = features.shape[1]
    windows, _ = best_windows(still_links(features, hyper["tau"]))
    static = static_positions(still_links(features, 0.8).cpu(), windows)
    still, moving = group_sizes(windows, static)
    ratio = [
        min(hyper["retain_ratio"] * (b - a + 1) * size / (n + (b - a + 1) * moving[a]), 1)
        for (a, b), n in zip(windows, still, strict=True)
    ]
    counts = [ceil(n * r) for n, r in zip(still, ratio, strict=True)]
    counts += [ceil(moving[t] * r) for (a, b), r in zip(windows, ratio, strict=True) for t in range(a, b + 1)]
    attention = inputs["attention"].index_fill(
        1, torch.tensor(hyper["sinks"], dtype=torch.int64, device=features.device), 0
    )
    grid = (hyper["grid"][0], hyper["grid"][1])
    tokens, positions = reduce_segments(
        features,
        rotated(unit(features), grid, inputs["times"], hyper["base_time"], hyper["base_space"]),
        attention,
        windows,
        static,
        counts,
        context_ratio=hyper["context_ratio"],
        alpha=hyper["alpha"],
        beta=hyper["beta"],
        k=hyper["k_neighbors"],
        in_place=False,
    )
    order = positions.argsort()
    run.check("segments", [b - a + 1 for a, b in windows])
    run.check("positions", positions[order])
    run.check("features", tokens[order])


CHECKERS = {"tango": check}
