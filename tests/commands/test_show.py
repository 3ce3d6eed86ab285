"""`mmg-bench show`: the picture and the answers of the embedded model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import given
from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.benchmarks.video import read_clip
from mmg_bench.cells import Cell
from mmg_bench.commands.show import _names, _row, _title
from mmg_bench.measure.fidelity import fidelity
from mmg_bench.methods.registry import get_method
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM

MARGIN, SIDE, GAP = 22, 112, 2


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a star.mp4"
    write_video(make_world("test", 0), path)
    return path


def bright(picture: np.ndarray, row: int, frame: int) -> np.ndarray:
    """Which tokens `[49]` of a frame a row shows at full brightness, as against the first row."""
    at, top = MARGIN + GAP + frame * (SIDE + GAP), row * (SIDE + GAP)
    shown, whole = (picture[y : y + SIDE, at : at + SIDE].astype(int) for y in (top, 0))
    same = (shown == whole).all(-1).reshape(7, SIDE // 7, 7, SIDE // 7)
    return same.all((1, 3)).ravel()


def test_what_is_kept_is_bright(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "kept.png"
    options = f"retention_ratio=0.1,0.25 'video={video}' pictures=5 picture={file}"
    assert given(f"mmg-bench show -m method=mmg_vid {options}", monkeypatch) == 0
    title, *lines, written = capsys.readouterr().out.splitlines()
    assert title == "a star.mp4, 16 frames: What colour is the star? Answer with one word."
    assert lines[0] == "  dense: 784 of 784 tokens: red"
    assert written == f"Written: {file}"
    picture = np.asarray(Image.open(file))
    assert picture.shape == (3 * (SIDE + GAP) - GAP, MARGIN + 5 * (SIDE + GAP), 3)
    llm = VideoLLM(specs.model_spec(cfg.load("model", "embedded")))
    clip = read_clip(video, 16)
    (tokens,) = llm.encode(llm.preprocess(clip.pixels, clip.timing), ()).tokens
    for row, (ratio, count) in enumerate(((0.1, 78), (0.25, 196)), start=1):
        kept = np.zeros(784, bool)
        pruned = get_method("mmg_vid", retention_ratio=ratio).prune(tokens)
        like = 100 * fidelity(tokens.flat, pruned.features).coverage
        assert lines[row] == f"  mmg_vid at R = {100 * ratio:g} %: {count} of 784 tokens, like {like:.0f} % of all: red"
        kept[pruned.positions] = True
        for column, t in enumerate((0, 4, 8, 11, 15)):  # five of 16, evenly
            assert (bright(picture, row, column) == kept.reshape(16, 49)[t]).all()


def test_of_a_method_inside_the_model_what_the_last_layer_sees(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.png"
    command = f"mmg-bench show method=fastv retention_ratio=0.1 'video={video}' picture={file}"
    assert given(command, monkeypatch) == 0
    assert "fastv at R = 10 %: 784 of 784 tokens, 78 in the last layer: " in capsys.readouterr().out
    picture = np.asarray(Image.open(file))
    assert sum(bright(picture, 1, frame).sum() for frame in range(16)) == 78


def test_a_method_that_fails_does_not_take_the_others_down(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: object, tokens: object) -> None:
        raise ArithmeticError("no\nluck")

    monkeypatch.setattr("mmg_bench.methods.uniform.Uniform.select", broken)
    file = tmp_path / "kept.jpg"
    command = (
        f"mmg-bench show -m method=uniform,random 'video={video}' 'picture={file}' 'question=It is (what), ${{x}}?'"
    )
    assert given(command, monkeypatch) == 1
    shown = capsys.readouterr().out
    assert "16 frames: It is (what), ${x}?" in shown
    assert "  uniform at R = 25 % failed: ArithmeticError: no luck (test_show.py:" in shown
    assert "  random at R = 25 %: 196 of 784 tokens, like " in shown
    with Image.open(file) as picture:
        assert (picture.format, picture.height) == ("JPEG", 2 * (SIDE + GAP) - GAP)


def test_methods_run_as_they_are_asked_to(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def watched(model: Any, method: Any, positions: str, encoded: Any) -> Any:
        seen.append((method.name, positions))
        return pruning(model, method, positions, encoded)

    def generate(self: VideoLLM, inputs: Any, encoded: Any, generation: dict[str, Any]) -> str:
        seen.append(generation)
        self.model(**inputs, **encoded.arguments)
        return ""

    monkeypatch.setattr("mmg_bench.commands.show.pruning", watched)
    monkeypatch.setattr(VideoLLM, "generate", generate)
    options = f"'video={video}' new_tokens=3 picture={tmp_path}/kept.png"
    assert given(f"mmg-bench show -m positions=contiguous,original,null {options}", monkeypatch) == 0
    assert seen[::2] == [("dense", "original"), ("mmg_vid", "contiguous"), ("mmg_vid", "original")]
    assert seen[1::2] == 3 * [{"max_new_tokens": 3}]
    assert (
        "mmg_vid(positions=contiguous) at R = 25 %: 196 of 784 tokens, like 99 % of all: (nothing)"
        in capsys.readouterr().out
    )


def test_frames_follow_the_length_of_the_video(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of not quite eight seconds; without `fps`, 16."""
    assert given(f"mmg-bench show model.fps=1 'video={video}' picture={tmp_path}/kept.png", monkeypatch) == 0
    title, dense, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith("a star.mp4, 8 frames: ")
    assert dense.startswith("  dense: 392 of 392 tokens: ")


def test_one_method_has_an_option_of_its_own(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"method=random,cdpruner method.cdpruner.relevance=llm 'video={video}' picture={tmp_path}/kept.png"
    assert given(f"mmg-bench show -m {options}", monkeypatch) == 0
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert told == ["  dense", "  random at R = 25 %", "  cdpruner(relevance=llm) at R = 25 %", "Written"]


def test_of_models_that_make_one_frame_of_two_the_first_is_shown() -> None:
    pixels = np.stack([np.full((8, 8, 3), 50 * t, np.uint8) for t in range(5)])
    report: Any = SimpleNamespace(layout=(3, 1, 1), left=torch.tensor([0, 1, 2]))
    assert [frame.mean() for frame in _row(pixels, report, 16)] == [0, 100, 200]


def test_a_long_question_takes_several_rows() -> None:
    assert _title("a.mp4", 1, "What?") == "a.mp4, 1 frame: What?"
    first, second, third = _title("a.mp4", 2, f"{'is it ' * 24}red?\n(A) yes").splitlines()
    assert first.startswith("a.mp4, 2 frames: is it is it")
    assert second.startswith("    i")
    assert second.endswith("it red?")
    assert third == "    (A) yes"
    assert max(map(len, (first, second))) <= 114


def test_rows_are_told_apart() -> None:
    def cell(name: str, ratio: float, **options: object) -> Cell:
        return specs.cell({"name": name, **options}, ratio)

    assert _names([cell("dense", 1.0), cell("tome", 0.1), cell("random", 0.1)]) == ["dense", "tome", "random"]
    several = [cell("mmg_vid", 0.1, tau=0.9), cell("mmg_vid", 0.1), cell("tome", 0.25)]
    assert _names(several) == ["mmg_vid(tau=0.9) 10 %", "mmg_vid 10 %", "tome 25 %"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("video=no.mp4", "video='no.mp4': no such video; name a file, a folder of pictures, or generated"),
        ("question=", "question='': it must be a text"),
        (
            "question=null",
            "question='null': it is not a question; leave the option out for the default question, or ask another",
        ),
        ("question=None", "question='None': it is not a question; leave the option out"),
        ("picture=kept", "picture='kept': name a file that ends in .png, .jpg, .jpeg"),
        ("picture=configs", "picture='configs': name a file"),
        ("picture=README.md/a.png", "README.md is a file; name another folder"),
        ("pictures=0", "pictures=0: it must be a whole number, at least 1"),
        ("new_tokens=many", "new_tokens='many': it must be a whole number, at least 1"),
        ("-m new_tokens=1,2", "one picture cannot combine different values of new_tokens; make them one by one"),
        (
            "-m model.frames=4,8 method=mmg_vid,random",
            "model.frames=4,8: one picture cannot combine different values of model.frames; make them one by one, each "
            "with its own `picture`; only method, its options, retention_ratio and positions accept several values",
        ),
        (
            "-m model=embedded,llava_onevision_0_5b pictures=4,8",
            "model=embedded,llava_onevision_0_5b pictures=4,8: one picture cannot combine different values of model, "
            "pictures;",
        ),
        ("-m model.name=a,b", "model.name=a,b: one picture cannot combine different values of model.name"),
        ("method=fastvid model=qwen2_5_vl_7b", "fastvid: models of type 'qwen2_5_vl' do not supply"),
    ],
)
def test_mistakes(options: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert given(f"mmg-bench show {options}", monkeypatch) == 2
    assert says in capsys.readouterr().err
