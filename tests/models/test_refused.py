"""Models that look like those of a family that is served, and are not."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, Glm46VConfig

from mmg_bench.models.adapter import REFUSED, UnsupportedModelError, adapter_for


class Bare:
    """Of a model, what tells its family."""

    def __init__(self, config: object):
        self.config = config


@pytest.mark.parametrize("kind", REFUSED)
def test_types_that_the_general_adapter_must_not_try(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip("a type of a later transformers")
    config = AutoConfig.for_model(kind)
    with pytest.raises(UnsupportedModelError, match=rf"\(model_type '{kind}'\): {REFUSED[kind]}; supported: "):
        adapter_for(Bare(config))


def test_glm46v_with_a_language_model_of_another_kind() -> None:
    says = "models of type 'glm46v' are supported with a language model of type .*, not 'qwen2'"
    with pytest.raises(UnsupportedModelError, match=says):
        adapter_for(Bare(Glm46VConfig(text_config={"model_type": "qwen2"})))
