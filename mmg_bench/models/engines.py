"""Prefill without the host's overhead: by recorded CUDA graphs, or compiled.

A decoder layer of a stock model launches some forty kernels from Python, which takes the host a millisecond whatever
the prompt's length: after strong pruning, the GPU waits for it. Fixed budgets give fixed lengths, so a prefill can be
recorded or compiled once per length. This applies to one instance and is undone on exit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmg_bench.models.caches import CACHE, cache_of

Engine = Literal["stock", "graphs", "compile"]
"""`stock`: transformers as it is. `graphs`: its kernel launches, recorded and replayed. `compile`: torch.compile."""
ROUNDS = {"stock": 0, "graphs": 2, "compile": 3}
"""Number of prefills of one length before the engine is ready for it."""
Backend = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""Kernels of `scaled_dot_product_attention`; `auto`: torch's own choice, call by call."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_SET = ("inputs_embeds", "position_ids", "attention_mask", "cache", "past_key_values", "cache_position", "use_cache")
"""Arguments of a language model that engines set themselves."""


@dataclass
class Switch:
    """How a language model prefills."""

    on: bool = True
    """By the engine; if off, the stock forward runs."""
    unpadded: bool = False
    """Whether all prompts are known to be unpadded, before and after pruning: no GPU sync is needed to find out."""


@contextmanager
def attention_backend(backend: Backend) -> Iterator[None]:
    """While open, SDPA runs on one kind of kernel; torch raises RuntimeError if that kernel cannot be used."""
    with nullcontext() if backend == "auto" else sdpa_kernel(BACKENDS[backend]):
        yield


@contextmanager
def prefill_engine(language_model: Any, engine: Engine) -> Iterator[Switch]:
    """While open, `language_model` prefills by an engine; decoding and padded prompts use the stock forward.

    The next prefill may overwrite the keys and values of the last one: keep copies. Switch the engine off for a method
    that prunes inside the language model, because hooks are then part of the forward. Raises ValueError for a model
    whose forward takes more tensors than embeddings, position ids and mask, and torch's own errors for one that it
    cannot compile.
    """
    switch = Switch()
    if engine == "stock":
        yield switch
        return
    if "forward" in vars(language_model):  # accelerate's, if layers are spread
        raise ValueError(
            f"measure.engine={engine} needs the model's own forward, which has been replaced, such as by accelerate: "
            "leave it at stock"
        )
    original = language_model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        embeds, ids, mask = (kwargs.get(name) for name in ("inputs_embeds", "position_ids", "attention_mask"))
        cache = cache_of(kwargs)
        if not switch.on or args or embeds is None or (cache is not None and cache.get_seq_length()):
            return original(*args, **kwargs)
        if mask is not None and (mask.dim() != 2 or not (switch.unpadded or bool(mask.all()))):
            return original(**kwargs)
        others = {name: value for name, value in kwargs.items() if name not in _SET}
        if more := sorted(name for name, value in others.items() if _holds_tensors(value)):
            raise ValueError(
                f"measure.engine={engine} cannot run {type(language_model).__name__}, which also receives "
                f"{', '.join(more)}: leave it at stock"
            )
        if ids is None:  # the stock forward would compute them itself
            ids = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return run({"inputs_embeds": embeds, "position_ids": ids}, others)

    with ExitStack() as stack:
        language_model.forward = forward
        stack.callback(delattr, language_model, "forward")
        if engine == "compile":
            # beyond its limit, torch would silently fall back to the stock forward
            limits = torch._dynamo.config.patch(
                recompile_limit=1000, accumulated_recompile_limit=1000, fail_on_recompile_limit_hit=True
            )
            stack.enter_context(limits)
            on_gpu = next(language_model.parameters()).device.type == "cuda"  # elsewhere there is nothing to record
            stack.enter_context(torch._inductor.config.patch({"triton.cudagraph_or_error": on_gpu}))
            stack.callback(torch._dynamo.reset)  # compiled code would keep memory of its own on a GPU
            run: _Run = _compiled(original, language_model.config)
        else:
            run = _Graphs(original, language_model.config)
        yield switch


_Run = Callable[[dict[str, Tensor], dict[str, Any]], Any]


def _holds_tensors(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def _whole(cache: DynamicCache, mask: dict[str, None] | None = None) -> dict[str, Any]:
    """Further arguments for the prefill of a prompt without padding.

    No mask means causal attention, as with a mask that hides nothing. The cache prevents jumps in position ids from
    being treated as borders between packed sequences.
    """
    return {"attention_mask": mask, CACHE: cache, "use_cache": True}


def _no_masks(config: Any) -> dict[str, None] | None:
    """The mask that keeps a model from making its own while it is compiled: `None` for each kind of layer.

    Given plain `None`, the model decides whether it needs a mask. Compiled by torch before 2.14, it always makes one,
    which forces attention onto a slower kernel. Raises ValueError, with such a torch, if the model accepts only `None`.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"full_attention"}:
        return dict.fromkeys(kinds)
    if torch.__version__ < "2.14":  # compared as versions are
        raise ValueError(
            f"measure.engine=compile needs torch 2.14 or later for {config.model_type}: older versions (here "
            f"{torch.__version__}) always mask its attention; use measure.engine=graphs"
        )
    return None


def _compiled(original: Any, config: Any) -> _Run:
    """`original` by torch.compile, compiled for each length; kernel launches, if any, are recorded."""
    forward = torch.compile(original, mode="reduce-overhead", dynamic=False, fullgraph=True)

    def run(inputs: dict[str, Tensor], others: dict[str, Any]) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return forward(**others, **inputs, **_whole(DynamicCache(config=config), _no_masks(config)))

    return run


class _Graphs:
    """`original` by CUDA graphs: the same kernels that it launches itself.

    The first prefill of a length runs the stock forward, the second is recorded. Recordings of all lengths share one
    memory pool of their own.
    """

    def __init__(self, original: Any, config: Any) -> None:
        self.original, self.config = original, config
        self.seen: set[Any] = set()
        self.recordings: dict[Any, _Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: dict[str, Tensor], others: dict[str, Any]) -> Any:
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if key not in self.recordings:
            if key not in self.seen:
                self.seen.add(key)
                return self.original(**others, **inputs, **_whole(DynamicCache(config=self.config)))
            self.recordings[key] = self._record(inputs, others)
        return self.recordings[key].replay(inputs)

    def _record(self, inputs: dict[str, Tensor], others: dict[str, Any]) -> _Recording:
        fixed = {name: tensor.clone() for name, tensor in inputs.items()}
        cache = DynamicCache(config=self.config)
        for layer in cache.layers:
            if isinstance(layer, DynamicLayer):  # not of linear attention, whose states have other shapes
                layer.lazy_initialization(fixed["inputs_embeds"], fixed["inputs_embeds"])
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(fixed["inputs_embeds"].device)
        with torch.cuda.graph(graph, pool=self.pool):
            output = self.original(**others, **fixed, **_whole(cache))
        return _Recording(graph, fixed, output, cache)


@dataclass(frozen=True)
class _Recording:
    """The kernel launches of one prefill, on tensors at fixed addresses."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Any
    cache: DynamicCache

    def replay(self, inputs: dict[str, Tensor]) -> Any:
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        self.graph.replay()
        # decoding makes its own, longer tensors; these are only read, until the next replay
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        output = copy.copy(self.output)
        output[CACHE] = cache
        return output
