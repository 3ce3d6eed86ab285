"""A checkpoint that is neither in the cache nor to be had is named before anything is loaded, and at once."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import families
from mmg_bench import config as cfg
from mmg_bench.commands import evaluation, measure
from mmg_bench.methods import PACT, FastV, FastVID, VisionZip
from mmg_bench.models import loading
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.checking import ModelError, attention_lacks, check_method, check_model, explained
from mmg_bench.models.hub import commit_of, read_config
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec

REPO = "nobody/no-such-model"
LACKS = (
    rf"cannot be loaded from '{REPO}': no such local folder, and the hub cache is incomplete "
    r"\(.* cannot be reached: .*\); download it while online \(mmg-bench doctor says how\)"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses at a hub that answers everything, and always that there is no such thing."""
    found: list[str] = []

    class Session:
        def head(self, url: str, **_: Any) -> int:
            found.append(url)
            return 404

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    return found


@pytest.fixture
def nothing_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    class Session:
        def head(self, url: str, **_: Any) -> None:
            found.append(url)
            raise TimeoutError

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    return found


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**{"name": "x", "path": REPO, **changes})


def random_spec(**changes: Any) -> ModelSpec:
    """Of weights that nobody has to ask for."""
    return spec(**{"name": "llava_onevision_0_5b", "weights": "random", **changes})


def fill(cache: Path, repo: str, revision: str, weights: str = "model.safetensors") -> None:
    snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llava_onevision"}')
    (snapshot / weights).touch()


def test_the_hub_is_asked_once(nothing_answers: list[str]) -> None:
    with pytest.raises(ModelError, match=rf"model 'x' {LACKS}.*set model\.path to a complete checkpoint folder"):
        check_model(spec(), {})
    assert len(nothing_answers) == 1
    assert nothing_answers[0].endswith(f"{REPO}/resolve/main/config.json")


def test_whatever_the_hub_answers_is_left_to_loading(asked: list[str]) -> None:
    check_model(spec(revision="abc"), {})
    assert [url.rpartition("/resolve/")[2] for url in asked] == ["abc/config.json"]
    check_model(spec(), {"method": FastVID()})  # which may need a SigLIP checkpoint: the model's type will tell
    assert [url.rpartition("/resolve/")[2] for url in asked[1:]] == ["main/config.json"]
    assert commit_of(REPO, "abc") == "abc"  # of which nothing lies here


def test_what_is_at_hand_is_not_asked_for(asked: list[str], cache: Path, tiny_folder: Path) -> None:
    fill(cache, REPO, "abc")
    check_model(spec(revision="abc"), {})
    fill(cache, REPO, "old", "pytorch_model.bin")
    check_model(spec(revision="old"), {})
    check_model(random_spec(), {})
    for folder in ("embedded", str(tiny_folder), "/nowhere"):
        for weights in ("pretrained", "random"):
            check_model(spec(path=folder, weights=weights), {})
    assert asked == []


def test_random_weights_of_an_unknown_architecture_are_refused(cache: Path) -> None:
    fill(cache, REPO, "abc")  # what lies there is not asked: loading would not either
    for revision in ("other", "abc"):
        with pytest.raises(
            ValueError, match=r"^model\.weights='random': the architecture of 'x' is not known without a down"
        ):
            check_model(spec(weights="random", revision=revision), {})


def test_siglip_is_asked_for_where_a_method_needs_it(nothing_answers: list[str], cache: Path) -> None:
    model = random_spec(siglip="nobody/siglip", siglip_revision="abc")
    check_model(model, {"method": VisionZip()})
    assert nothing_answers == []
    with pytest.raises(ModelError, match=r"SigLIP checkpoint cannot be loaded from 'nobody/siglip'.*set model\.siglip"):
        check_model(model, {"method": FastVID(), "other": VisionZip()})
    fill(cache, "nobody/siglip", "abc")
    check_model(model, {"method": FastVID()})


def test_what_a_model_does_not_serve_is_told_by_the_methods_label(tiny: tuple[Any, Any]) -> None:
    says = r"^mine: models of type 'qwen2_5_vl' do not supply"
    with pytest.raises(UnsupportedModelError, match=says):
        check_model(random_spec(name="qwen2_5_vl_7b"), {"mine": FastVID()})
    with pytest.raises(UnsupportedModelError, match=says):
        check_method(adapter_for(families.qwen2_5_vl()[0]), FastVID(), "mine")
    with pytest.raises(ValueError, match=r"^FastV\.layer=40: "):
        check_method(adapter_for(tiny[0]), FastV(layer=40), "mine")


def test_attention_that_takes_no_weights_is_refused_before_it_is_loaded() -> None:
    flash = replace(random_spec(), attn_implementation="flash_attention_2")
    check_model(flash, {"method": PACT(proportional=False)})
    with pytest.raises(UnsupportedModelError, match="pact adds to attention scores, which flash_attention_2 cannot"):
        check_model(flash, {"method": PACT()})


def test_siglip_in_a_folder_is_seen_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"model\.siglip=/nowhere: /nowhere: no such checkpoint folder; name the tower's"
    ):
        check_model(random_spec(siglip="/nowhere"), {"method": FastVID()})
    check_model(random_spec(siglip="/nowhere"), {"method": VisionZip()})


def test_the_kind_of_a_checkpoint_is_seen_before_its_weights_are_fetched(cache: Path) -> None:
    commit = "1" * 40
    fill(cache, REPO, commit)
    snapshot = cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / commit
    (snapshot / "config.json").write_text('{"model_type": "llava"}')
    (snapshot / "model.safetensors").unlink()
    for name in ("x", "llava_onevision_7b"):  # which is not what lies there
        with pytest.raises(UnsupportedModelError, match=r"model_type 'llava'"):
            VideoLLM(spec(name=name, revision=commit, device="cpu"))


def test_a_whole_checkpoint_is_loaded_at_once(cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading, "bare_adapter", lambda _: pytest.fail("looked at before"))
    commit, cached = "1" * 40, cache / f"models--{REPO.replace('/', '--')}"
    shutil.copytree(tiny_folder, cached / "snapshots" / commit)
    loaded = VideoLLM(spec(revision=commit, dtype="float32", device="cpu"))
    assert (loaded.weights, loaded.settings) == (f"{REPO}@{commit}", None)  # the commit tells both
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    for revision in ("main", None):  # what these name may be another commit tomorrow
        assert VideoLLM(spec(revision=revision, dtype="float32", device="cpu")).weights == f"{REPO}@{commit}"


@pytest.mark.parametrize(("name", "helps"), [("llava_onevision_0_5b", True), ("mine", False)])
def test_speed_can_do_without_the_weights(name: str, helps: bool, nothing_answers: list[str], tmp_path: Path) -> None:
    options = ["model=llava_onevision_0_5b", f"model.name={name}", "video=random", f"output_dir={tmp_path}/out"]
    with pytest.raises(ModelError, match=r"set model\.path to a complete") as error:
        measure.measure(cfg.sweep("measure", options))
    assert str(error.value).endswith("; or set weights=random: speed does not depend on the weights") == helps


def test_a_configuration_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))} cannot be read \(.*Is a directory"):
        read_config(tmp_path)


def test_an_id_that_cannot_be_one_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"'a/b/c': .*Repo id must be .*; download it while online .*, or set model\.path"
    ):
        check_model(spec(path="a/b/c"), {})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(), r"^it cannot be loaded from '/x': the folder is incomplete \(OSError\);"),
        (OSError("\nlost\nmore"), r"the folder is incomplete \(lost\);"),
        (
            ImportError("pip install timm\nand start anew"),
            "^it needs a package that is not installed: pip install timm$",
        ),
        (RuntimeError("torn"), "^it at '/x' is damaged or of the wrong kind: torn$"),
        (ValueError("odd"), "^it at '/x' is damaged or of the wrong kind: odd$"),
    ],
)
def test_an_error_is_told_by_its_first_line_or_by_its_kind(error: Exception, says: str) -> None:
    with pytest.raises(ModelError, match=says), explained("it", "/x", "model.path"):
        raise error


def test_a_package_that_a_model_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> None:
        raise ImportError("pip install timm\nand start anew")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_config", build)
    with pytest.raises(ModelError, match=r"^model 'llava_onevision_0_5b' needs a package: pip install timm$"):
        check_model(random_spec(), {})


def test_attention_whose_package_is_there_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels, flash in ((False, False), (False, True), (True, False)):
        monkeypatch.setattr("transformers.utils.is_kernels_available", lambda there=kernels: there)
        monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda there=flash: there)
        monkeypatch.setattr("transformers.utils.is_flash_attn_3_available", lambda: False)
        lacking = [attention_lacks(f"flash_attention_{version}") is not None for version in (2, 3)]
        assert lacking == [not (kernels or flash), not kernels]
        assert (attention_lacks("nobody/kernel") is None) == kernels


def run(out: Path) -> int:
    sweep = ["model=embedded,llava_onevision_0_5b", "limit=1", f"output_dir={out}"]
    return evaluation.run(cfg.sweep("run", sweep))


def table(out: Path) -> int:
    return evaluation.table(
        cfg.composed("table", ["profile=paper", "model.llava_onevision_7b.device=cpu", f"output_dir={out}"])
    )


def timed(out: Path) -> int:
    sweep = ["model=embedded,llava_onevision_0_5b", "video=random", f"output_dir={out}"]
    return measure.measure(cfg.sweep("measure", sweep))


@pytest.mark.parametrize("command", [run, table, timed])
def test_commands_end_before_the_first_model_is_loaded(
    command: Callable[[Path], int], nothing_answers: list[str], no_model: None, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"model 'llava_onevision_.*cannot be reached: TimeoutError\); download it"):
        command(tmp_path / "out")
    assert len(nothing_answers) == 1
    assert not (tmp_path / "out").exists()


def hub_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's own client ask there, and nowhere else."""
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_ETAG_TIMEOUT": 1,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("listens", [False, True])
def test_no_time_is_lost_where_nothing_answers(
    listens: bool, no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own client: a refusal, and a machine that takes what it is asked and never replies."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub_at(address, monkeypatch)
        started = time.perf_counter()
        with pytest.raises(ModelError, match=rf"{address} cannot be reached"):
            run(tmp_path / "out")
        assert time.perf_counter() - started < 30


def test_an_answer_that_sends_elsewhere_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own client: whether anything answers there is for loading to see."""
    asked = []

    class Moved(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Moved) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        hub_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        check_model(spec(), {})
        thread.join()
    assert asked == [f"/{REPO}/resolve/main/config.json"]


def test_a_method_that_the_layers_do_not_serve_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.qwen3_5()[0].config.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("mmg_bench.commands.evaluation.VideoLLM", lambda *_: pytest.fail("the model is loaded"))
    model = ["model=qwen3_5_9b", f"model.path={tmp_path}/model", "model.revision=null", "model.device=cpu"]
    with pytest.raises(UnsupportedModelError, match=r"fastv prunes inside .* full_attention, linear_attention"):
        evaluation.run(cfg.sweep("run", [*model, "method=mmg_vid,fastv", f"output_dir={tmp_path}/out"]))
    with pytest.raises(ValueError, match=r"FastV\.layer=40: it must be an integer in \[1, 3\]"):
        evaluation.run(cfg.sweep("run", ["method=fastv", "method.layer=40", f"output_dir={tmp_path}/out"]))
