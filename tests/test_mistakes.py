"""Mistakes on the command line end in one line that names the option, its value and the remedy, and in status 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from command_line import given


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be written, wherever the command is called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))
    yield
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "run method=mmgvid",
            "no method is called 'mmgvid'; did you mean mmg_vid? choose one of: aim, cdpruner, chain",
        ),
        ("run -m benchmark=embedded,vidomme", "no benchmark is called 'vidomme'; did you mean videomme? choose one of"),
        (
            "table table=efficient",
            "no table is called 'efficient'; did you mean efficiency? choose one of: ablations, chains, efficiency",
        ),
        ("run model=a/b", "no model is called 'a/b'; choose one of: embedded"),
        (
            "run model=my_qwen",
            "smolvlm2_2_2b; for a file mine/model/<name>.yaml of your own, add hydra.searchpath=[mine]\n",
        ),
        ("run modle=embedded", "modle: no such option; did you mean model? run has: model, method"),
        ("run retention_ratio=1.5", "MMGVid.retention_ratio=1.5: it must be a number in (0, 1]"),
        ("table profile=papers", "has no profile 'papers'; choose auto or paper, embedded"),
        ("run latency=off", "latency='off': choose true or false"),
        (
            "run +method.positions=contiguous",
            "method.positions='contiguous': not a method option, but one of the command",
        ),
        ("run limit=abc", "limit='abc': it must be a whole number, at least 1, or null"),
        ("run method.tua=1", "method.tua: no such option; did you mean tau? method mmg_vid has: tau, min"),
        (
            "run -m method=fastv,mmg_vid method.fastv.lyer=1",
            "method.fastv.lyer: no such option; did you mean layer? method fastv has: layer",
        ),
        (
            "run -m method=fastv,mmg_vid method.fastv.foo=1",
            "method.fastv.foo: no such option; method fastv has: layer\n",
        ),
        (
            "run method.retention_ratio=0.1",
            "method.retention_ratio: no such option; retention_ratio is an option of run itself; method mmg_vid has",
        ),
        ("run benchmark.limit=5", "benchmark.limit: no such option; limit is an option of run itself; benchmark embed"),
        (
            "compare a b a.output_dir=x",
            "a.output_dir: no such option; output_dir is an option of compare itself; a has",
        ),
        (
            "run --limit=5",
            "--limit=5: no such flag here; the flags are --cfg, --multirun, -m and --help; write options without d",
        ),
        (
            "run --limit 5",
            "--limit: no such flag here; the flags are --cfg, --multirun, -m and --help; write options without das",
        ),
        ("run method.name=random", "method.name=random: choose a method with method=random"),
        (
            "run -m method=mmg_vid,random method.cdpruner.relevance=llm",
            "method.cdpruner.relevance=llm: cdpruner is not among the chosen methods: mmg_vid, random; add it to met",
        ),
        ("show method.cdpruner.relevance=llm", "cdpruner is not among the chosen methods: mmg_vid; add it to method="),
        ("doctor method.random.seed=1", "random is not among the chosen methods: mmg_vid; add it to method="),
        ("show -m method.cdprune.relevance=llm", "no method is called 'cdprune'; did you mean cdpruner? choose one of"),
        (
            "measure -m method=mmg_vid,cdpruner method.cdpruner.relevence=llm",
            "method.cdpruner.relevence: no such option; did you mean relevance? method cdpruner has: scope",
        ),
        ("run method.mmg_vid.name=random", "method.name=random: choose a method with method=random"),
        (
            "run -m method=mmg_vid,random frames=8,16",
            "frames: no such option; did you mean model.frames? run has: model, method",
        ),
        ("run -m method=glob(zz*)", "method=glob(zz*): this gives no values; --help lists what there is to choose"),
        (
            "run -m retention_ratio=interval(0.1,0.3)",
            "retention_ratio=interval(0.1,0.3): an interval is not a list; list",
        ),
        ("run -m benchmark.frames=[4", "benchmark.frames=[4: no viable alternative"),
        (
            "run -m limit=6,12",
            "limit=6,12: rows in one folder could not be told apart; add ${limit} to output_dir, in single quotes",
        ),
        (
            "run -m model.frames=8,16 model.dtype=float32,bfloat16 latency=true,false limit=6",
            "model.dtype=float32,bfloat16 latency=True,False: rows in one folder could not be told apart; add "
            "${model.dtype}/${latency} to",
        ),
        ("run -m model=embedded,llava_onevision_0_5b workers=1,2 output_dir=here", "workers=1,2: rows in one folder"),
        ("run benchmark.frames=[4", "benchmark.frames=[4: no viable alternative"),
        ("run benchmark.name=ü", "benchmark.name=ü; if the value is text, quote it: 'benchmark.name=\"ü\"'"),
        ("run mmg_vid", "mmg_vid: write option=value; --help lists the options"),
        ("run shard.count=abc", "shard.count='abc': it must be a whole number, at least 1"),
        ("methods mmgvid", "unknown method 'mmgvid'; did you mean mmg_vid? the registered methods are: "),
        ("run output_dir=null", "output_dir=None: it must be a text"),
        ("run output_dir=/dev/null", "output_dir='/dev/null': /dev/null is a file; name another folder"),
        ("measure output_dir=/dev/null", "output_dir='/dev/null': /dev/null is a file; name another folder"),
        (
            "table table=table1 profile=embedded limit=1 results_dir=/dev/null/x",
            "results_dir='/dev/null/x': /dev/null is a file; name another folder",
        ),
        ("run shard=null", "shard=None: give shard.index and shard.count"),
        ("run shard=2", "shard=2: give shard.index and shard.count"),
        ("run model.path=null", "model.path=None: it must be a text"),
        ("run benchmark.name=null", "benchmark.name=None: it must be a text"),
        ("run benchmark.name=average", "benchmark.name='average': result rows reserve this name; choose another"),
        ("run benchmark.name=-", "benchmark.name='-': result rows reserve this name; choose another"),
        ("run benchmark.include_path=/nope", "benchmark.include_path='/nope': no such folder"),
        ("run benchmark.include_path=7", "benchmark.include_path=7: it must be a text"),
        ("run benchmark.video=null", "benchmark.video=None: it must be a text"),
        ("run benchmark.skill=[kind]", "benchmark.skill=['kind']: it must be a text"),
        (
            "run benchmark.questions=[382]",
            "benchmark.questions=[382]: it must be a whole number, at least 1, or null for any number",
        ),
        ("run benchmark.tasks=null", "benchmark.tasks=None: give one value or a non-empty list"),
        ("run model.attn_implementation=foo", "model.attn_implementation='foo': choose sdpa, flash_attention_2"),
        ("run model.device=meta", "model.device='meta': choose auto, cpu, cuda"),
        (
            "run latency=true measure.engine=graphs measure.warmup=9 model.device=cpu",
            "engine=graphs needs a CUDA device",
        ),
        ("run foo=1 bar=2", "foo: no such option; run has: model, method"),
        ("run +foo=1", "foo: no such option; run has: model, method"),
        ("run model.foo=1 method.bar=2", "model.foo: no such option; model embedded has: name, path"),
        (
            "run retention_ratio=0.1,0.25",
            "retention_ratio=0.1,0.25: only run -m, measure -m and show -m accept several values",
        ),
        ("doctor table=table1 model.embedded.frames=8,16", "mmg-bench: model.embedded.frames=8,16: only run -m, me"),
        ("run hydra.searchpath=[/nowhere]", "hydra.searchpath: there is no folder /nowhere"),
        ("run --help hydra.searchpath=[/nowhere]", "hydra.searchpath: there is no folder /nowhere"),
        ("run hydra.searchpath=[pkg://nosuch.pkg]", "hydra.searchpath: there is no folder pkg://nosuch.pkg"),
        (
            "run hydra.searchpath=mine",
            "hydra.searchpath=mine: write it as a list of folders: 'hydra.searchpath=[mine]'",
        ),
        ("run +hydra.searchpath=[mine]", "+hydra.searchpath=[mine]: write it as a list of folders"),
        ("check-method mmg_vid hydra.searchpath=[/nowhere]", "hydra.searchpath: there is no folder /nowhere"),
        ("check-method mmg_vid tua=1", "method.tua: no such option; did you mean tau?"),
        (
            "check-method mmg_vid positions=contiguous",
            "positions=contiguous: it concerns the model's position ids, and no mod",
        ),
        (
            "check-method mmg_vid method.retention_ratio=0.5",
            "method.retention_ratio=0.5: every check sets its own retention rati",
        ),
        ("check-method mmg_vid name=random", "name=random: the method is the first argument; leave it out"),
        ("check-method mmg_vid +x=1", "+x=1: write option=value, such as tau=0.9; `mmg-bench methods NAME` lists the"),
        ("check-method mmg_vid ~tau", "~tau: write option=value, such as tau=0.9"),
        ("check-method mmg_vid model.x=1", "model.x=1: write option=value, such as tau=0.9; `mmg-bench methods NAME` "),
        ("check-method mmg_vid tau=0.5,0.9", "tau=0.5,0.9: several values; check them one by one"),
        ("check-method mmg_vid method.tau=0.5,0.9", "method.tau=0.5,0.9: several values; check them one by one"),
        ("check-method mmg_vid,random", "mmg_vid,random: several values; check them one by one"),
        (
            "check-method mmg_vid fast",
            "fast: write option=value, such as tau=0.9; `mmg-bench methods NAME` lists the opt",
        ),
        ("table method.tau=0.9", "method.tau: no such option; table has: table, measure"),
        (
            "table ~table.retention_ratios",
            "table.retention_ratios is missing; the required entries are name, retention_ratios, profiles",
        ),
        ("table table.profiles=3", "table.profiles: give at least one by name, with its"),
        ("table +table.foo=3", "table.foo: no such entry; the entries are name, retention_ratios, profiles"),
        (
            "table ~table.profiles.embedded.benchmarks",
            "table.profiles.embedded.benchmarks is missing; the required entries are model, benchm",
        ),
        (
            "table +table.profiles.embedded.frames=3",
            "table.profiles.embedded.frames: no such entry; the entries are model",
        ),
        (
            "table table.profiles.embedded.methods=[3]",
            "table.profiles.embedded.methods: 3 is not a method; write a name",
        ),
        (
            "table table.profiles.embedded.methods=[]",
            "table.profiles.embedded.methods=[]: give one value or a non-empty list",
        ),
        (
            "table table.profiles.embedded.methods=[{name:mmg_vid,retention_ratio:0.1}]",
            "mmg_vid: retention_ratio is not an entry; write retention_ratios: [0.25, 0.1]",
        ),
        ("table table.profiles.embedded.needs_gpu=sometimes", "needs_gpu='sometimes': it must be true or false"),
        ("table table.profiles.embedded.model=[embedded]", "table.profiles.embedded.model=['embedded']: it must be a"),
        ("table table.profiles.embedded.benchmarks=[3]", "table.profiles.embedded.benchmarks=3: it must be a text"),
        (
            "table table=efficiency table.profiles.cpu.pending=x",
            "table.profiles.cpu.pending='x': choose null or gpu, cpu",
        ),
        (
            "table table=efficiency profile=cpu table.profiles.gpu.methods=[{name:mmg_vid,tau:7}]",  # it is pending
            "mmg-bench: table.profiles.gpu.methods: mmg_vid: MMGVid.tau=7",
        ),
        (
            "table table=efficiency ~table.profiles.cpu.workloads.embedded.frames",
            "workloads.embedded.frames is missing",
        ),
        (
            "table +table.profiles.x={workloads:{embedded:{frames:1,batch_sizes:1}},methods:[random]}",
            "either all of them have",
        ),
        (
            "run hydra.run.dir=here",
            "hydra.run.dir: the only Hydra option accepted is hydra.searchpath; --help lists mmg-bench's own",
        ),
        ("run --multi", "--multi: no such flag here; the flags are --cfg, --multirun, -m and --help"),
        ("run model.path=~/no-such-model", "no-such-model: no such checkpoint folder"),
        ("table -m retention_ratio=0.1,0.2", "-m: only run -m, measure -m and show -m accept several"),
        ("table output_dir=null", "output_dir=None: it must be a text"),
        ("table table.retention_ratios=[] profile=embedded", "retention_ratios=[]: give one value or a non-empty list"),
        ("table +model.path=x", "model.path: no such model option in table 'table1'; it has: model.llava"),
        ("table latency=off-and-on", "latency='off-and-on': choose true or false"),
        ("table table=efficiency profile=cpu latency=false", "latency=False: a table of speed always measures it"),
        ("run +model.called=x", "model has no option called; it has: name, path"),
        ("run +measure.foo=1", "measure has no option foo; it has: repeats, warmup"),
        ("run +shard.foo=1", "shard has no option foo; it has: index, count"),
        ("table profile=embedded +measure.foo=1", "measure has no option foo"),
        ("measure +measure.foo=1", "measure has no option foo"),
        (
            "measure -m model.dtype=float32,bfloat16",
            "model.dtype=float32,bfloat16: rows in one folder could not be told apart; run them one by one, each with "
            "its own `output_dir`",
        ),
        (
            "measure -m measure.repeats=20,30 text_tokens=8,16",
            "measure.repeats=20,30 text_tokens=8,16: measurements that differ in measure.repeats, text_tokens do not "
            "fit in one table; run them one by one, each with its own `output_dir`",
        ),
        (
            "measure -m weights=pretrained,random",
            "weights=pretrained,random: rows in one folder could not be told apart",
        ),
        ("measure model.fps=1", "model.fps=1: speed is measured at a fixed number of frames: set it to null"),
        (
            "run model.fps=0.5 latency=true",
            "model.fps=0.5: speed is measured at a fixed number of frames: set it to null, or",
        ),
        ("measure video=null", "video=None: it must be a text"),
        ("measure video=/nowhere", "video='/nowhere': no such video"),
        ("measure energy_seconds=abc", "energy_seconds='abc': it must be a number, at least 0"),
        ("measure energy_seconds=-1", "energy_seconds=-1: it must be a number, at least 0"),
        ("measure measure.engine=graphs model.device=cpu", "measure.engine=graphs needs a CUDA device"),
        ("measure +model.device_map=cpu measure.engine=compile", "engine=compile runs a model on one device"),
        (
            "bench-methods methods={a:1}",
            "methods: {'a': 1} is not a method; write a name, or {name: mmg_vid, tau: 0.9}",
        ),
        ("bench-methods methods=[[mmg_vid]]", "methods: ['mmg_vid'] is not a method; write a name"),
        ("bench-methods methods=[dense]", "methods: dense prunes nothing, so there is nothing to time: leave it out"),
        (
            "bench-methods methods=[{name:mmg_vid,positions:original}]",
            "methods: mmg_vid: positions does not go with bench-methods: leave it out",
        ),
        (
            "bench-methods methods=[{name:mmg_vid,retention_ratios:0.1}]",
            "methods: mmg_vid: retention_ratios does not go with bench-methods: leave it out",
        ),
        ("run ~retention_ratio", "~retention_ratio: an option cannot be removed; give it another value"),
        ("measure ~frames", "~frames: an option cannot be removed"),
        ("run measure.repeats=abc", "measure.repeats='abc': it must be a whole number"),
        ("measure measure.sdpa=cudnn model.device=cpu", "measure.sdpa=cudnn needs a CUDA device, not cpu"),
        ("doctor measure.sdpa=foo", "measure.sdpa='foo': choose one of auto"),
        ("doctor model=embedded latency=maybe", "latency='maybe': choose true or false"),
        ("doctor table=efficiency profile=cpu latency=maybe", "latency='maybe': choose true or false"),
        ("doctor limit=foo", "limit='foo': it must be a whole number"),
        ("doctor workers=abc", "workers='abc': it must be auto or a positive number"),
        ("doctor table=efficiency profile=cpu measure.engine=graphs", "measure.engine=graphs needs a CUDA device"),
        ("run model=qwen2_5_vl_7b method=fastvid", "models of type 'qwen2_5_vl' do not supply frame_features, probe"),
        ("measure model=qwen2_5_vl_7b method=fastvid", "fastvid: models of type 'qwen2_5_vl' do not supply frame_f"),
        (
            "measure model=glm4v_9b model.name=glm5 weights=random",
            "weights='random': the architecture of 'glm5' is not known without a download; known: llava_onevision"
            "_72b, llava_onevision_7b, llava_onevision_0_5b, llava_video_7b, qwen2_vl_7b, qwen2_5_vl_7b, qwen3_vl_8b, "
            "qwen3_vl_moe_30b, qwen3_5_9b, glm4v_9b, glm46v_9b, internvl3_8b, smolvlm2_2_2b; choose one of these, or "
            "set model.path to a checkpoint folder",
        ),
        ("measure model=qwen2_5_vl_7b weights=random method=fastvid", "fastvid: models of type 'qwen2_5_vl' do not s"),
        ("measure frames=0", "mmg-bench: frames=0: it must be a whole number"),
        ("measure model.dtype=int9", "mmg-bench: model.dtype='int9': choose"),
        ("table profile=embedded model.embedded.dtype=int9", "model.embedded.dtype='int9': choose"),
        (
            "table profile=embedded model.embedded.name=other model.embedded.dtype=int9",
            "mmg-bench: model.embedded.dtype='int9': choose",
        ),
        ("table profile=embedded model.embedded.path=/nowhere", "folder; set model.embedded.path to one, or to a hub"),
        ("doctor table=table1 profile=embedded model.embedded.frames=0", "mmg-bench: model.embedded.frames=0: it must"),
        (
            "doctor table=efficiency profile=cpu model.embedded.name=other model.embedded.dtype=int9",
            "mmg-bench: model.embedded.dtype='int9': choose",
        ),
        ("bench-methods methods=[]", "methods=[]: give one value or a non-empty list"),
        ("bench-methods seconds=null", "seconds=None: it must be a number, at least 0"),
        ("bench-methods frames=all", "frames='all': it must be a whole number, at least 1"),
        (
            "run -m method=mmg_vid,random method.tau=0.9",
            "with several methods, set an option of one with method.<name>.tau=...",
        ),
        ("bench-methods out=7", "out=7: it must be a text"),
        ("bench-methods -x", "-x: no such flag here; the flags are --cfg and --help"),
        ("doctor -m model=embedded", "-m: only run -m, measure -m and show -m accept several values"),
        ("compare -x", "-x: no such flag here"),
        ("run method=[mmg_vid,random]", "method=[mmg_vid,random]: choose one method, without brackets; only run -m"),
        ("run 'method= [mmg_vid,random]'", "choose one method, without brackets; only run -m"),
        ("run method=null", "method=null: choose one of: aim, cdpruner, "),
        ("doctor table=1", "table=1: choose one of: ablations, chains, "),
        (
            "bench-methods methods=[{name:mmg_vid,retention_ratio:0.5}]",
            "'retention_ratio': 0.5}: the ratio is an option of the command: retention_ratio=...",
        ),
        ("bench-methods retention_ratio=2", "mmg-bench: retention_ratio=2: it must be a number in (0, 1]"),
        ("bench-methods frames=2,4", "accept several values, as in retention_ratio=0.1,0.25; put a list in brackets"),
        ("run -m retention_ratio=range(3,1)", "retention_ratio=range(3,1): this gives no values; --help lists what"),
        ("run -m benchmark=[embedded]", "benchmark=[embedded]: choose one benchmark, without brackets; only run -m"),
        ("table table=[table1]", "table=[table1]: choose one table, without brackets; only run -m, measure -m"),
        ("doctor table=table1 model=embedded", "model=embedded: the table's file chooses its models; change"),
        ("doctor profile=paper method.tau=0.9", "method.tau: no such option; table has: table, measure, profile"),
    ],
)
def test_mistakes(command: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert given(f"mmg-bench {command}", monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmg-bench: ")
    assert says in error


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "options",
    ["benchmark.include_path=/nope", "-m latency=false,true measure.engine=graphs measure.warmup=9 model.device=cpu"],
)
def test_what_a_run_cannot_do_is_said_before_a_model_is_loaded(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(f"mmg-bench run {options}", monkeypatch) == 2


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "the file is empty; download it again, use"), (b"no video", "cannot be decoded ("), (None, "no such video")],
)
@pytest.mark.parametrize("command", ["measure -m frames=2,4", "table table=efficiency profile=cpu", "show"])
def test_a_video_that_cannot_be_read_is_named_before_a_model_is_loaded(
    command: str,
    content: bytes | None,
    says: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = tmp_path_factory.mktemp("videos") / "clip.mp4"
    if content is not None:
        video.write_bytes(content)
    option = "table.video" if command.startswith("table ") else "video"
    assert given(f"mmg-bench {command} {option}={video}", monkeypatch) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert str(video) in error
    assert says in error


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["run", "measure"])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            '{"model_type": "llama"}',
            "(model_type 'llama'): transformers has no image-text-to-text model of this type",
        ),
        ('{"model_type": "llava"}', "(model_type 'llava'): it has no config.video_token_id; supported: llava_onevisi"),
        ('{"model_type": ', "config.json cannot be read (Expecting value: "),
        ('{"model_type": "qwen2_5_vl", "text_config": 7}', "is damaged: "),
    ],
)
def test_a_folder_that_is_not_served_is_named_before_it_is_loaded(
    command: str,
    config: str,
    says: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(config)
    assert given(f"mmg-bench {command} model.path={folder}", monkeypatch) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run --help", "retention_ratio: 0.25        # visual tokens to keep, in (0, 1]"),
        ("run -m -h", "benchmark: egoschema_subset, embedded"),
        ("table --help", "table: ablations, chains, efficiency, qwen2_5_vl, retention, serving, table1"),
        ("run --help", "    sdpa: auto "),
        ("run --help method=fastvid", "    frame_source: head"),
        ("run --cfg job", "  name: mmg_vid"),
        ("doctor --cfg", "results_dir: null"),
        ("doctor --cfg model.path=/x", "  path: /x"),
        ("table --cfg model.embedded.frames=8 model.embedded.frames=4", "model:\n  embedded:\n    frames: 4\n"),
        ("measure -h", "-m     accept several values of an option"),
        ("show -h", "an option of one of several methods with method.<name>.<option>=value"),
        ("bench-methods --help", "frames: [32, 128]"),
        ("doctor --help", "what this machine lacks"),
        ("new-method --help", "in the root of a checkout"),
        ("run method=random --cfg", "  name: random"),
        ("run --cfg -m retention_ratio=0.1,0.2", "retention_ratio: 0.2\n"),
        ("table --cfg model.embedded.path=/x", "model:\n  embedded:\n    path: /x\n"),
    ],
)
def test_what_only_tells(
    command: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(f"mmg-bench {command}", monkeypatch) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(("command", "profile"), [("table", "paper"), ("table table=efficiency", "gpu")])
def test_a_profile_for_a_gpu_does_not_run_on_a_cpu_unasked(
    command: str, profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert given(f"mmg-bench {command} profile={profile}", monkeypatch) == 2
    says = f"mmg-bench: profile={profile} is for a GPU, but torch sees none here; choose another profile, or set model."
    assert capsys.readouterr().err.startswith(f"{says}llava_onevision_7b.device=cpu to run it anyway")
