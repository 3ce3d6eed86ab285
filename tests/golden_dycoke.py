import numpy as np

from golden_cases import Inputs, Run
from mmg_bench.methods.dycoke import DyCoke, references, similarity, temporal_merge


def check_dycoke(run: Run, inputs: Inputs) -> None:
    if "p" in run.hyper:
        _check_keys(run, inputs)
    else:
        _check_merging(run, inputs)


def _check_keys(run: Run, inputs: Inputs) -> None:
    first, visual = len(inputs["sys_embeds"]), inputs.tokens().total
    method, memory = DyCoke(p=run.hyper["p"], layer=run.hyper["l"]), None
    for step in range(3):
        row = inputs[f"llm_dec_row{step}"].mean(0)  # [L]
        attention = row[first : first + visual]
        run.check(f"step{step}_similarity", np.float32(0 if memory is None else float(similarity(attention, memory))))
        chosen, memory = method.select_keys(attention, memory)
        run.check(f"step{step}_pruned", np.int64(chosen is not None))
        everything = np.arange(len(row))
        kept = [] if chosen is None else np.r_[everything[:first], first + chosen.cpu(), everything[first + visual :]]
        run.check(f"step{step}_kv_keep", np.asarray(kept, dtype=np.int64))


def _check_merging(run: Run, inputs: Inputs) -> None:
    features = inputs["feat"]
    frames, size, _ = features.shape
    refers = references(frames)
    reduced = int((1 - run.hyper["k"]) * size)
    counts = [size if refer == t else reduced for t, refer in enumerate(refers)]
    if frames % 2:
        counts[-1] = 0  # officially lost
    kept = temporal_merge(features, counts, refers)
    run.check("sequence_idx", kept)
    run.check("keep_idx", kept.sort().values)


CHECKERS = {"dycoke": check_dycoke}
