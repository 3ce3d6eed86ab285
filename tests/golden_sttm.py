import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.sttm import STTM, leaves, merge_through_time, pyramid


def check(run: Run, inputs: Inputs) -> None:
    hyper = run.hyper
    variants = [hyper[name] for name in ("weighted_avg", "slow_ver", "head_dim")]
    assert not any(variants), f"a variant that is not offered: {hyper}"
    tokens = inputs.tokens()
    levels = pyramid(tokens.features, tokens.grid)[hyper["root_level"] :]
    found, owner = leaves(levels, hyper["threshold"])
    merged = merge_through_time(found, owner, hyper["temporal_thresh"])
    run.check("spatial_only_tyxyx", found.boxes)
    run.check("tyxyx", merged.boxes)
    run.check("num_patches", merged.areas)
    assert int(merged.areas.sum()) == tokens.total
    assert torch.equal(owner.unique().cpu(), torch.arange(len(found)))

    names = ("threshold", "temporal_thresh", "root_level")
    pruned = STTM(**{name: hyper[name] for name in names}).prune(tokens)
    run.check("anchor_idx", pruned.positions)
    run.check("tokens", pruned.features)


CHECKERS = {"sttm": check}
