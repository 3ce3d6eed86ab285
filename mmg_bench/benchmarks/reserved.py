"""Names that rows use in place of a skill or a benchmark. No skill or benchmark may have one of them."""

ALL = "all"
"""In place of a skill: all questions."""
AVERAGE = "average"
"""In place of a benchmark: the unweighted mean of several."""
NO_BENCHMARK = "-"
"""In place of a benchmark: there is none, as for latency at a given geometry."""
