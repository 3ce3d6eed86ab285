from golden_cases import Inputs, Run
from mmg_bench.methods.cdpruner import CDPruner, dpp_selection, query_relevance


def check(run: Run, inputs: Inputs) -> None:
    image, text = inputs["clip_image_embeds"], inputs["clip_text_embeds"]
    tokens = inputs.tokens(joint_features=image, joint_query=text)
    whole, count = run.hyper["whole_video"], run.hyper["visual_token_num"]
    x = tokens.flat[None] if whole else tokens.features  # [B, N, D]

    relevance = query_relevance(image, text, -1).view(x.shape[:2])
    run.check("relevance", relevance)
    picks = dpp_selection(x, relevance, count).sort().values  # [B, count]
    flat = [p + b * x.shape[1] for b, row in enumerate(picks.tolist()) for p in row]
    run.check("keep_idx", flat)

    ratio = len(flat) / tokens.total
    method = CDPruner(retention_ratio=ratio, scope="video" if whole else "frame")
    assert method.prune(tokens).positions.tolist() == flat


CHECKERS = {"cdpruner": check}
