"""When a difference is attributed to chance, and which Results are not compared at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from paper_results import result_for

from dinoeval.paper.rows import rows_for
from dinoeval.results import Result, proportion_error
from dinoeval.verdicts import compare_results, compare_with_paper

KNN = next(row for row in rows_for("knn") if row.network == "vit_s16")  # 74.5


def result(outcomes: list[int], *, paths: list[str] | None = None, **changes) -> Result:
    percent = 100 * sum(outcomes) / len(outcomes)
    made = Result(
        protocol="knn",
        version=1,
        metrics={"top1@20": percent},
        standard_errors={"top1@20": proportion_error(percent, len(outcomes))},
        config={},
        backbone={},
        data={"name": "x", "train": {"fingerprint": "a"}, "val": {"fingerprint": "b"}},
        transform="t",
        machine={},
        seconds={},
        samples={"path": paths or [str(n) for n in range(len(outcomes))], "top1@20": outcomes},
    )
    return dataclasses.replace(made, **changes)


def measured(value: float, error: float) -> Result:
    return dataclasses.replace(result_for(KNN), metrics={"top1@20": value}, standard_errors={"top1@20": error})


def test_paper_tolerance_is_two_errors_and_half_a_digit():
    """2 * 0.195 + 0.05 = 0.44 points around 74.5."""
    for value, expected in ((74.07, "same"), (74.05, "worse"), (74.93, "same"), (74.95, "better")):
        (verdict,), reasons = compare_with_paper(measured(value, 0.195))
        assert (verdict.outcome, reasons) == (expected, ())
        assert verdict.tolerance == pytest.approx(0.44)
        assert verdict.method.startswith("2.00 x SE 0.195 + rounding 0.05")


def test_paper_tolerance_is_capped_for_few_images():
    """Two errors of 70 queries are 9.56 points, in which a model that lost 6 points would hide."""
    for value, expected in ((68.5, "worse"), (73.4, "worse"), (73.5, "same"), (75.5, "same"), (75.6, "better")):
        (verdict,), _ = compare_with_paper(measured(value, 4.78))
        assert (verdict.outcome, verdict.tolerance) == (expected, 1.05)
    assert "at most 1" in verdict.method


def test_paper_reasons_are_returned_if_nothing_is_comparable():
    verdicts, reasons = compare_with_paper(result([1, 0]))
    assert verdicts == []
    assert reasons


def test_several_metrics_share_the_error_probability():
    row = next(row for row in rows_for("davis") if row.network == "vit_s8")
    davis = dataclasses.replace(result_for(row), metrics={"J&F": 69.9, "J": 66.6, "F": 73.1}, standard_errors={"J": 0.1})
    verdicts, _ = compare_with_paper(davis)
    assert [verdict.metric for verdict in verdicts] == ["J&F", "J", "F"]
    assert verdicts[1].tolerance == pytest.approx(2.427 * 0.1 + 0.05, abs=1e-3)  # z of a tail of 0.02275 / 3


def test_equal_images_are_compared_in_pairs():
    """Ten outcomes changed in a thousand: the error of the difference is sqrt(10) / 1000 = 0.316 points, not 1.9 (unpaired)."""
    before = [1] * 500 + [0] * 500
    after = [0] * 10 + before[10:]
    (verdict,), _ = compare_results(result(after), result(before))
    assert (verdict.difference, verdict.outcome) == (-1.0, "worse")
    assert verdict.tolerance == pytest.approx(2 * 0.3162, abs=1e-3)
    (unpaired,), _ = compare_results(result(after, paths=[str(-n) for n in range(1000)]), result(before))
    assert unpaired.outcome == "same"
    assert "unpaired" in unpaired.method
    (same,), _ = compare_results(result(before), result(before))
    assert (same.outcome, same.tolerance) == ("same", 0)


def test_samples_without_an_outcome_do_not_count():
    """Of four outcomes one is None: the difference of the other three is 1 / 3, its error sqrt(1) / 3."""
    one, two = (result([0], samples={"path": list("abcd"), "top1@20": outcomes}) for outcomes in ([1, 1, 0, None], [1, 0, 0, None]))
    (verdict,), _ = compare_results(one, two)
    assert verdict.tolerance == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("change", "mentioned"),
    [
        ({"protocol": "linear"}, ("linear", "knn")),
        ({"version": 2}, ("VERSION 2", "1")),
        ({"data": {"train": {"fingerprint": "a"}, "val": {"fingerprint": "c"}}}, ("val", "c", "b")),
        ({"data": {"train": {"fingerprint": "a", "images": 4}, "val": {"fingerprint": "b"}}}, ("train", "4", "None")),
        ({"metrics": {"mAP": 3.0}}, ("top1@20",)),
        ({"transform": "dino@1:300/224"}, ("transform", "dino@1:300/224")),
        ({"config": {"temperature": 0.1}}, ("temperature", "0.1")),
        ({"backbone": {"precision": "bf16"}}, ("precision", "bf16")),
    ],
)
def test_different_runs_are_not_compared(change, mentioned):
    verdicts, reason = compare_results(result([1, 0], **change), result([1, 0]))
    assert not verdicts
    assert all(word in reason for word in mentioned)


def test_options_of_data_and_k_may_differ():
    one, two = (result([1, 0], config={"data": data, "k": k}) for data, k in (("a", [10, 20]), ("b", [20])))
    assert compare_results(one, two)[1] is None


@pytest.mark.parametrize("count", [9, 50, 97, 100, 1000])
def test_paired_border_does_not_depend_on_rounding(count):
    """Four lost and none gained is exactly two standard errors for any number of outcomes; five lost is more."""
    for lost, expected in ((4, "same"), (5, "worse")):
        (verdict,), _ = compare_results(result([0] * lost + [1] * (count - lost)), result([1] * count))
        assert verdict.outcome == expected


def test_equal_models_rarely_fail_on_any_of_many_metrics():
    """With eight metrics, each needs 2.77 standard errors; 300 draws of equal models, seed 0."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        outcomes = {f"top1@{k}": random.integers(0, 2, (2, 400)) for k in range(8)}
        runs = [
            result(
                [0],
                metrics={name: 100 * rows[n].mean() for name, rows in outcomes.items()},
                samples={"path": list(range(400)), **{name: rows[n].tolist() for name, rows in outcomes.items()}},
            )
            for n in range(2)
        ]
        alarms += any(verdict.outcome == "worse" for verdict in compare_results(*runs)[0])
    assert alarms / 300 < 0.045


def test_lower_decay_is_better():
    one, other = (result([1, 0], metrics={"J_decay": decay}, standard_errors={"J_decay": 0.1}, samples={}) for decay in (2.0, 30.0))
    for made, reference, outcome in ((one, other, "better"), (other, one, "worse"), (one, one, "same")):
        (verdict,), _ = compare_results(made, reference)
        assert verdict.outcome == outcome


def test_results_without_metrics_are_not_compared():
    bare = dataclasses.replace(result([1, 0]), metrics={}, standard_errors={}, samples={})
    verdicts, reason = compare_results(bare, bare)
    assert verdicts == []
    assert "no metric" in reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_number_are_not_compared(value):
    good, bad = result([1, 0]), result([1, 0], metrics={"top1@20": value})
    for pair in ((good, bad), (bad, good)):
        verdicts, reason = compare_results(*pair)
        assert (verdicts, str(value) in reason) == ([], True)
    assert compare_with_paper(measured(value, 0.2))[0][0].outcome != "same"


def test_infinite_tolerance_is_not_the_same_score():
    huge = {"top1@20": 1e308}
    far = result([0, 0], samples={}, standard_errors=huge, metrics={"top1@20": -1e308})
    assert compare_results(result([1, 0], samples={}, metrics=huge, standard_errors=huge), far)[0][0].outcome != "same"


def test_outcomes_are_compared_unpaired_if_no_image_counts():
    (verdict,), _ = compare_results(result([1, 0]), result([1, 0], samples={"path": ["0", "1"], "top1@20": [None, None]}))
    assert (verdict.outcome, verdict.method.split(":")[0]) == ("same", "unpaired")
