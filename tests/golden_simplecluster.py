from golden_cases import Inputs, Run
from mmg_bench.methods._merge import first_members, unit
from mmg_bench.methods.simplecluster import SimpleCluster, rotated, spherical_k_means
from mmg_bench.tokens import VideoTokens


def check(run: Run, inputs: Inputs) -> None:
    features = inputs["video"]
    side = round(features.shape[1] ** 0.5)
    tokens = VideoTokens(features, (side, side))
    method = SimpleCluster(run.hyper["retention_ratio"], max_iters=run.hyper["max_iters"])
    pruned, count = method.prune(tokens), method.budget(tokens)
    run.check("positions", pruned.positions)
    run.check("features", pruned.features)
    group = spherical_k_means(unit(rotated(tokens)), count, method.max_iters)
    group = group.cpu()
    run.check("members", group.bincount(minlength=count)[first_members(group, count).argsort()])


CHECKERS = {"simplecluster": check}
