import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.forestprune import ForestPrune, walk_scores


def check(run: Run, inputs: Inputs) -> None:
    hyper, tokens = run.hyper, inputs.tokens()
    run.check("scores", walk_scores(tokens.features))
    # as many as officially, which is a share of the whole tokens that the first stage leaves
    kept = run.output("keep_idx")
    options = {name: hyper[name] for name in ("tau", "tau_spatial", "gprune_ratio")}
    method = ForestPrune(len(kept) / tokens.total, **options)
    for name, value in zip(("first_idx", "depth"), method.forest(tokens), strict=True):
        run.check(name, value)
    pruned = method.prune(tokens)
    run.check("keep_idx", pruned.positions)
    assert torch.equal(pruned.features, tokens.flat[pruned.positions])


CHECKERS = {"forestprune": check}
