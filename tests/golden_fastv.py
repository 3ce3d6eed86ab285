import numpy as np

from golden_cases import Inputs, Run
from mmg_bench.methods.fastv import keep_by_attention


def check_fastv(run: Run, inputs: Inputs) -> None:
    first, visual = len(inputs["sys_embeds"]), inputs.tokens().total
    row = inputs["llm_last_row"].mean(0)  # [L]
    kept = keep_by_attention(row[first : first + visual], 1 - run.hyper["R"])
    sequence = np.arange(len(row))
    sequence = np.r_[sequence[:first], first + kept.cpu().numpy(), sequence[first + visual :]]
    run.check("keep_idx", kept)
    run.check("keep_seq", sequence)
    run.check("position_ids", sequence)  # original position ids stay


CHECKERS = {"fastv": check_fastv}
