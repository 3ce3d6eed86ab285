from __future__ import annotations

import inspect

import pytest
from transformers import DynamicCache, Qwen2Model
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmg_bench.models import caches
from mmg_bench.models.caches import CACHE, cache_of


def test_it_goes_by_the_name_that_models_have_for_it() -> None:
    assert CACHE in inspect.signature(Qwen2Model.forward).parameters
    cache = DynamicCache()
    assert getattr(BaseModelOutputWithPast(**{CACHE: cache}), CACHE) is cache


def test_a_call_may_have_either_name() -> None:
    cache = DynamicCache()  # empty, and so false
    assert cache_of({"use_cache": True, "cache": cache}) is cache
    assert cache_of({"past_key_values": cache}) is cache
    assert cache_of({"use_cache": True}) is None


def test_a_third_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "create_causal_mask", lambda config, memory: None)
    with pytest.raises(ImportError, match=r"^transformers \d.* neither cache nor past_key_values: install an older"):
        caches._name()
