"""Names that rows use in place of a skill or a benchmark, so that none may be called so."""

ALL = "all"
"""In place of a skill: all questions."""
AVERAGE = "average"
"""In place of a benchmark: the unweighted mean of several."""
NO_BENCHMARK = "-"
"""In place of a benchmark: none, as of latency at a given geometry."""
