"""Chain: two methods one after the other, in a tiny model and alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmg_bench import cells
from mmg_bench.cells import code_of, make_cell
from mmg_bench.methods.chain import Chain, value_of
from mmg_bench.methods.fastv import FastV
from mmg_bench.methods.pdrop import PDrop
from mmg_bench.methods.registry import get_method, read_label
from mmg_bench.methods.sparsevlm import text_raters
from mmg_bench.models.adapter import _stand_in
from mmg_bench.report.labels import label_among
from mmg_bench.tokens import LayerTokens, Selection

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
N = 16
"""Tokens of a frame of the tiny model."""


def answered(model: Any, inputs: dict[str, Tensor], method: Any, **options: Any) -> tuple[Tensor, Any]:
    with torch.no_grad(), method(model, **options) as run:
        logits = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True).logits
    return torch.stack(logits), run


@pytest.mark.parametrize(
    "inside", ["dart", "fastv", "fastv(layer=3)", "pact", "pdrop", "sparsevlm", "sparsevlm(version=2)", "v2drop"]
)
def test_behind_what_keeps_all_a_method_does_what_it_does_alone(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], inside: str
) -> None:
    name, options = read_label(inside)
    alone = get_method(name, retention_ratio=0.3, **{option: int(value) for option, value in options.items()})
    expected, run = answered(deep[0], inputs, alone)
    chain = Chain(1, before="random", inside=inside, inside_ratio=0.3)
    found, chained = answered(deep[0], inputs, chain, positions=alone.positions)
    assert torch.equal(found, expected)
    assert chained.stages == run.stages
    assert torch.equal(chained.report[0].left, run.report[0].left)


def test_each_part_has_its_own_share(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Of what enters, and not of what the video had."""
    total = 6 * N
    _, run = answered(deep[0], inputs, Chain(0.5, before="random", inside="fastv", inside_ratio=0.25))
    assert len(run.report[0].positions) == total // 2
    assert run.stages == [[2, total // 8]]
    _, run = answered(deep[0], inputs, Chain(0.5, before="random", inside="pdrop(share=0.5)", inside_ratio=0.5))
    assert [left for _, left in run.stages] == [total // 4, total // 8, total // 16]


@pytest.mark.parametrize("positions", [None, "contiguous"])
def test_position_ids_are_of_one_kind_in_both_parts(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], positions: Any
) -> None:
    """Those of the first part, although PyramidDrop renumbers when it is alone."""
    seen: list[Tensor] = []
    layer = deep[0].model.language_model.layers[-1]
    given = layer.register_forward_pre_hook(lambda *a: seen.append(a[2]["position_ids"]), with_kwargs=True)
    with torch.no_grad(), Chain(0.5, before="random", inside="pdrop")(deep[0], positions=positions) as run:
        deep[0](**inputs)
    given.remove()
    gaps = seen[0].diff(dim=-1).max()
    assert (gaps == 1) == (positions == "contiguous")
    assert run.stages


def test_the_first_part_chooses_what_it_chooses_alone(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    alone, chain = get_method("mmg_vid", retention_ratio=0.25), Chain(0.25)
    _, one = answered(deep[0], inputs, alone)
    _, two = answered(deep[0], inputs, chain)
    assert torch.equal(two.report[0].positions, one.report[0].positions)
    assert len(two.report[0].left) == round(0.5 * 6 * N // 4)
    assert set(two.report[0].left.tolist()) < set(two.report[0].positions.tolist())


def test_the_second_part_knows_only_what_enters() -> None:
    """SparseVLM takes its raters from the tokens that it is given."""
    from mmg_bench.contract import video

    tokens = video()
    pruned = Chain(0.25, before="random", inside="sparsevlm").prune(tokens)
    alone = get_method("random", retention_ratio=0.25).prune(tokens)
    entered, raters = pruned.state
    assert torch.equal(entered, alone.positions)
    assert tokens.query is not None
    assert torch.equal(raters, text_raters(alone.features, tokens.query))


def test_it_is_what_its_parts_are() -> None:
    chain = Chain(0.2, before="visionzip", inside="sparsevlm")
    before, inside = chain.parts
    assert chain.needs == before.needs | {"query"}
    assert (chain.exact, chain.positions) == (before.exact, before.positions)
    assert inside.positions == "contiguous"
    assert Chain(0.2, before="evs").exact is False
    assert chain.layers(32) == inside.layers(32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"before": "fastv"}, "chain.before='fastv': fastv prunes only inside the language model"),
        ({"before": "holitom"}, r"switch that off if it has an option for it, as in 'holitom\(inner=false\)'"),
        ({"before": "dycoke"}, r"switch that off if it has an option for it, as in 'dycoke\(inner=false\)'"),
        (
            {"inside": "mmg_vid"},
            "chain.inside='mmg_vid': mmg_vid does not prune only inside .*"
            ": dart, fastv, pact, pdrop, sparsevlm, v2drop",
        ),
        ({"inside": "holitom"}, "holitom does not prune only inside the language model"),
        ({"before": "mmgvid"}, "chain.before='mmgvid': unknown method 'mmgvid'; did you mean mmg_vid"),
        ({"before": "mmg_vid(tua=1)"}, r"chain.before='mmg_vid\(tua=1\)': method 'mmg_vid' has no parameter tua"),
        ({"before": "mmg_vid(tau=2)"}, r"chain.before='mmg_vid\(tau=2\)': MMGVid.tau=2: it must be"),
        ({"inside": "chain"}, "chain.inside='chain': a part of a chain cannot be a chain; choose another method"),
        ({"before": "dense"}, "chain.before='dense': dense prunes nothing; run the other part without a chain"),
        ({"inside": "dense"}, "chain.inside='dense': dense prunes nothing"),
        (
            {"inside": "fastv(retention_ratio=0.1)"},
            "a part has no retention_ratio of its own; set the inside_ratio of the chain",
        ),
        (
            {"before": "visionzip(positions=original)"},
            "a part has no positions of its own; set the positions of the chain",
        ),
        (
            {"inside": "fastv(layer=3"},
            r"chain.inside='fastv\(layer=3': it must be a method, such as 'fastv\(layer=3\)'",
        ),
        ({"before": "fastvid(frame_source=mean"}, r"it must be a method, such as 'mmg_vid\(tau=0.9\)'"),
        ({"inside": "fastv(3)"}, "it must be a method, such as"),
        ({"inside": "fastv(layer={[]:1})"}, r"FastV.layer='\{\[\]:1\}': it must be an integer"),
        ({"before": "dycoke(layer=40)"}, r"switch that off if it has an option for it, as in 'dycoke\(inner=false\)'"),
        ({"inside": 3}, "chain.inside=3: it must be a method, such as"),
        ({"inside_ratio": 0}, "Chain.inside_ratio=0: it must be a number in"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Chain(0.25, **options)


@dataclass(frozen=True)
class Numbered(FastV):
    """Looks each of its tokens up among all that there are."""

    name: ClassVar[str] = "numbered"

    def select_inside(self, tokens: LayerTokens) -> Selection:
        assert torch.equal(torch.arange(tokens.total)[tokens.positions], torch.arange(len(tokens.positions)))
        return super().select_inside(tokens)


def test_to_the_second_part_positions_count_what_enters(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"random": get_method("random", retention_ratio=0.25), "numbered": Numbered(0.5)}
    monkeypatch.setattr("mmg_bench.methods.chain.get_method", lambda name, **options: parts[name])
    _, run = answered(deep[0], inputs, Chain(0.25, before="random", inside="numbered"))
    assert run.stages == [[2, 6 * N // 8]]


@pytest.mark.parametrize(
    "spelling",
    [
        "fastvid(salience=received,frame_source=mean)",
        " fastvid( frame_source = mean, salience = received ) ",
        "'fastvid(frame_source=mean,salience=received)'",
        "fastvid(frame_source=mean, salience=received, p=4)",
    ],
)
def test_a_part_has_one_name_however_it_is_spelt(spelling: str) -> None:
    one = make_cell("chain", 0.25, before="fastvid(frame_source=mean, salience=received)")
    other = make_cell("chain", 0.25, before=spelling)
    assert (other.label, other.key(), other.method) == (one.label, one.key(), one.method)
    assert label_among(f"chain(before={spelling.strip().strip(chr(39))}, inside=fastv)", [one.label]) == one.label


def test_a_number_in_a_part_has_one_spelling() -> None:
    one, other = (make_cell("chain", 0.25, before=f"mmg_vid(tau={tau})", inside="pact(share=1.0)") for tau in (1, 1.0))
    assert one.label == "chain(before=mmg_vid(tau=1), inside=pact(share=1))"
    assert (other.label, other.key(), other.method) == (one.label, one.key(), one.method)


def test_labels_of_other_position_ids_are_other_methods() -> None:
    own, original = (make_cell("chain", 0.25, p, before="visionzip").label for p in (None, "original"))
    assert label_among(original, [own]) is None
    assert label_among(own, [original]) is None
    assert label_among("chain(before=visionzip, inside_ratio=0.5, positions=original)", [own, original]) == original


def test_a_second_part_that_reads_the_whole_video_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(FastV):
        name = "looks"
        needs = frozenset({"attention", "query"})

    parts = {"random": get_method("random"), "looks": Looks()}
    monkeypatch.setattr("mmg_bench.methods.chain.get_method", lambda name, **options: parts[name])
    with pytest.raises(
        ValueError, match=r"chain\.inside='looks': looks reads attention of the whole video, but gets only"
    ):
        Chain(0.25, before="random", inside="looks")


def test_a_label_says_what_it_is_made_of_and_is_read_back() -> None:
    assert make_cell("chain", 0.25).label == "chain(before=mmg_vid, inside=fastv)"
    label = make_cell("chain", 0.25, before="fastvid(frame_source=mean, salience=received)").label
    name, parameters = read_label(label)
    assert name == "chain"
    assert parameters == {
        "before": "fastvid(frame_source=mean,salience=received)",
        "inside": "fastv",
    }
    assert make_cell(name, 0.25, **{k: value_of(v) for k, v in parameters.items()}).method.parts == (
        make_cell("chain", 0.25, before="fastvid(frame_source=mean, salience=received)").method.parts
    )
    two = [label, make_cell("chain", 0.25, inside="fastv(layer=3)").label]
    assert label_among("chain(inside=fastv(layer=3),before=mmg_vid)", two) == two[1]
    assert label_among("chain(inside=fastv(layer=3), inside_ratio=0.5)", two) == two[1]
    assert label_among("chain(inside=fastv(layer=3))", two) == two[1]  # the first part at its default


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("mean", "mean"),
    ],
)
def test_values_in_a_label(text: str, value: object) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_it_is_answered_anew_when_the_code_of_a_part_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, other = make_cell("chain", 0.25), make_cell("chain", 0.25, before="random", inside="pdrop")
    before = chain.key(), other.key()

    def digest(cls: type) -> str:
        return code_of(cls) + ("changed" if cls.__name__ == "FastV" else "")

    monkeypatch.setattr(cells, "code_of", digest)
    assert (chain.key() != before[0], other.key() != before[1]) == (True, False)
    assert isinstance(other.method.parts[1], PDrop)


def test_the_stand_in_of_a_part_is_told() -> None:
    assert _stand_in("chain(before=fastvid, inside=fastv)", {"attention"}) == [
        "use its stand-in, fastvid with frame_source=mean and salience=received"
    ]
    assert _stand_in("chain(before=fastvid, inside=fastv)", {"attention", "mean_query_attention"}) == [
        "use its stand-in, fastvid with variant=qwen and tau=0.84 and frame_source=mean and salience=mean_query"
    ]
    assert _stand_in("chain(before=random, inside=fastv)", {"attention"}) == []
