import itertools
import math

import numpy as np
import pytest

from mmg_bench.report import statistics
from mmg_bench.report.statistics import Bootstrap, accuracy, compare, mcnemar
from mmg_bench.report.table import p_value

FAST = Bootstrap(n_boot=1000)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 exceeds 1
        (5, 1, 2 * (1 + 6) / 64),
        (1, 5, 2 * (1 + 6) / 64),
        (10, 0, 2 / 1024),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_equals_the_binomial_by_hand(lost, won, p):
    assert mcnemar(lost, won) == pytest.approx(p, rel=1e-15)


def test_mcnemar_stays_exact_for_many_flips():
    # with 3000 flips the normal approximation with continuity correction holds within a percent
    z = (1600 - 1400 - 1) / math.sqrt(3000)
    assert mcnemar(1400, 1600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)
    assert mcnemar(0, 1000) == 2.0**-999


def test_mcnemar_refuses_negative_flips():
    with pytest.raises(ValueError, match="lost=-1"):
        mcnemar(-1, 2)


def test_accuracy_leaves_failed_questions_out_and_counts_them():
    estimate = accuracy([1, 0, math.nan, 1], ["a", "a", "b", "c"], bootstrap=FAST)
    assert estimate.value == pytest.approx(200 / 3)
    assert (estimate.n, estimate.n_errors) == (3, 1)
    assert estimate.low <= estimate.value <= estimate.high


def test_one_video_has_no_interval():
    scores, videos = [1, 0, math.nan], ["a", "a", "b"]  # all that was answered is about one
    estimate = accuracy(scores, videos, bootstrap=FAST)
    kept = compare(scores, [1, 1, 1], videos, bootstrap=FAST).kept_percent
    assert (estimate.value, kept.value) == (50, 50)
    assert all(math.isnan(bound) for e in (estimate, kept) for bound in (e.low, e.high))
    groups = ["g", "g", "h"]
    assert math.isnan(accuracy([1, 0, 1], videos, groups, bootstrap=FAST).low)  # one video in each
    assert math.isnan(accuracy([1, 0, 1], ["a", "b", "c"], groups, bootstrap=FAST).low)  # in one of them
    assert accuracy([1, 0, 1], videos, bootstrap=FAST).low < accuracy([1, 0, 1], videos, bootstrap=FAST).high


def test_interval_of_independent_questions_is_the_binomial_one():
    scores = np.arange(400) % 4 == 0
    estimate = accuracy(scores, [f"v{i}" for i in range(400)])
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400) * 100
    assert estimate.low == pytest.approx(25 - half, abs=0.4)
    assert estimate.high == pytest.approx(25 + half, abs=0.4)


def test_repeating_a_question_within_its_video_adds_no_certainty():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 2, 50).astype(float)
    videos = [f"v{i}" for i in range(50)]
    once = accuracy(scores, videos, bootstrap=FAST)
    often = accuracy(np.repeat(scores, 10), np.repeat(videos, 10), bootstrap=FAST)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-9)


def simulate(rng, videos=80, questions=5):
    """Dense and a method with the videos' difficulty in common: accuracies 0.6 and 0.48 in expectation."""
    difficulty = np.repeat(rng.beta(0.6 * 1.5, 0.4 * 1.5, videos), questions)
    dense = (rng.random(videos * questions) < difficulty).astype(float)
    method = (rng.random(videos * questions) < 0.8 * difficulty).astype(float)
    return method, dense, np.repeat([f"v{i:03d}" for i in range(videos)], questions)


def test_intervals_cover_the_truth_where_those_over_questions_do_not():
    rng = np.random.default_rng(2)
    over_videos = over_questions = ratio = 0
    runs = 300
    for _ in range(runs):
        method, dense, videos = simulate(rng)
        clustered = accuracy(dense, videos, bootstrap=FAST)
        naive = accuracy(dense, [f"q{i}" for i in range(len(dense))], bootstrap=FAST)
        kept = compare(method, dense, videos, bootstrap=FAST).kept_percent
        over_videos += clustered.low <= 60 <= clustered.high
        over_questions += naive.low <= 60 <= naive.high
        ratio += kept.low <= 80 <= kept.high
    assert 0.91 <= over_videos / runs <= 0.98
    assert 0.91 <= ratio / runs <= 0.98
    assert over_questions / runs < 0.88


def test_equal_answers_keep_100_percent_without_doubt():
    _, dense, videos = simulate(np.random.default_rng(3))
    pair = compare(dense, dense, videos, bootstrap=FAST)
    assert (pair.kept_percent.value, pair.kept_percent.low, pair.kept_percent.high) == (100, 100, 100)
    assert (pair.flips_lost, pair.flips_won, pair.p_mcnemar) == (0, 0, 1)


def test_comparison_by_hand():
    dense = [1, 1, 1, 0, 1, math.nan, 1]
    method = [1, 0, 0, 1, 1, 1, math.nan]
    pair = compare(method, dense, list("aabbccd"), bootstrap=FAST)
    assert pair.kept_percent.value == pytest.approx(100 * 3 / 4)  # over the five that both answered
    assert (pair.kept_percent.n, pair.kept_percent.n_errors) == (5, 2)
    assert (pair.flips_lost, pair.flips_won) == (2, 1)
    assert pair.p_mcnemar == 1.0
    assert (pair.accuracy, pair.other_accuracy) == pytest.approx((60, 80))
    assert (pair.difference.value, pair.difference.n, pair.difference.n_errors) == (pytest.approx(-20), 5, 2)


def test_interval_of_a_difference_is_that_of_independent_pairs():
    """A hundred videos of which one is lost and four are won: each pair is worth -1, 0 or 1 points in a hundred."""
    dense, method = np.zeros(100), np.zeros(100)
    dense[0], method[1:5] = 1, 1
    pair = compare(method, dense, [f"v{i}" for i in range(100)])
    half = 1.96 * math.sqrt(0.05 - 0.03**2) * 10
    assert pair.difference.value == pytest.approx(3)
    assert pair.difference.low == pytest.approx(3 - half, abs=1)
    assert pair.difference.high == pytest.approx(3 + half, abs=1)


@pytest.mark.parametrize(
    ("method", "dense"), [((2, 2, 2, 2, 0, 0), (2, 2, 2, 2, 2, 0)), ((1, 2, 2, 1, 0, 1), (2, 2, 2, 2, 2, 0))]
)
def test_interval_equals_that_of_all_possible_resamples(method, dense):
    """Six videos of two questions have 6^6 resamples; `method` and `dense` are right answers a video."""
    ratios = []
    for pick in itertools.product(range(6), repeat=6):
        if total := sum(dense[i] for i in pick):
            ratios.append(100 * sum(method[i] for i in pick) / total)

    def answers(right):
        return [float(question < r) for r in right for question in range(2)]

    kept = compare(answers(method), answers(dense), [f"v{i // 2}" for i in range(12)]).kept_percent
    assert (kept.low, kept.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-6)


def test_pairing_makes_the_interval_narrower_than_independent_ones():
    _, dense, videos = simulate(np.random.default_rng(4))
    method = dense.copy()
    method[::40] = 0
    kept = compare(method, dense, videos, bootstrap=FAST).kept_percent
    alone = accuracy(dense, videos, bootstrap=FAST)
    assert kept.high - kept.low < 0.5 * (alone.high - alone.low)


def test_percent_kept_of_nothing_is_not_a_number():
    pair = compare([1, 0], [0, 0], ["a", "b"], bootstrap=FAST)
    assert all(math.isnan(v) for v in (pair.kept_percent.value, pair.kept_percent.low, pair.kept_percent.high))
    assert pair.flips_won == 1


def test_all_failed_is_not_a_number_and_not_zero():
    estimate = accuracy([math.nan, math.nan], ["a", "b"], bootstrap=FAST)
    assert math.isnan(estimate.value)
    pair = compare([math.nan, math.nan], [1, 0], ["a", "b"], bootstrap=FAST)
    assert (pair.difference.n, pair.difference.n_errors) == (0, 2)
    assert all(math.isnan(value) for value in (pair.p_mcnemar, pair.flips_lost, pair.flips_won))
    assert p_value(pair.p_mcnemar) == "–"
    assert (estimate.n, estimate.n_errors) == (0, 2)


def test_groups_count_alike_whatever_their_size():
    scores = [1, 1, 1, 1, 0, 0]  # 4 of 4 and 0 of 2
    estimate = accuracy(scores, list("abcdef"), ["x"] * 4 + ["y"] * 2, bootstrap=FAST)
    assert estimate.value == 50
    dense = [1, 1, 1, 1, 1, 1]
    pair = compare(scores, dense, list("abcdef"), ["x"] * 4 + ["y"] * 2, bootstrap=FAST)
    assert pair.kept_percent.value == 50


def test_average_of_two_benchmarks_is_surer_than_either():
    scores = np.tile(np.arange(200) % 2 == 0, 2)
    benchmark = np.repeat(["x", "y"], 200)
    videos = [f"{b}{i}" for i, b in enumerate(benchmark)]
    one = accuracy(scores[:200], videos[:200])
    both = accuracy(scores, videos, benchmark)
    assert (both.high - both.low) / (one.high - one.low) == pytest.approx(1 / math.sqrt(2), abs=0.04)


def test_the_order_of_questions_does_not_matter():
    rng = np.random.default_rng(5)
    method, dense = rng.random(60), rng.random(60)  # fractions: sums must not depend on the order either
    videos = np.repeat([f"v{i}" for i in range(12)], 5)
    shuffled = rng.permutation(60)
    assert compare(method, dense, videos, bootstrap=FAST) == compare(
        method[shuffled], dense[shuffled], videos[shuffled], bootstrap=FAST
    )
    assert accuracy(method, videos, bootstrap=FAST) == accuracy(method[shuffled], videos[shuffled], bootstrap=FAST)


def test_memory_bound_does_not_change_the_draws(monkeypatch):
    sums = np.random.default_rng(6).integers(0, 5, (30, 2)).astype(float)
    whole = FAST.sums(sums)
    for remembered in (statistics._draws, statistics._sums):
        remembered.cache_clear()
    monkeypatch.setattr(statistics, "_CHUNK", 7 * 30)
    pieces = FAST.sums(sums)
    for remembered in (statistics._draws, statistics._sums):
        remembered.cache_clear()
    assert pieces is not whole
    assert np.array_equal(whole, pieces)


def test_another_seed_draws_otherwise():
    scores, _, videos = simulate(np.random.default_rng(7))
    assert accuracy(scores, videos, bootstrap=Bootstrap(500, seed=1)) != accuracy(
        scores, videos, bootstrap=Bootstrap(500, seed=2)
    )


@pytest.mark.parametrize(
    ("scores", "videos", "message"),
    [
        ([], [], "no question"),
        ([1, 0], ["a"], "one entry per question"),
        ([2.0], ["a"], "in 0..1"),
        ([-0.5], ["a"], "in 0..1"),
    ],
)
def test_bad_scores_are_refused(scores, videos, message):
    with pytest.raises(ValueError, match=message):
        accuracy(scores, videos)


def test_bootstraps_of_nothing_are_refused():
    with pytest.raises(ValueError, match="n_boot"):
        Bootstrap(n_boot=0)


def test_subgroups_count_the_same_within_their_group():
    scores = [1, 1, 1, 0, 0, 1, 0, math.nan]
    dense = [1, 1, 1, 1, 0, 1, 1, 1]
    videos = list("abcdefgh")
    benchmarks = ["x"] * 5 + ["y"] * 3
    skills = ["all"] * 5 + ["colour", "order", "order"]  # y is the mean over its skills
    found = accuracy(scores, videos, benchmarks, skills, bootstrap=FAST)
    assert found.value == pytest.approx(100 * (3 / 5 + (1 + 0) / 2) / 2)
    assert (found.n, found.n_errors) == (7, 1)
    pair = compare(scores, dense, videos, benchmarks, skills, bootstrap=FAST)
    assert pair.kept_percent.value == pytest.approx(100 * (3 / 5 + 1 / 2) / (4 / 5 + 1))
    one = ["all"] * 8
    assert accuracy(scores, videos, benchmarks, one, bootstrap=FAST) == accuracy(
        scores, videos, benchmarks, bootstrap=FAST
    )
    # a skill name that two benchmarks share is not one group
    shared = accuracy([1, 0, 0, 1], list("abcd"), ["x", "x", "y", "y"], ["s", "t", "s", "s"], bootstrap=FAST)
    assert shared.value == pytest.approx(50)


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"subgroups \[1\] must each have one entry per question"):
        accuracy([1, 0], ["a", "b"], None, ["s"])
