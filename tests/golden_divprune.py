from golden_cases import Inputs, Run
from mmg_bench.methods.divprune import DivPrune, diverse


def check(run: Run, inputs: Inputs) -> None:
    tokens = inputs.tokens()
    method = DivPrune(retention_ratio=run.hyper["threshold_ratio"])
    order, kept = diverse(tokens.flat, method.budget(tokens)), method.prune(tokens).positions
    run.check("selection_order", order)
    assert kept.tolist() == sorted(order.tolist())
    if not run.flagged("keep_idx"):  # identical tokens are officially picked twice
        run.check("keep_idx", kept)


CHECKERS = {"divprune": check}
