"""Our methods in vLLM. vLLM itself is not installed here: modules of its names and functions of its signatures are."""

import re
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import golden_cases
from mmg_bench import vllm_plugin
from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import built_in, get_method
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep
from mmg_bench.vllm_plugin import VARIABLE, method_of, register, retention_mask, unfit


def compute_retained_tokens_count(tokens_per_frame: int, num_frames: int, q: float) -> int:
    return max(tokens_per_frame, int(tokens_per_frame * num_frames * (1 - q)))


def official(video_embeds: Tensor, video_size_thw: tuple[int, int, int], spatial_merge_size: int, q: float) -> Tensor:
    raise AssertionError("vLLM's own function")


@pytest.fixture(params=["vllm.multimodal.video_prune.evs", "vllm.multimodal.evs"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A vLLM that has EVS at one of its places, and the module of a model that has imported the function by name."""
    parts = request.param.split(".")
    for end in range(1, len(parts) + 1):
        package = ModuleType(".".join(parts[:end]))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package.__name__, package)
    evs, model = sys.modules[request.param], ModuleType("vllm.model_executor.models.some_vl")
    evs.compute_retained_tokens_count = compute_retained_tokens_count
    evs.compute_retention_mask = model.compute_retention_mask = official
    monkeypatch.setitem(sys.modules, model.__name__, model)
    return model


def embeds(frames: int, size: int, width: int = 12) -> Tensor:
    return torch.randn(frames * size, width, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("label", ["mmg_vid", "divprune", "vidcom2(exact_total=true)", " mmg_vid( tau=0.5, knn = 3)"])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.75, 0.99])
def test_a_method_takes_the_place_of_evs(label: str, q: float, model: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, label)
    register()
    x = embeds(6, 12)
    mask = model.compute_retention_mask(x, torch.tensor([6, 6, 8]), spatial_merge_size=2, q=q)
    count = compute_retained_tokens_count(12, 6, q)
    expected = replace(method_of(label), retention_ratio=count / 72).prune(VideoTokens(x.view(6, 12, -1), (3, 4)))
    assert mask.dtype == torch.bool
    assert mask.nonzero().squeeze(1).tolist() == expected.positions.tolist()
    assert int(mask.sum()) == count


def test_without_the_variable_nothing_changes(model: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for value in (None, " "):
        monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)
        register()
        assert model.compute_retention_mask is official


def test_the_last_method_registered_counts(model: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for label in ("uniform", "random", "uniform"):
        monkeypatch.setenv(VARIABLE, label)
        register()
    mask = model.compute_retention_mask(embeds(4, 4), (4, 2, 2), 1, 0.5)
    expected = get_method("uniform", retention_ratio=0.5).prune(VideoTokens(embeds(4, 4).view(4, 4, -1), (2, 2)))
    assert mask.nonzero().squeeze(1).tolist() == expected.positions.tolist()


EVS_RUNS = [run for run in golden_cases.all_runs() if run.stem == "evs"]


@pytest.mark.parametrize("run", EVS_RUNS, ids=lambda run: f"{run.folder.parent.name}-{run.id}")
def test_our_evs_there_is_vllms_own(run: golden_cases.Run):
    features = run.inputs(torch.device("cpu"))["feat"]
    frames, size, width = features.shape
    grid = run.inputs().grid
    count = compute_retained_tokens_count(size, frames, run.hyper["q"])
    mask = retention_mask(get_method("evs"), count, features.view(-1, width), (frames, *grid), 1)
    run.check("keep_idx", mask.nonzero().squeeze(1))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("dense", "dense prunes nothing"),
        ("visionzip", "visionzip reads attention, keys, and vLLM hands over only the tokens"),
        ("fastv", "fastv prunes inside the language model"),
        ("tome", "tome merges tokens, and vLLM can only drop them"),
        ("vidcom2", "vidcom2 does not keep exactly as many tokens as it is told to"),
        ("mmgvid", "unknown method 'mmgvid'; did you mean mmg_vid?"),
        ("mmg_vid(tau=7)", "tau=7"),
    ],
)
def test_what_vllm_cannot_use_is_refused(label: str, says: str, model: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, label)
    with pytest.raises(ValueError, match=re.escape(f"{VARIABLE}={label!r}: ") + ".*" + re.escape(says)):
        register()
    assert model.compute_retention_mask is official


def test_other_functions_of_that_name_stay(model: ModuleType, monkeypatch: pytest.MonkeyPatch):
    other = ModuleType("vllm.multimodal.video_prune.vidcom2")
    other.compute_retention_mask = min
    monkeypatch.setitem(sys.modules, other.__name__, other)
    lazy = ModuleType("vllm.lazy")
    lazy.__getattr__ = lambda name: pytest.fail(f"{name} was looked up in a module that is imported lazily")
    monkeypatch.setitem(sys.modules, lazy.__name__, lazy)
    monkeypatch.setitem(sys.modules, "vllm.blocked", None)
    monkeypatch.setenv(VARIABLE, "uniform")
    register()
    assert other.compute_retention_mask is min
    assert model.compute_retention_mask is not official


@dataclass(frozen=True)
class Corner(Method):
    """The first tokens column by column; one less than told if asked for nearly all."""

    name: ClassVar[str] = "corner"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        height, width = tokens.grid
        columns = torch.arange(tokens.total).view(-1, height, width).permute(2, 0, 1).flatten()
        return keep(tokens, columns[: self.budget(tokens) - (self.retention_ratio > 0.9)])


def test_frames_have_their_height_and_width():
    mask = retention_mask(Corner(), 6, embeds(2, 6), (2, 4, 6), 2)
    assert mask.view(2, 2, 3).nonzero()[:, 2].tolist() == [0, 1, 0, 1, 0, 0]
    assert "corner does not keep exactly" in str(unfit(Corner()))


@dataclass(frozen=True)
class Short(Method):
    """One token less than told, of videos of eight frames."""

    name: ClassVar[str] = "short"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, torch.arange(self.budget(tokens) - (tokens.frames == 8)))


def test_a_count_that_vllm_has_no_room_for_is_an_error():
    assert int(retention_mask(Short(), 5, embeds(7, 4), (7, 2, 2), 1).sum()) == 5
    with pytest.raises(ValueError, match="short keeps 4 of 32 tokens where vLLM has room for 5"):
        retention_mask(Short(), 5, embeds(8, 4), (8, 2, 2), 1)


def test_a_vllm_without_evs_is_named(monkeypatch: pytest.MonkeyPatch):
    vllm = ModuleType("vllm")
    vllm.__path__ = []
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv(VARIABLE, "uniform")
    with pytest.raises(ValueError, match=r"this vLLM has none of vllm\.multimodal\.video_prune\.evs, vllm\.multi"):
        register()


def test_a_fault_inside_vllm_is_its_own(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str) -> ModuleType:
        if name.startswith("vllm"):
            raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")
        return import_module(name)

    monkeypatch.setattr(vllm_plugin.importlib, "import_module", broken)
    monkeypatch.setenv(VARIABLE, "uniform")
    with pytest.raises(ModuleNotFoundError, match="msgspec"):
        register()


def test_the_page_lists_the_methods_that_fit():
    page = " ".join((Path(__file__).parents[1] / "docs" / "serving.md").read_text().split())
    fit = [name for name in sorted(built_in()) if unfit(get_method(name)) is None]
    assert f"these fit: {', '.join(fit)}. A method" in page


def test_vllm_finds_it():
    (entry,) = entry_points(group="vllm.general_plugins", name="mmg_bench")
    assert entry.load() is register
