from golden_cases import Inputs, Run
from mmg_bench.methods.evs import EVS, changed_most


def check(run: Run, inputs: Inputs) -> None:
    tokens = inputs.tokens()
    method = EVS(retention_ratio=1 - run.hyper["q"])
    kept = method.prune(tokens).positions
    run.check("keep_idx", kept)
    size = tokens.tokens_per_frame
    order = changed_most(tokens.features, len(kept) - size).tolist()
    run.check("selection_order", [*range(size), *order])


CHECKERS = {"evs": check}
