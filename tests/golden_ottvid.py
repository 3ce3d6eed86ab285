import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.ottvid import OTTVid, merge_budgets, similarities
from mmg_bench.tokens import VideoTokens


def check(run: Run, inputs: Inputs) -> None:
    options = dict(run.hyper)
    order = options.pop("frames", slice(None))  # which of the case's, in this order
    features, attention = inputs["feat"][order], inputs["siglip_attn"][order]
    method = OTTVid(**options)
    tokens = VideoTokens(features, inputs.grid, attention=attention)

    cosine, still = similarities(tokens.features)
    within = method.spatial(tokens, cosine)
    frames, kept = within.shape
    run.check("spatial_idx", (within + tokens.tokens_per_frame * torch.arange(frames).to(within)[:, None]).flatten())
    if "budgets" in run.names:
        between = method.between(tokens, cosine, still, within)
        run.check("mass", between.mass)
        if "distance" in run.names:  # left out where it is nothing but rounding
            run.check("distance", between.distance)
        merges = method.merges(frames * kept)
        run.check("budgets", merge_budgets(between.distance, merges, kept - 1, method.ot_budget_temperature))
    pruned = method.prune(tokens)
    run.check("keep_idx", pruned.positions)
    if "tokens" in run.names:
        run.check("tokens", pruned.features)
    else:
        run.check("token_norms", pruned.features.norm(dim=1))


CHECKERS = {"ottvid": check}
