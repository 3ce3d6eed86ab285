"""Closed questions about a `World`, each with a one-word answer and the skill that it tests."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mmg_bench.benchmarks.embedded.world import COLOURS, DIRECTIONS, SHAPES, World

COUNTS = ("one", "two", "three")
SKILLS = ("colour", "shape", "direction", "order", "event", "count")
POST_PROMPT = "Answer with one word."


@dataclass(frozen=True)
class Question:
    """A question. `choices` are its possible answers: guessing scores 1 / len(choices)."""

    skill: str
    text: str
    answer: str
    choices: tuple[str, ...]


def all_questions(world: World) -> list[Question]:
    """Every question that the video answers unambiguously."""
    shapes = [mover.shape for mover in world.movers]
    questions = []
    for mover in world.movers:
        if shapes.count(mover.shape) == 1:
            questions.append(Question("colour", f"What colour is the {mover.shape}?", mover.colour, tuple(COLOURS)))
        questions.append(Question("shape", f"What shape is the {mover.colour} object?", mover.shape, SHAPES))
        text = f"Which way does the {mover.colour} object move?"
        questions.append(Question("direction", text, mover.direction, tuple(DIRECTIONS)))
    for i, scene in enumerate(world.scenes):
        for later in world.scenes[i + 1 :]:
            for a in scene.movers:
                for b in later.movers:
                    questions += _order(a.colour, b.colour)
    if world.flashes:
        questions.append(Question("event", "What colour is the star?", world.flashes[0].colour, tuple(COLOURS)))
        flashes = COUNTS[len(world.flashes) - 1]
        questions.append(Question("count", "How many times does the star flash?", flashes, COUNTS))
    for shape in SHAPES:
        if 1 <= shapes.count(shape) <= len(COUNTS):
            number = COUNTS[shapes.count(shape) - 1]
            questions.append(Question("count", f"How many objects have the shape of a {shape}?", number, COUNTS))
    return questions


def _order(early: str, late: str) -> list[Question]:
    """Both orders of mention, each with "first" and "last", so that no wording gives the answer away."""
    return [
        Question("order", f"Which object comes {when}, {a} or {b}?", early if when == "first" else late, (a, b))
        for when in ("first", "last")
        for a, b in ((early, late), (late, early))
    ]


def sample_questions(world: World, per_skill: int, rng: np.random.Generator) -> list[Question]:
    """At most `per_skill` different questions of every skill that the video allows.

    The answer is drawn before the question, so that answers are about equally frequent: counts of shapes are mostly
    "one".
    """
    chosen = []
    pool = all_questions(world)
    for skill in SKILLS:
        left = [q for q in pool if q.skill == skill]
        for _ in range(min(per_skill, len(left))):
            answers = sorted({q.answer for q in left})
            answer = str(rng.choice(answers))
            candidates = [q for q in left if q.answer == answer]
            pick = candidates[int(rng.integers(len(candidates)))]
            left.remove(pick)
            chosen.append(pick)
    return chosen


def vocabulary() -> list[str]:
    """Every word that can occur in a prompt or an answer of this benchmark."""
    order = _order("red", "blue")
    texts = [
        "user assistant What colour is the star? What shape is the object? Which way does the object move?",
        "How many times does the star flash? How many objects have the shape of a star?",
        *(q.text for q in order),
        POST_PROMPT,
        " ".join((*COLOURS, *SHAPES, *DIRECTIONS, *COUNTS)),
    ]
    return re.findall(r"\w+|[^\w\s]+", " ".join(texts))
