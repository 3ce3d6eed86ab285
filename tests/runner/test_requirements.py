"""What a table lacks on this machine is listed before it starts."""

from __future__ import annotations

from pathlib import Path

from mmg_bench.runner.requirements import missing


def test_the_siglip_checkpoint_is_asked_for_only_by_methods_that_need_it(tmp_path: Path) -> None:
    model = {"path": "embedded", "siglip": "nobody/no-such-siglip"}
    assert missing(model, [], False) == []
    assert missing(model, [], False, {"attention", "query"}) == []
    (line,) = missing(model, [], False, {"attention", "frame_features"})
    assert line.startswith("the weights of nobody/no-such-siglip, for its pooling head and text tower (")
    assert missing({**model, "siglip": str(tmp_path)}, [], False, {"frame_features"}) == []
    assert missing({**model, "siglip": None}, [], False, {"frame_features"}) == []  # the adapter says so, by method
