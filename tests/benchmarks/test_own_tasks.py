"""A user's own task that is broken: the file, the line and the fault are named at once, in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from mmg_bench.benchmarks.lmms import REASONING, Benchmark, BenchmarkError, BenchmarkSpec
from mmg_bench.benchmarks.task_faults import bad_json, is_local, why_not_loaded
from test_your_own_videos import FILES

TASK, UTILS, QUESTIONS = (f"mine/{name}" for name in ("task.yaml", "utils.py", "questions.jsonl"))
HERE = "HERE = Path(__file__).parent\n"
PROMPT = '"{{question}} Answer with one word."'
Changes = tuple[tuple[str, str, str], ...]
"""File, what stands in it, and what stands there instead; all of the file where that is empty."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's task in `mine` below the working directory; and nothing waits."""

    def waits(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", waits)
    Path("mine").mkdir()
    for name in (TASK, UTILS, QUESTIONS):
        Path(name).write_text(FILES[name])
    return tmp_path


def change(*changes: tuple[str, str, str]) -> None:
    for file, old, new in changes:
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new) if old else new)


def mine() -> Benchmark:
    spec = BenchmarkSpec("mine", ("mine",), video="video", question="question_id", skill="skill", include_path="mine")
    return Benchmark(spec)


def said() -> str:
    with pytest.raises(BenchmarkError) as raised:
        _ = mine().questions
    (line,) = str(raised.value).splitlines()
    return line


def function(setting: str, old: str, body: str) -> Changes:
    """A setting of the task as a function, which begins in the fourth line of utils.py."""
    return (
        (TASK, f"{setting}: {old}", f"{setting}: !function utils.own"),
        (UTILS, HERE, f"{HERE}def own(doc):\n    {body}\n"),
    )


PROCESS_DOCS = ((TASK, "test_split: test", "test_split: test\nprocess_docs: !function utils.own"),)
CODE: list[tuple[Changes, str]] = [
    (((UTILS, HERE, f"{HERE}def (:\n"),), "SyntaxError: invalid syntax ({}:4)"),
    (((UTILS, HERE, f"{HERE}import no_such\n"),), "ModuleNotFoundError: No module named 'no_such' ({}:4)"),
    (((UTILS, HERE, f"{HERE}float('x')\n"),), "ValueError: could not convert string to float: 'x' ({}:4)"),
    (((UTILS, HERE, f"{HERE}import json\njson.loads('x')\n"),), "JSONDecodeError: Expecting value: .*({}:5)"),
    (((UTILS, HERE, f"{HERE}raise SystemExit\n"),), "SystemExit: raise SystemExit ({}:4)"),
    (function("doc_to_text", PROMPT, "return doc['q']"), "doc_to_text raised KeyError: 'q' ({}:5, in own)"),
    (function("doc_to_target", "answer", "return doc['a']"), "doc_to_target raised KeyError: 'a' ({}:5, in own)"),
    (
        function("test_split", "test", "return 1 / 0")[1:] + PROCESS_DOCS,
        "ZeroDivisionError: division by zero ({}:5, in own)",
    ),
]


@pytest.mark.parametrize(("changes", "fault"), CODE)
def test_a_fault_in_the_code(changes: Changes, fault: str, folder: Path) -> None:
    change(*changes)
    place = fault.format(folder / UTILS)
    pattern = re.escape(f"task 'mine': {place}: correct it there").replace(re.escape(".*"), ".*")
    assert re.fullmatch(pattern, said())


YAML = [
    ((TASK, "utils.process_results", "utils.nothing"), "AttributeError: module 'utils' has no attribute 'nothing'"),
    ((TASK, "utils.process_results", "others.f"), r"ImportError: .*'f' from .*Tried relative path 'mine/others.py'.*"),
    ((TASK, "{{question}}", "{{questoin}}"), "doc_to_text raised UndefinedError: 'questoin' is undefined"),
    ((TASK, "{{question}}", "{{question"), "doc_to_text raised TemplateSyntaxError: expected token .*"),
    ((TASK, "target: answer", 'target: "{{answr}}"'), "doc_to_target raised UndefinedError: 'answr' is undefined"),
    ((TASK, "test_split: test\n", "test_splt: test\n"), "TypeError: TaskConfig.*argument 'test_splt'"),
    ((TASK, "- metric: right", "- metrc: right"), 'AssertionError: assert "metric" in metric_config'),
]


@pytest.mark.parametrize(("changed", "fault"), YAML)
def test_a_fault_in_the_yaml_file(changed: tuple[str, str, str], fault: str) -> None:
    change(changed)
    assert re.fullmatch(rf"task 'mine': {fault}: correct mine/task\.yaml, or the files that it names", said())


def test_a_column_that_would_be_taken_for_a_word() -> None:
    has = "but its data has no such column; it has question_id, video, skill, question, answer: correct its yaml file"
    change((TASK, "doc_to_target: answer", "doc_to_target: answr"))
    assert f"task 'mine' has doc_to_target: answr, {has}" in said()
    change((TASK, PROMPT, "questoin"))
    assert f"task 'mine' has doc_to_text: questoin, {has}; if the word itself is meant" in said()
    change((TASK, "questoin", "\"{{'questoin'}}\""), (TASK, "answr", "\"{{'answr'}}\""))
    assert {(q.prompt, q.target) for q in mine().questions} == {("questoin", "answr")}


def test_a_prompt_that_fails_for_a_later_question(folder: Path) -> None:
    change(*function("doc_to_text", PROMPT, "return {'colour': 'Which?'}[doc['skill']]"))
    fault = f"doc_to_text raised KeyError: 'count' ({folder / UTILS}:5, in own)"
    assert said() == f"question 'first-2' of task 'mine': {fault}"
    change((UTILS, "return {", "{"))
    change((UTILS, "[doc['skill']]", ""))
    assert said() == "question 'first-1' of task 'mine': doc_to_text returned None, which is not a string"


DATA = [
    (
        (QUESTIONS, '"question_id": "first-2",', '"question_id": "first-2"'),
        r".*mine/questions.jsonl:2: Expecting ','.*",
    ),
    ((QUESTIONS, "", "[{},\n{}\n"), r".*mine/questions\.jsonl:3: Expecting ',' delimiter"),
    ((QUESTIONS, "", '{\n"a": 1,\n"b" 2\n}\n'), r".*mine/questions\.jsonl:3: Expecting ':' delimiter"),
    ((QUESTIONS, "", "\n"), r".*mine/questions\.jsonl: it is empty"),
    ((TASK, "data_files:", "data_file:"), "TypeError: .* unexpected keyword argument 'data_file'"),
    ((TASK, "!function utils.QUESTIONS", "question.jsonl"), "FileNotFoundError: Unable to find '.*/question.jsonl'"),
]


@pytest.mark.parametrize(("changed", "fault"), DATA)
def test_a_fault_in_the_data(changed: tuple[str, str, str], fault: str) -> None:
    change(changed)
    remedy = r"correct dataset_path or dataset_kwargs in mine/task\.yaml, or the files that they name"
    assert re.fullmatch(rf"the data of task 'mine' cannot be loaded \({fault}\): {remedy}", said())


@pytest.mark.parametrize(("column", "key"), [("question", "doc_to_text"), ("answer", "doc_to_target")])
@pytest.mark.parametrize("left_out", [True, False])
def test_a_question_that_lacks_what_it_is_made_of(column: str, key: str, left_out: bool) -> None:
    lines = [json.loads(line) for line in Path(QUESTIONS).read_text().splitlines()]
    (lines[1].pop if left_out else lambda name: lines[1].update({name: None}))(column)
    Path(QUESTIONS).write_text("\n".join(map(json.dumps, lines)))
    says = f"question 'first-2' of task 'mine': {key} uses a column that has no value there: fill it in"
    assert said().startswith(says)
    if column == "answer":
        change((TASK, "doc_to_target: answer", 'doc_to_target: "{{answer}}"'))
        assert said().startswith(says)
        change((TASK, 'doc_to_target: "{{answer}}"', "doc_to_target: !function utils.own"))
        change((UTILS, HERE, f"{HERE}def own(doc):\n    return doc['answer']\n"))
        assert said() == "question 'first-2' of task 'mine': doc_to_target returned None, so no answer can be right"


def test_a_column_without_a_value_that_no_text_says_is_none_missed() -> None:
    lines = [json.loads(line) for line in Path(QUESTIONS).read_text().splitlines()]
    Path(QUESTIONS).write_text("\n".join(json.dumps({**line, "hint": None}) for line in lines))
    change((TASK, "{{question}}", "{% if hint %}{{hint}} {% endif %}{{question}}"))
    assert len(mine().questions) == len(lines)


def test_a_task_without_its_metric() -> None:
    text = Path(TASK).read_text()
    Path(TASK).write_text(text[: text.index("metric_list:")])
    assert said().startswith("task 'mine' has no metric_list: name its metric in its yaml file, such as `metric_list:")


FILTERS = """\
filter_list:
  - name: choice
    filter:
      - {function: multi_choice_regex, regex_pattern: '[(][A-Z][)]', ignore_case: true, ignore_punctuation: true}
      - {function: take_first}
metric_list:"""


def test_filters_see_the_document_of_their_answer() -> None:
    """As lmms-eval's own `multi_choice_regex` does, which looks for the text of a choice in an answer."""
    choices = [["blue", "red"], ["3", "2", "1"], ["left", "right"]]
    lines = [json.loads(line) for line in Path(QUESTIONS).read_text().splitlines()]
    choices = [choices[number % len(choices)] for number in range(len(lines))]
    told = [line | {"choices": found, "answer": "(b)"} for line, found in zip(lines, choices, strict=True)]
    Path(QUESTIONS).write_text("\n".join(map(json.dumps, told)))
    change((TASK, "metric_list:", FILTERS))
    benchmark = mine()
    for question, found in zip(benchmark.questions, choices, strict=True):
        scores = [benchmark.score(question, f"It is {text}.") for text in found]
        assert scores == [float(number == 1) for number in range(len(found))]


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ("", (1, 1, 0)),
        ("reasoning_tags: none\n", (0, 0, 0)),
        ("reasoning_tags: none\nauto_strip_thinking: true\n", (1, 0, 1)),
        ('reasoning_tags: [["<thinking>", "</thinking>"]]\n', (0, 0, 1)),
    ],
)
def test_what_is_marked_as_reasoning_is_not_scored(settings: str, scores: tuple[int, ...]) -> None:
    change((TASK, "metric_list:", f"{settings}metric_list:"))
    benchmark = mine()
    question = benchmark.questions[0]
    tags = ("think", "analysis", "thinking")
    answers = [f"<{tag}>It may be red, or not.</{tag}> {question.target}" for tag in tags]
    assert tuple(benchmark.score(question, answer) for answer in answers) == scores


def test_reasoning_is_marked_as_lmms_evals_command_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr(sys, "argv", ["lmms-eval"])
    assert parse_eval_args()[1].reasoning_tags == REASONING


def test_a_skill_whose_name_rows_use() -> None:
    change((QUESTIONS, '"direction"', '"all"'))
    assert said().startswith("benchmark 'mine': question 'second-2' has the skill 'all', the name that result rows ")


def test_questions_that_are_not_there() -> None:
    Path(QUESTIONS).unlink()
    assert "FileNotFoundError: Unable to find" in said()
    assert "download" not in said()


def test_a_file_that_changes_is_read_anew() -> None:
    """Also where the new content is the older: datasets goes by the time alone."""
    assert "circle" in mine().questions[0].prompt
    before = Path(QUESTIONS).stat()
    change((QUESTIONS, "the circle", "the square"))
    os.utime(QUESTIONS, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12))
    assert "square" in mine().questions[0].prompt


def test_a_split_that_is_not_there() -> None:
    change((TASK, "test_split: test", "test_split: val"))
    assert said() == "the data of task 'mine' has no split 'val': correct mine/task.yaml"


def test_data_of_the_hub_are_tried_again_and_may_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nobody/nothing", "squad"):
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        change((TASK, re.findall("dataset_path: .*", Path(TASK).read_text())[0], f"dataset_path: {name}"))
        assert re.search(r"correct dataset_path .* in mine/task\.yaml, .*; or download it, or point HF_HOME", said())
        assert waited == [2, 2, 2, 2]


def test_what_lies_on_this_machine() -> None:
    for path, local in (("json", True), ("imagefolder", True), ("mine", True), ("squad", False), ("a/b", False)):
        assert is_local({"dataset_path": path}) == local


READ = "benchmark.include_path='mine': lmms-eval reads every yaml file there, and one is faulty: "
BROKEN = [
    ("task: [a\nb: c\n", "2: expected ',' or ']', but got ':'"),
    ("a: 1\n\tb: 2\n", "2: found character '\\t' that cannot start any token"),
    ("a: !fuction utils.f\n", "1: could not determine a constructor for the tag '!fuction'"),
    ("", " it has no settings"),
    ("some text\n", " it has no settings"),
    ("include: base\n", " FileNotFoundError: [Errno 2] No such file or directory: 'mine/base'"),
]


@pytest.mark.parametrize(("text", "fault"), BROKEN)
def test_a_yaml_file_that_cannot_be_read(text: str, fault: str) -> None:
    Path("mine/other.yaml").write_text(text)
    assert said() == f"{READ}mine/other.yaml:{fault}: correct it, or move it elsewhere"


def test_a_fault_in_showing_the_video(folder: Path) -> None:
    change((UTILS, 'doc["video"]', 'doc["vidoe"]'))
    benchmark = mine()
    fault = re.escape(f"': doc_to_visual raised KeyError: 'vidoe' ({folder / UTILS}:8, in doc_to_visual)")
    with pytest.raises(BenchmarkError, match=rf"question 'first-1{fault}"):
        benchmark.video_path(benchmark.questions[0])
    with pytest.raises(BenchmarkError, match=fault):  # not taken for a video that is missing
        benchmark.missing_videos()
    change((UTILS, 'return [str(HERE / "videos" / doc["vidoe"])]', "pass"))
    with pytest.raises(BenchmarkError, match=r"task 'mine' must give a single video file, not None"):
        mine().video_path(benchmark.questions[0])


def test_a_fault_in_scoring_is_told_at_once(folder: Path) -> None:
    change(
        (UTILS, "return {", 'Path("calls").open("a").write("x")\n    return {'), (UTILS, 'doc["answer"]', 'doc["a"]')
    )
    benchmark = mine()
    fault = f"process_results raised KeyError: 'a' ({folder / UTILS}:13, in process_results)"
    with pytest.raises(BenchmarkError, match=re.escape(f"question 'first-1' of task 'mine': {fault}")):
        benchmark.score(benchmark.questions[0], "blue")
    assert Path("calls").read_text() == "x"
    change((UTILS, "return {", "{"))
    change((UTILS, 'doc["a"]', '""'))
    with pytest.raises(BenchmarkError, match=r"process_results returned None, not a dict with one of \['right'\]"):
        mine().score(benchmark.questions[0], "blue")


def test_code_of_others_in_the_folder_is_not_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = folder / "mine/.venv/site-packages"
    packages.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(packages))  # until the test ends
    (packages / "package_of_others.py").write_text("def fails():\n    raise OSError('theirs')\n")
    change((UTILS, HERE, f"{HERE}\n\nimport package_of_others\npackage_of_others.fails()\n"))
    assert said() == f"task 'mine': OSError: theirs ({folder / UTILS}:7): correct it there"
    sys.modules.pop("package_of_others")


def test_a_package_that_a_task_of_lmms_eval_needs(folder: Path) -> None:
    error = ModuleNotFoundError("No module named 'spacy'")
    text = why_not_loaded("theirs", error, {}, folder, None)
    assert (
        text == "task 'theirs' cannot be loaded (ModuleNotFoundError: No module named 'spacy'): install what it needs"
    )


def test_a_folder_in_which_nothing_can_be_kept_is_no_fault_of_the_task(folder: Path) -> None:
    for own in (None, folder / TASK):
        error = OSError(errno.EROFS, "Read-only file system", "/home/me/.cache")
        text = why_not_loaded("mine", error, {}, folder, own)
        assert text.startswith("the data of task 'mine' cannot be written or read (OSError: [Errno 30] Read-only")
        assert "'/home/me/.cache'): allow access to the folder, free some space" in text
        assert "set another with HF_HOME or, for data made by this package, MMG_BENCH_CACHE" in text


def test_json_that_is_good(tmp_path: Path) -> None:
    for text in ('{"a": "x\u2028y"}\n\n{"a": 2}\n', '[{"a": 1}]', '{\n"a": 1}'):
        (tmp_path / "good").write_text(text, encoding="utf-8")
        assert bad_json(tmp_path / "good") is None
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff")
    assert bad_json(tmp_path / "packed") is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}\n{"b" 2}\n{"c": 3}\n', 2),
        ('{"a" 1}\n{"b": 2}\n', 1),
        ('{"a": 1\n{"b": 2}\n', 1),
        ('\n{"a": 1}\n\n{"b": 2', 4),
        ('{"a": 1,\n "b": [1,\n 2\n "c": 3}\n', 4),
        ('{\n "a": [\n  {"b": 1}\n  {"b": 2}\n ]\n}\n', 4),
        ('[\n{"a": 1},\n{"b" 2}\n]\n', 3),
    ],
)
def test_the_line_of_a_fault_is_the_true_one(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(text)
    assert str(bad_json(tmp_path / "bad")).startswith(f"{tmp_path}/bad:{line}: ")
