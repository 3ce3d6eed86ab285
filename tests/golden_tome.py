from golden_cases import Inputs, Run
from mmg_bench.methods.tome import merge_once, merge_to, unmerged


def check_tome(run: Run, inputs: Inputs) -> None:
    features = inputs["feat"]
    if "r" in run.hyper:
        merged = merge_once(unmerged(features), min(run.hyper["r"], features.shape[1] // 2))
    else:
        merged, rounds = merge_to(features, run.hyper["target_per_frame"])
        run.check("r_schedule", rounds)
    run.check("assign", merged.assign)
    run.check("sizes", merged.sizes.float())
    run.check("tokens_wavg", merged.tokens)


CHECKERS = {"tome": check_tome}
