"""`python -m mmg_bench` is `mmg-bench`."""

from mmg_bench.cli import main

main()
