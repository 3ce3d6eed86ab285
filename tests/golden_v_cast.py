import torch.nn.functional as F

from golden_cases import Inputs, Run
from mmg_bench.methods._ops import frame_means
from mmg_bench.methods.v_cast import VCast, curvature


def check(run: Run, inputs: Inputs) -> None:
    hyper, tokens = run.hyper, inputs.tokens()
    run.check("curvature", curvature(F.normalize(frame_means(tokens.features), dim=-1)))
    pruned = VCast(hyper["retain_ratio"], temperature=hyper["budget_temp"], min_k=hyper["min_k"]).prune(tokens)
    run.check("counts", pruned.notes["frame_budgets"])
    run.check("keep_idx", pruned.positions)


CHECKERS = {"v_cast": check}
