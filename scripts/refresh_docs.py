"""Draw the figures of README and docs, and write their tables.

Figures: test videos; what methods keep of a video; accuracy kept in Table 1, over what kept tokens lose of the video,
over the tokens, and for MMG-Vid's parts; tokens needed by methods and by chains. Tables: accuracy kept in Table 1 and
with what servers offer; prefill after pruning on two cores; which method runs on which family; the size of a video in
each model; published numbers. The tables in results/ are laid out again from their rows.

python scripts/refresh_docs.py [--results results/table1/embedded]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mmg_bench import config as cfg
from mmg_bench.benchmarks.embedded.dataset import video_file
from mmg_bench.benchmarks.reserved import ALL
from mmg_bench.benchmarks.video import read_frames
from mmg_bench.commands.show import show
from mmg_bench.report import figures
from mmg_bench.report.accuracy import leading
from mmg_bench.report.leading import WITHIN
from mmg_bench.report.overlay import contact_sheet
from mmg_bench.report.rows import DENSE, read_rows
from mmg_bench.report.table import named

ROOT = Path(__file__).resolve().parent.parent
TESTS = [ROOT / "tests" / part for part in (".", "models", "measure", "report")]
VIDEOS = (3, 5, 8, 13)
SIZE = 112
RETENTION = ROOT / "results" / "retention" / "embedded" / "rows.csv"
ABLATIONS = ROOT / "results" / "ablations" / "embedded" / "rows.csv"
CHAINS = ROOT / "results" / "chains" / "embedded" / "rows.csv"
SERVING = ROOT / "results" / "serving" / "embedded"
KEPT = (("kept", 3, 0.25, "mmg_vid,dpc_knn,random"), ("show", 0, 0.1, "mmg_vid,dpc_knn,random,fastv"))
"""Pictures of what methods keep: (name, video, retention ratio, methods)."""


def frames_of(number: int) -> np.ndarray:
    """The 16 frames that the model sees, `[16, SIZE, SIZE, 3]`."""
    frames = read_frames(video_file(f"test-{number:04d}.mp4"), 16)
    return np.stack([np.asarray(Image.fromarray(f).resize((SIZE, SIZE))) for f in frames])


def compact_table(rows: pd.DataFrame) -> str:
    """Percent of dense kept, one line per method and one column per retention ratio, as Markdown."""
    overall = rows[rows.skill == ALL]
    kept = overall[overall.metric == "accuracy_kept_percent"].set_index(["method", "retention_ratio"])
    seen = overall[overall.metric == "retention_layer_mean"].set_index(["method", "retention_ratio"]).value
    dense = overall[(overall.method == DENSE) & (overall.metric == "accuracy")].iloc[0]
    ratios = sorted({r for _, r in kept.index if r < 1}, reverse=True)
    methods, lead = [m for m in dict.fromkeys(m for m, _ in kept.index) if m != DENSE], leading(rows)
    lines = [
        f"Percent of dense accuracy kept, with its paired 95 % interval; {dense.model} model, {dense.frames} frames,",
        f"{dense.n} questions; dense answers {dense.value:.1f} % [{dense.ci_low:.1f}, {dense.ci_high:.1f}] right.",
        "After @, where it differs from R: the share of visual tokens that a layer sees, averaged over the layers.",
        "Bold: the best of the methods that stay within R, and those not distinguishable from it.",
        "",
        "| | " + " | ".join(f"R = {100 * r:g} %" for r in ratios) + " |",
        "|:--" + "|--:" * len(ratios) + "|",
    ]
    for method in methods:
        cells = [kept.loc[(method, r)] if (method, r) in kept.index else None for r in ratios]
        texts = ["–" if c is None else f"{c.value:.1f} [{c.ci_low:.1f}, {c.ci_high:.1f}]" for c in cells]
        shares = [seen.get((method, r), r) for r in ratios]
        texts = [
            f"{text} @ {100 * share:.0f} %" if text != "–" and abs(share - r) > WITHIN else text
            for text, share, r in zip(texts, shares, ratios, strict=True)
        ]
        texts = [f"**{text}**" if (method, r) in lead else text for text, r in zip(texts, ratios, strict=True)]
        name = f"**{method}**" if method == "mmg_vid" else named(method)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def refresh_between(page: Path, begin: str, text: str, end: str) -> None:
    """Replace the text between two marks of a page by `text`."""
    before, rest = page.read_text().split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def refresh_table(page: Path, results: Path) -> None:
    """Rewrite the table of a page, from the rows in `results`."""
    link = Path(os.path.relpath(results / "table.md", page.parent)).as_posix()
    where = f"[The whole table]({link}): every skill, tokens, FLOPs, speed-up."
    table = f"{compact_table(read_rows(results / 'rows.csv'))}\n\n{where}"
    refresh_between(page, "<!-- table:begin -->", table, "<!-- table:end -->")


def refresh_pages() -> None:
    """Rewrite the tables that test modules make: families and methods, prefill on two cores, rows in results/."""
    sys.path[:0] = map(str, TESTS)
    import committed
    import cpu_prefill
    import equalities
    import published_page
    import sizes_table

    import families

    for file in committed.FILES:
        file.write_text(committed.made(file), encoding="utf-8")
    docs = ROOT / "docs"
    refresh_between(docs / "models.md", equalities.BEGIN, equalities.table(families.BUILDERS), equalities.END)
    refresh_between(docs / "models.md", sizes_table.BEGIN, sizes_table.table(), sizes_table.END)
    for (begin, end), table in (
        (published_page.SPREAD, published_page.spread()),
        (published_page.NUMBERS, published_page.numbers()),
    ):
        refresh_between(published_page.PAGE, begin, table, end)
    refresh_between(docs / "measuring.md", cpu_prefill.BEGIN, cpu_prefill.table(), cpu_prefill.END)
    refresh_between(docs / "measuring.md", committed.TIMES_BEGIN, committed.times(), committed.TIMES_END)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bring README and docs up to date with the results.")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "table1" / "embedded")
    results = parser.parse_args().results.resolve()
    refresh_pages()
    folder = ROOT / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)

    Image.fromarray(contact_sheet([frames_of(v) for v in VIDEOS])).save(folder / "embedded.png")

    for name, video, ratio, methods in KEPT:
        path, picture = video_file(f"test-{video:04d}.mp4"), folder / f"{name}.png"
        options = [f"method={methods}", f"retention_ratio={ratio}", f"video='{path}'", f"picture='{picture}'"]
        show(cfg.sweep("show", options))

    rows_of_table = read_rows(results / "rows.csv")
    refresh_table(ROOT / "README.md", results)
    refresh_table(ROOT / "docs" / "serving.md", SERVING)
    figures.save(figures.kept_by_method(rows_of_table, highlight=["mmg_vid"]), folder / "accuracy")
    figures.save(figures.accuracy_vs_fidelity(rows_of_table), folder / "fidelity")
    figures.save(figures.accuracy_vs_tokens(read_rows(RETENTION)), folder / "retention")
    figures.save(figures.needed_by_method(read_rows(RETENTION), highlight=["mmg_vid"]), folder / "needed")
    figures.save(figures.needed_by_method(read_rows(CHAINS), highlight=["mmg_vid"]), folder / "chains")
    figures.save(figures.points_over(read_rows(ABLATIONS), "mmg_vid"), folder / "ablations")


if __name__ == "__main__":
    main()
