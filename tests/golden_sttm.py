import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.sttm import STTM, areas, leaves, merge, pyramid, trees


def check(run: Run, inputs: Inputs) -> None:
    hyper = run.hyper
    variants = [hyper[name] for name in ("weighted_avg", "slow_ver", "head_dim")]
    assert not any(variants), f"a variant that is not offered: {hyper}"
    tokens = inputs.tokens()
    found = trees(pyramid(tokens.features, tokens.grid)[hyper["root_level"] :])
    for name, thresh in (("spatial_only_tyxyx", 0), ("tyxyx", hyper["temporal_thresh"])):
        groups = merge(found, hyper["threshold"], thresh)
        stays = torch.isin(groups.frame * tokens.tokens_per_frame + found.first[groups.leaf], groups.anchors)
        run.check(name, torch.column_stack([groups.frame, found.boxes[groups.leaf]])[stays])
    run.check("num_patches", areas(found, groups))
    assert int(areas(found, groups).sum()) == tokens.total
    nodes = found.features.shape[1]
    covering = (
        leaves(found, hyper["threshold"]) + nodes * torch.arange(tokens.frames, device=groups.leaf.device)[:, None]
    )
    assert torch.equal(covering.unique(), (groups.frame * nodes + groups.leaf).sort().values)

    names = ("threshold", "temporal_thresh", "root_level")
    pruned = STTM(**{name: hyper[name] for name in names}).prune(tokens)
    run.check("anchor_idx", pruned.positions)
    run.check("tokens", pruned.features)


CHECKERS = {"sttm": check}
