"""Which model is meant: wrong settings are named as the command names them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from mmg_bench.models.spec import ModelSpec


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"model.dtype='int9'"):
        ModelSpec("x", "y", dtype="int9")
    with pytest.raises(ValueError, match=r"model.device_map='auto': random weights go to one device"):
        ModelSpec("x", "y", weights="random", device_map="auto")
    with pytest.raises(ValueError, match=r"model.attn_implementation='foo': choose sdpa, "):
        ModelSpec("x", "y", attn_implementation="foo")
    with pytest.raises(ValueError, match=r"model.frames=0"):
        ModelSpec("x", "y", frames=0)
    with pytest.raises(ValueError, match=r"^model.fps='1': it must be a number"):
        ModelSpec("x", "y", fps="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model.fps=0: it must be above 0; null samples `frames` frames$"):
        ModelSpec("x", "y", fps=0)
    for name in ("min_pixels", "max_pixels"):
        for value in (0, 2.5, True, "many"):
            with pytest.raises(ValueError, match=rf"^model.{name}={value!r}: it must be a whole number, at least 1"):
                ModelSpec("x", "y", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.weights='zeros'"):
        ModelSpec("x", "y", weights="zeros")
    with pytest.raises(ValueError, match=r"^pretrained=None: it must be a text"):
        ModelSpec("x", None, called={"path": "pretrained"})  # type: ignore[arg-type]


def test_what_options_are_called_goes_with_a_model_and_is_no_part_of_it() -> None:
    named = ModelSpec("x", "y", called={"path": "pretrained"})
    for other in (named, replace(named, frames=32), pickle.loads(pickle.dumps(named))):
        assert (other.option("path"), other.option("frames")) == ("pretrained", "model.frames")
        assert {ModelSpec("x", "y"), other} == {other}
    # as it stands in provenance, and in the keys by which commands find what they measured before
    assert named.described() == {
        "name": "x",
        "path": "y",
        "revision": None,
        "frames": 32,
        "dtype": "bfloat16",
        "attn_implementation": "sdpa",
        "device": "auto",
        "device_map": None,
        "siglip": None,
        "siglip_revision": None,
        "weights": "pretrained",
    }
    limited = replace(named, max_pixels=784, fps=0.5)
    assert limited.described() == {**named.described(), "max_pixels": 784, "fps": 0.5}
    assert limited != named
