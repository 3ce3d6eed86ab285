"""Records made up in the test, from a string of outcomes a cell: 1 right, 0 wrong, x failed."""

import pytest

from mmg_bench.runner.records import Record

TOTAL = 64  # T * N


def cell_records(method, ratio, outcomes, *, model="toy", benchmark="bench", frames=8, skills=("colour", "order")):
    """Two questions a video, one of each skill in turn."""
    records = []
    for i, outcome in enumerate(outcomes):
        failed = outcome == "x"
        records.append(
            Record(
                model=model,
                benchmark=benchmark,
                frames=frames,
                method=method,
                retention_ratio=ratio,
                cell=f"{model}-{benchmark}-{method}-{ratio}",
                question=f"q{i:02d}",
                asked="",
                video=f"v{i // 2}",
                skill=skills[i % len(skills)],
                target="red",
                prediction=None if failed else "red" if outcome == "1" else "blue",
                score=None if failed else float(outcome),
                error="OSError: no such video" if failed else None,
                realised_tokens=None if failed else round(ratio * TOTAL),
                total_tokens=None if failed else TOTAL,
                prompt_tokens=None if failed else round(ratio * TOTAL) + 9,
                stages=None if failed else [],
                provenance="key1",
            )
        )
    return records


@pytest.fixture
def make():
    return cell_records


@pytest.fixture
def toy():
    """Dense 10 of 12; ours 8 and 7, a control 4 and one failure."""
    return [
        *cell_records("dense", 1.0, "111111111100"),
        *cell_records("ours", 0.5, "111111110000"),
        *cell_records("ours", 0.25, "011111100001"),
        *cell_records("random", 0.25, "111100000x00"),
    ]


@pytest.fixture
def provenance():
    return {
        "key1": {
            "device": "a CPU",
            "model": {"name": "toy", "dtype": "float32"},
            "attention": "sdpa",
            "date": "2026-01-02",
            "commit": "abc123",
            "command": "mmg-bench table toy",
        }
    }
