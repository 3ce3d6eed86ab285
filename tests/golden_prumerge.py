import torch

from golden_cases import Inputs, Run
from mmg_bench.methods._ops import descending
from mmg_bench.methods.prumerge import merge_around, outlier_ratio, with_grid


def check_prumerge(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["feat"], run.hyper
    keys, query = inputs["clip_k"], inputs["clip_q_cls"]
    size = features.shape[1]
    # The class token's attention over itself and the patches; the patches' part is not normalised again.
    logits = (keys @ query.unsqueeze(2)).squeeze(2) * query.shape[1] ** -0.5  # [T, 1 + N]
    attention, keys = logits.softmax(1)[:, 1:], keys[:, 1:]
    ratios, centres, tokens = [], [], []
    for x, a, k in zip(features, attention, keys, strict=True):
        ratio = outlier_ratio(a) if hyper["if_adaptive"] else hyper["reduction_ratio"]
        chosen = descending(a)[: int(size * ratio)]
        if "prumergeplus" in run.id:
            chosen = with_grid(chosen, size, ratio)
        ratios.append(ratio)
        centres.append(chosen)
        tokens.append(merge_around(x[None], a[None], k[None], chosen[None])[0])
    run.check("reduction_ratio", ratios)
    run.check("center_idx", torch.cat(centres))
    run.check("tokens_per_frame", [len(t) for t in tokens])
    run.check("tokens", torch.cat(tokens))


CHECKERS = {"prumerge": check_prumerge}
