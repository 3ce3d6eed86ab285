"""Every family on a GPU, or spread over two, or what says that it is one: no tensor meets one of another device."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
import torch
from equalities import METHODS, lacking, method_of, prunes_inside, sequential
from torch import Tensor, nn

import families
from mmg_bench.methods.base import Positions
from mmg_bench.mock_gpu import GPU
from mmg_bench.models.adapter import adapter_for, fresh
from mmg_bench.models.hooks import pruning
from mmg_bench.tokens import VideoTokens
from mock_cuda import mock_cuda

STEPS = 3
FEW = ("mmg_vid", "random")
"""Methods that are tried on all families; so are those that prune inside, and one that reads the vision tower.

What others do is no family's affair.
"""
READS = "visionzip"


@pytest.fixture(params=list(families.BUILDERS))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, processor = families.BUILDERS[request.param]()
    return request.param, model, families.prompts(request.param, processor, ["What colour is the star?"])


def labels(name: str, model: Any) -> list[str]:
    """Of the methods that are tried."""
    tried = [
        label
        for label in METHODS
        if name == "llava_onevision" or label in (*FEW, READS) or prunes_inside(model, label)
        if not lacking(model, label) and not (sequential(model) and prunes_inside(model, label))
    ]
    assert set(FEW) <= set(tried)
    return tried


def logits(model: Any, inputs: dict[str, Any], label: str, encoded: Sequence[VideoTokens] | None = None) -> Tensor:
    """Of each generated token, `[steps, 1, vocabulary]`, on the CPU."""
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with pruning(model, method_of(label, retention_ratio=0.3), encoded=encoded):
        made = model.generate(**inputs, max_new_tokens=STEPS, **options)
    assert {step.device for step in made.logits} == {inputs["input_ids"].device}
    return torch.stack(made.logits).cpu()


def check(model: Any, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Whether, method by method, the same logits come out on the GPU; of the last, of videos encoded before, too."""
    sent = {key: value.to("cuda") for key, value in inputs.items()}
    made = [(label, logits(model, sent, label)) for label in expected]
    last, _ = made[-1]
    tokens, encoded = adapter_for(model).encode(sent, method_of(last, 0.3).needs)
    made.append((last, logits(model, {**families.text_of(sent), **fresh(encoded)}, last, tokens)))
    for label, there in made:
        torch.testing.assert_close(
            there, expected[label], atol=2e-4, rtol=2e-3, msg=lambda says, at=label: f"{at}: {says}"
        )


def test_the_code_for_a_gpu_makes_the_same_logits(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, model, inputs = family
    expected = {label: logits(model, inputs, label) for label in labels(name, model)}
    with mock_cuda() as gpu:
        model.to("cuda")
        assert model.device == GPU
        check(model, inputs, expected)
        assert gpu.kernels > 1000


def test_layers_on_two_gpus_make_the_same_logits(family: tuple[str, Any, dict[str, Tensor]]) -> None:
    name, model, inputs = family
    expected = {label: logits(model, inputs, label) for label in labels(name, model)}
    # every other layer is elsewhere, so that all stages have to move; of one family, the others in their turn
    for start in (0, 1) if name == "llava_onevision" else (1,):
        spread = copy.deepcopy(model)
        with mock_cuda(2):
            dispatch(spread, start)
            assert {str(next(layer.parameters()).device) for layer in adapter_for(spread).layers} == {
                "cuda:0",
                "cuda:1",
            }
            check(spread, inputs, expected)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("name", ["llava_onevision", "video_llama_3", "internvl"])
def test_ids_may_come_from_the_host(name: str, spread: bool) -> None:
    """`generate` then copies all that goes with them, what the tower returned as well. (Stock Qwen fails at that.)"""
    torch.manual_seed(0)
    model, processor = families.BUILDERS[name]()
    inputs = families.prompts(name, processor, ["What colour is the star?"])
    expected = logits(model, inputs, READS)
    with mock_cuda(2):
        if spread:
            dispatch(model, 1)
        else:
            model.to("cuda")
        there = {key: value if key in families.text_of(inputs) else value.to("cuda") for key, value in inputs.items()}
        with pruning(model, method_of(READS, retention_ratio=0.3)) as run:
            made = model.generate(
                **there, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        torch.testing.assert_close(made.logits[0].cpu(), expected[0], atol=2e-4, rtol=2e-3)
        assert run.report[0].realised_tokens < run.report[0].total_tokens


def dispatch(model: Any, start: int) -> None:
    """Put every other layer, from `start` on, the last norm and the vision tower on the second GPU."""
    accelerate = pytest.importorskip("accelerate")
    adapter = adapter_for(model)
    language = adapter.language_model
    towers = [part for part in adapter.multimodal.children() if language not in part.modules()]
    assert towers
    second = [*adapter.layers[start::2], language.norm, *towers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following device_map keys do not match")  # LLaVA's newline, no module's
        accelerate.dispatch_model(model, dict(device_map(model, second)), main_device=0, force_hooks=True)
    for module in model.modules():
        for part, value in module.named_parameters(recurse=False):
            if value.device.type == "cpu":
                setattr(module, part, nn.Parameter(value.to("cuda"), requires_grad=False))


def device_map(module: nn.Module, second: Collection[nn.Module], name: str = "") -> Iterator[tuple[str, int]]:
    """As accelerate takes it: the modules of `second` on the second device, all else on the first."""
    if module in second or not set(module.modules()) & set(second):
        yield name, int(module in second)
        return
    within = f"{name}." if name else ""
    for part, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield within + part, 0
    for part, child in module.named_children():
        yield from device_map(child, second, within + part)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_pruning_gives_a_gpu_little_to_do_and_lets_it_go_on(name: str) -> None:
    """What a prefill of videos encoded before takes beyond the stock model's: kernels, and waits of the host."""
    model, processor = families.BUILDERS[name]()
    inputs = families.prompts(name, processor, ["What colour is the star?"])
    with mock_cuda() as gpu, torch.inference_mode():
        model.to("cuda")
        sent = {key: value.to("cuda") for key, value in inputs.items()}
        tokens, encoded = adapter_for(model).encode(sent, {"query"})

        def prefill() -> tuple[int, list[str]]:
            before, waited = gpu.kernels, len(gpu.waits)
            model(**families.text_of(sent), **fresh(encoded), use_cache=True, logits_to_keep=1)
            return gpu.kernels - before, [wait for wait in gpu.waits[waited:] if not wait.startswith("modeling_")]

        def beyond(label: str, positions: Positions) -> tuple[int, list[str]]:
            with pruning(model, method_of(label, 0.3), positions=positions, encoded=tokens):
                prefill()  # the prompt's videos are pruned here, and kept for the next
                kernels, waits = prefill()
            return kernels - stock[0], sorted((Counter(waits) - Counter(stock[1])).elements())

        stock = prefill()
        the_ids = re.compile(r"splice\.py:\d+ copy$")  # which the host reads, to find the videos
        most = {"llava_onevision": (14, 10), "qwen2_5_vl": (26, 11), "qwen3_vl": (39, 24)}[name]
        for positions, allowed in zip(("contiguous", "original"), most, strict=True):
            kernels, waits = beyond("random", positions)
            assert kernels <= allowed, (positions, kernels)
            assert len(waits) == 1
            assert the_ids.match(waits[0])
            kernels, waits = beyond("pdrop", positions)
            assert kernels <= 380, kernels
            # what may be wrong with each of three choices is read when the GPU has all its work
            assert [wait.split(":")[0] for wait in waits] == ["contract.py"] * 3 + ["splice.py"]
