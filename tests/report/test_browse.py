"""The page of answers, read back as its script reads it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest

from mmg_bench.report.browse import Asked, page


def data_of(text):
    """What the page's script is given."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def answers(part, method, ratio):
    """`(kind, score, text)` of each question, None where there is no answer."""
    column = part["cells"].index([method, ratio])
    found = [question["answers"][column] for question in part["questions"]]
    return [None if a is None else (a[0], a[1], part["texts"][a[2]]) for a in found]


def test_every_answer_and_how_it_stands_to_dense(toy, provenance):
    data = data_of(page("table1", toy, provenance, {}, ["a note"]))
    assert (data["title"], data["notes"]) == ("table1", ["a note"])
    (part,) = data["parts"]
    assert part["title"] == "toy, bench, 8 frames"
    assert part["cells"] == [["dense", 1.0], ["ours", 0.5], ["ours", 0.25], ["random (control)", 0.25]]
    assert "reproduce with `mmg-bench table toy`" in part["measured"][0]
    assert [q["id"] for q in part["questions"]] == [f"q{i:02d}" for i in range(12)]
    assert part["questions"][3] == {
        **{
            "id": "q03",
            "skill": "order",
            "video": "v1",
            "target": "red",
            "prompt": None,
            "address": None,
            "line": "v1",
        },
        "answers": part["questions"][3]["answers"],
    }
    assert answers(part, "dense", 1.0) == [("right", 1, "red")] * 10 + [("wrong", 0, "blue")] * 2
    ours = answers(part, "ours", 0.25)  # 011111100001 where dense has 111111111100
    assert [kind for kind, _, _ in ours] == ["lost"] + ["right"] * 6 + ["lost"] * 3 + ["wrong", "won"]
    assert answers(part, "random (control)", 0.25)[9] == ("failed", None, "OSError: no such video")


def test_graded_scores(make, provenance):
    scores = {"dense": (1.0, 0.5, 0.5, 0.5), "ours": (0.75, 0.75, 0.5, 0.25)}
    records = [
        replace(r, score=scores[method][i])
        for method, ratio in (("dense", 1.0), ("ours", 0.25))
        for i, r in enumerate(make(method, ratio, "1111"))
    ]
    (part,) = data_of(page("t", records, provenance, {}))["parts"]
    assert [kind for kind, _, _ in answers(part, "ours", 0.25)] == ["lost", "won", "wrong", "lost"]


def test_what_is_not_answered_yet_is_left_blank(make, provenance):
    """As of a command that was stopped; and without dense, an answer is right or wrong."""
    records = [*make("ours", 0.25, "10"), *make("random", 0.25, "1011")]
    (part,) = data_of(page("t", records, provenance, {}))["parts"]
    assert answers(part, "ours", 0.25) == [("right", 1, "red"), ("wrong", 0, "blue"), None, None]
    assert [kind for kind, _, _ in answers(part, "random (control)", 0.25)] == ["right", "wrong", "right", "right"]


def test_a_question_is_named_by_what_others_do_not_ask(make, provenance):
    prompts = ["Choose.\nWho?\nA. he", "Choose.\n\nWhere?\nA. here", "Choose.", None]
    asked = {("bench", f"q{i:02d}"): Asked(prompt, None) for i, prompt in enumerate(prompts) if prompt}
    (part,) = data_of(page("t", make("dense", 1.0, "1111"), provenance, asked))["parts"]
    assert [question["line"] for question in part["questions"]] == ["Who?", "Where?", "Choose.", "v1"]


def test_parts_are_apart(make, provenance):
    """Models, benchmarks and numbers of frames; a question of another benchmark has not its prompt."""
    records = [
        *make("dense", 1.0, "1"),
        *make("dense", 1.0, "0", benchmark="more"),
        *make("dense", 1.0, "1", frames=16),
    ]
    asked = {("bench", "q00"): Asked("Which colour?\nred or blue", "videos/v0.mp4")}
    parts = data_of(page("t", records, provenance, asked))["parts"]
    assert [p["title"] for p in parts] == ["toy, bench, 8 frames", "toy, more, 8 frames", "toy, bench, 16 frames"]
    first, second, third = (p["questions"][0] for p in parts)
    assert (first["prompt"], first["address"]) == ("Which colour?\nred or blue", "videos/v0.mp4")
    assert (second["prompt"], second["address"]) == (None, None)
    assert third["prompt"] == first["prompt"]


def test_an_answer_cannot_become_a_part_of_the_page(make, provenance):
    text = "</script><script>alert(1)</script><!-- {{data}}"
    (record,) = make("dense", 1.0, "1")
    made = page("t", [replace(record, prediction=text)], provenance, {})
    assert "alert" in made
    assert "<script>alert" not in made
    assert "<!-- " not in made
    (part,) = data_of(made)["parts"]
    assert answers(part, "dense", 1.0) == [("right", 1, text)]


def test_nothing_is_fetched(toy, provenance):
    """The page is whole in itself: it is also read where there is no network."""
    made = page("t", toy, provenance, {})
    assert not re.findall(
        r"""//[\w.-]+\.\w|<(?:link|script|img|iframe)\b[^>]*\b(?:src|href)\b|@import|url\(|fetch\(""", made
    )


def opened(file, address):
    """The page as a browser makes it, without its script."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    made = subprocess.run([*command, f"{file.as_uri()}#{address}"], capture_output=True, text=True, check=True).stdout
    return re.sub(r"<script.*?</script>", "", made, flags=re.DOTALL)


def table_of(file, address):
    """The lines of the page's table, each a text a cell."""
    lines = re.findall(r"<tr\b.*?</tr>", opened(file, address), re.DOTALL)
    cells = [re.findall(r"<t[dh]\b.*?</t[dh]>", line, re.DOTALL) for line in lines]
    return [[unescape(re.sub("<[^>]*>", " ", cell)).strip() for cell in line] for line in cells]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_in_a_browser(toy, provenance, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page("t", toy, provenance, {("bench", "q07"): Asked("Which <b>colour</b>?", None)}))
    _, sums, *lines = table_of(file, "ratio=0.25")
    assert sums[4:] == ["83.3", "58.3 ▼4 ▲1", "36.4 of 11 ▼5 ▲0"]
    assert [line[0] for line in lines] == [f"q{i:02d}" for i in range(12)]
    assert lines[9][4:] == ["+", "▼", "!"]
    address = "ratio=0.25&method=ours&show=lost+against+dense&skill=order&open=q07"
    names, sums, first, details, *said, last = table_of(file, address)
    assert names[4:] == ["dense", "ours", "random (control)"]
    assert sums[4:] == ["100.0", "0.0 ▼2 ▲0", "0.0 of 1 ▼1 ▲0"]
    assert first == ["q07", "order", "Which <b>colour</b>?", "red", "+", "▼", "▼"]
    assert "Right answer: red" in details[0]
    assert said == [["▼", "blue", "ours, random (control)"]]
    assert last[0] == "q09"


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("search=NO+SUCH", "q09"),
        ("show=failed", "q09"),
        ("show=won+against+dense", "q11"),
        ("show=lost+or+won&method=ours&search=q0", "q00 q07 q08 q09"),
        ("show=not+right&method=dense", "q10 q11"),
        ("show=not+right&method=random+(control)&skill=colour", "q04 q06 q08 q10"),
        ("part=1", "q00 q01"),
        ("ratio=7&show=nothing&skill=none&part=9&method=no", " ".join(f"q{i:02d}" for i in range(12))),
    ],
)
def test_what_is_chosen_in_a_browser(toy, make, provenance, tmp_path, address, found):
    file = tmp_path / "page.html"
    file.write_text(page("t", [*toy, *make("dense", 1.0, "10", benchmark="more")], provenance, {}))
    _, _, *lines = table_of(file, address if "ratio" in address else f"ratio=0.25&{address}")
    assert [line[0] for line in lines] == found.split()


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_accuracy_in_a_browser_is_the_tables(make, provenance, tmp_path):
    records = [*make("ours", 0.5, "1110", skills=("a", "a", "a", "b"))]
    for average, mean in (("questions", "75.0"), ("skills", "50.0")):
        provenance["key1"]["benchmark"] = {"name": "bench", "average": average}
        file = tmp_path / f"{average}.html"
        file.write_text(page("t", records, provenance, {}))
        _, sums, *_ = table_of(file, "")
        assert sums[4:] == [mean]  # and no flips without dense


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_pictures_of_a_video_in_a_browser(make, provenance, tmp_path):
    """Of the question that is open alone."""
    videos = {f"q{i:02d}": Asked("Who?", f"../a%20video{i}", ["1.png", "2%23.png"]) for i in range(2)}
    file = tmp_path / "page.html"
    file.write_text(page("t", make("dense", 1.0, "111"), provenance, {("bench", q): a for q, a in videos.items()}))
    images = re.findall("<img [^>]*>", opened(file, "open=q01"))
    assert [re.findall('(?:src|loading)="(.*?)"', image) for image in images] == [
        ["lazy", "../a%20video1/1.png"],
        ["lazy", "../a%20video1/2%23.png"],
    ]
    assert "<img" not in opened(file, "open=q02")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_wide_table_scrolls_in_its_own_area(make, provenance, tmp_path):
    records = [r for i in range(60) for r in make(f"method{i}", 0.5, "10" * 30)]
    measure = """<script>
        const root = document.documentElement, grid = document.querySelector(".grid");
        grid.scrollTo(500, 300);
        const place = (of, side) => of.getBoundingClientRect()[side];
        const at = (one, side) => place(document.querySelector(one), side) - place(grid, side);
        const still = [at("thead", "top"), at("tr.question > td", "left"), at(".both", "left")];
        document.title = [root.scrollWidth - root.clientWidth, grid.scrollLeft, grid.scrollTop, ...still];
    </script>"""
    file = tmp_path / "page.html"
    file.write_text(page("t", records, provenance, {}) + measure)
    (title,) = re.findall("<title>(.*)</title>", opened(file, "open=q01"))
    assert title == "0,500,300,0,0,16"


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_many_questions_notes_and_a_video_in_a_browser(make, provenance, tmp_path):
    records = [*make("dense", 1.0, "1" * 250), *make("ours", 0.5, "1" * 250)]
    records[250] = replace(records[250], score=0.25)
    asked = {("bench", "q00"): Asked("Who?", "no%20such.mp4")}
    file = tmp_path / "page.html"
    file.write_text(page("t", records, provenance, asked, ["a <note>"]))
    made = opened(file, "ratio=0.5&open=q00")
    assert made.count('class="question"') == 200
    assert "50 more" in made
    assert "a &lt;note&gt;" in made
    assert 'href="no%20such.mp4"' in made
    assert "this browser cannot show the video" in made
    assert "▼ 0.25" in made
