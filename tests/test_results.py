from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dinoeval.errors import DinoevalError
from dinoeval.results import Reference, Result, compare, proportion_error


def result(outcomes: list[int], *, paths: list[str] | None = None, references=(), **changes) -> Result:
    percent = 100 * sum(outcomes) / len(outcomes)
    made = Result(
        protocol="knn", version=1, metrics={"top1@20": percent}, standard_errors={"top1@20": proportion_error(percent, len(outcomes))},
        config={}, backbone={}, data={"name": "x", "train": {"fingerprint": "a"}, "val": {"fingerprint": "b"}}, transform="t", machine={},
        seconds={}, references=list(references), not_comparable=None if references else "no number is published",
        samples={"path": paths or [str(n) for n in range(len(outcomes))], "top1@20": outcomes},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def reference(value: float) -> Reference:
    return Reference(metric="top1@20", value=value, decimals=1, source="Table 2")


def test_standard_error_by_hand():
    """sqrt(.745 * .255 / 50000) = 0.195 points, the paper's k-NN on ImageNet."""
    assert proportion_error(74.5, 50_000) == pytest.approx(0.195, abs=5e-4)
    assert proportion_error(100.0, 10) == 0


def test_against_the_paper_the_tolerance_is_two_errors_and_half_a_digit():
    """7,500 of 10,000 right: error sqrt(.75 * .25 / 10000) = 0.433, tolerance 2 * 0.433 + 0.05 = 0.916."""
    outcomes = [1] * 7500 + [0] * 2500
    for value, expected in ((75.9, "same"), (76.0, "worse"), (74.1, "same"), (74.0, "better")):
        (verdict,), reason = compare(result(outcomes, references=[reference(value)]), None)
        assert (verdict.outcome, reason) == (expected, None)
        assert verdict.tolerance == pytest.approx(0.916, abs=0.0005)
        assert verdict.method == "2.00 x SE 0.433 + rounding 0.05 (Table 2)"


def test_of_few_queries_the_tolerance_is_one_point_since_the_paper_has_the_same_queries():
    """56 of 70 right: two errors would be 9.56 points, in which a model that lost 6 points would hide."""
    outcomes = [1] * 56 + [0] * 14
    for value, expected in ((86.0, "worse"), (81.1, "worse"), (81.0, "same"), (79.0, "same"), (78.9, "better")):
        (verdict,), _ = compare(result(outcomes, references=[reference(value)]), None)
        assert (verdict.outcome, verdict.tolerance) == (expected, 1.05)
    assert verdict.method == "2.00 x SE 4.781, at most 1, + rounding 0.05 (Table 2)"


def test_results_on_the_same_images_are_compared_pair_by_pair():
    """Ten outcomes changed in a thousand: the error of the difference is sqrt(10) / 1000 = 0.316 points, not 1.9 (unpaired)."""
    before = [1] * 500 + [0] * 500
    after = [0] * 10 + before[10:]
    (verdict,), _ = compare(result(after), result(before))
    assert (verdict.difference, verdict.outcome) == (-1.0, "worse")
    assert verdict.tolerance == pytest.approx(2 * 0.3162, abs=1e-3)
    (unpaired,), _ = compare(result(after, paths=[str(-n) for n in range(1000)]), result(before))
    assert unpaired.outcome == "same"
    assert "unpaired" in unpaired.method
    (same,), _ = compare(result(before), result(before))
    assert (same.outcome, same.tolerance) == ("same", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "linear"}, "one is of linear, the other of knn"),
        ({"version": 2}, "VERSION 2 in one and 1 in the other"),
        ({"data": {"train": {"fingerprint": "a"}, "val": {"fingerprint": "c"}}}, "their val images are not the same"),
        ({"metrics": {"mAP": 3.0}}, "one lacks top1@20"),
        ({"transform": "dino@1:300/224"}, "transform is dino@1:300/224 in one and t in the other"),
        ({"config": {"temperature": 0.1}}, "temperature is 0.1"),
        ({"backbone": {"precision": "bf16"}}, "precision is bf16"),
    ],
)
def test_what_cannot_be_compared_says_why(change, said):
    verdicts, reason = compare(result([1, 0], **change), result([1, 0]))
    assert not verdicts
    assert said in reason
    assert compare(result([1, 0]), None)[1] == "no number is published"


@pytest.mark.parametrize("count", [9, 50, 97, 100, 1000])
def test_the_border_does_not_depend_on_rounding(count):
    """Four lost and none gained is just two standard errors, whatever the number of outcomes; five lost is more."""
    for lost, expected in ((4, "same"), (5, "worse")):
        (verdict,), _ = compare(result([0] * lost + [1] * (count - lost)), result([1] * count))
        assert verdict.outcome == expected


def test_equal_models_rarely_fail_on_any_of_many_metrics():
    """Bonferroni: with eight metrics, each needs 2.77 standard errors; 300 draws of equal models, seed 0."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        outcomes = {f"top1@{k}": random.integers(0, 2, (2, 400)) for k in range(8)}
        runs = [
            result([0], metrics={name: 100 * rows[n].mean() for name, rows in outcomes.items()},
                   samples={"path": list(range(400)), **{name: rows[n].tolist() for name, rows in outcomes.items()}})
            for n in range(2)
        ]  # fmt: skip
        alarms += any(verdict.outcome == "worse" for verdict in compare(*runs)[0])
    assert alarms / 300 < 0.045


def test_files_that_are_no_result(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(DinoevalError, match="No such file"):
        Result.load(path)
    for content, said in (
        ("{", "is no Result"),
        ("[]", "is no Result of this version"),
        (json.dumps({"schema": "dinoeval-result/1"}), "complete"),
    ):
        path.write_text(content)
        with pytest.raises(DinoevalError, match=said):
            Result.load(path)


def test_an_unwritable_place_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(DinoevalError, match="cannot be written"):
        result([1]).save(tmp_path / "absent" / "r.json")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(DinoevalError, match="cannot be written"):
        result([1]).save(tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_lower_decay_is_better():
    one, other = (result([1, 0], metrics={"J_decay": decay}, standard_errors={"J_decay": 0.1}, samples={}) for decay in (2.0, 30.0))
    for made, against, outcome in ((one, other, "better"), (other, one, "worse"), (one, one, "same")):
        (verdict,), _ = compare(made, against)
        assert verdict.outcome == outcome
