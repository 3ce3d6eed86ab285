"""Prefill by CUDA graphs: the language model's launches are recorded once a prompt length, and replayed as one.

A decoder layer of a stock model launches some forty kernels from Python, a millisecond's work for the host whatever the
prompt's length: behind strong pruning a GPU waits for it. Fixed budgets give fixed lengths, so that the launches can be
replayed. What is computed is the stock forward, kernel by kernel. On one instance, and undone on exit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

_REPLAYED = ("inputs_embeds", "position_ids", "attention_mask", "past_key_values", "cache_position")
"""Arguments that a recording sets itself, or that its prompt length decides."""


@dataclass(frozen=True)
class _Recording:
    """The launches of one prefill, on tensors that stay where they are."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Any
    cache: DynamicCache

    def replay(self, inputs: dict[str, Tensor]) -> Any:
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        self.graph.replay()
        # decoding makes longer tensors of its own: these are only looked at, until the next replay
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        output = copy.copy(self.output)
        output["past_key_values"] = cache
        return output


@dataclass
class Switch:
    """Whether a language model replays; off, it runs as ever."""

    on: bool = True


@contextmanager
def prefill_graphs(language_model: Any) -> Iterator[Switch]:
    """While open, `language_model` replays what it has done before at the same length.

    The first prefill of a length runs as ever, the second is recorded. What is not the prefill of prompts without
    padding runs as ever, too. Keys and values of a replayed prefill are overwritten by the next of that length: keep
    copies. Recordings keep memory of their own, one set for all lengths. Switch it off for a method that prunes inside
    the language model: such a forward is more than launches. Raises ValueError for a model whose forward takes more
    tensors than these.
    """
    switch = Switch()
    original = language_model.forward
    seen: set[Any] = set()
    recordings: dict[Any, _Recording] = {}
    pool = torch.cuda.graph_pool_handle()

    def forward(*args: Any, **kwargs: Any) -> Any:
        embeds, ids, mask = (kwargs.get(name) for name in ("inputs_embeds", "position_ids", "attention_mask"))
        cache = kwargs.get("past_key_values")
        if not switch.on or args or embeds is None or (cache is not None and cache.get_seq_length()):
            return original(*args, **kwargs)
        if mask is not None and (mask.dim() != 2 or not bool(mask.all())):
            return original(**kwargs)
        if ids is None:  # the stock forward would count them itself: dense is replayed like what prunes
            ids = torch.arange(embeds.shape[1], device=embeds.device)[None]
        if others := sorted(name for name, value in kwargs.items() if name not in _REPLAYED and _holds_tensors(value)):
            raise ValueError(
                f"measure.engine=graphs cannot replay {type(language_model).__name__}, which also takes "
                f"{', '.join(others)}: leave it at stock"
            )
        key = embeds.shape, embeds.dtype, ids.shape
        inputs = {"inputs_embeds": embeds, "position_ids": ids}
        if key not in recordings:
            if key not in seen:
                seen.add(key)
                return original(**kwargs)
            recordings[key] = _record(original, language_model.config, inputs, kwargs, pool)
        return recordings[key].replay(inputs)

    language_model.forward = forward
    try:
        yield switch
    finally:
        del language_model.forward
        recordings.clear()


def _holds_tensors(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def _record(original: Any, config: Any, inputs: dict[str, Tensor], kwargs: dict[str, Any], pool: Any) -> _Recording:
    fixed = {name: tensor.clone() for name, tensor in inputs.items()}
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        layer.lazy_initialization(fixed["inputs_embeds"], fixed["inputs_embeds"])
    kwargs = {name: value for name, value in kwargs.items() if name != "cache_position"}  # counted anew
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(fixed["inputs_embeds"].device)
    with torch.cuda.graph(graph, pool=pool):
        # no mask: causal, as with one that hides nothing; the cache keeps jumps in position ids from being taken for
        # borders between packed sequences
        output = original(**{**kwargs, **fixed, "attention_mask": None, "past_key_values": cache, "use_cache": True})
    return _Recording(graph, fixed, output, cache)
