"""Results: files, and the table that is printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from paper_results import result_for

from dinoeval.errors import DinoevalError
from dinoeval.paper.comparable import comparable
from dinoeval.paper.rows import rows_for
from dinoeval.reports.table import align, format_result
from dinoeval.results import READABLE_SCHEMAS, Result, proportion_error

KNN = next(row for row in rows_for("knn") if row.network == "vit_s16")


def test_proportion_error_matches_hand_computed_case():
    """sqrt(.745 * .255 / 50000) = 0.195 points, the k-NN score of the paper on ImageNet."""
    assert proportion_error(74.5, 50_000) == pytest.approx(0.195, abs=5e-4)
    assert proportion_error(100.0, 10) == 0


def test_result_is_equal_after_saving_and_loading(tmp_path):
    result = result_for(KNN)
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result


def test_results_of_the_first_schema_can_be_compared(tmp_path):
    content = dataclasses.asdict(result_for(KNN))
    del content["details"], content["backbone"]["network"]
    old = {"schema": READABLE_SCHEMAS[0], **content, "references": [{"metric": "top1@20", "value": 1.0}], "not_comparable": None}
    (tmp_path / "old.json").write_text(json.dumps(old))
    (row,) = comparable(Result.load(tmp_path / "old.json")).rows
    assert row.value == 74.5


def test_options_of_the_first_schema_have_their_new_names(tmp_path):
    content = dataclasses.asdict(result_for(next(row for row in rows_for("retrieval") if row.network == "vit_s16")))
    content["config"]["whitening_centred"] = True
    (tmp_path / "old.json").write_text(json.dumps({"schema": READABLE_SCHEMAS[0], **content}))
    assert Result.load(tmp_path / "old.json").config["center_whitening"] is True


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ("{", "r.json"),
        ("[]", READABLE_SCHEMAS[1]),
        (json.dumps({"schema": READABLE_SCHEMAS[1]}), "complete"),
        (json.dumps({"schema": READABLE_SCHEMAS[1], **dataclasses.asdict(result_for(KNN)), "metrics": {"top1@20": float("nan")}}), "NaN"),
        (json.dumps({"schema": READABLE_SCHEMAS[1], **dataclasses.asdict(result_for(KNN)), "data": []}), "wrong type"),
        (json.dumps({"schema": READABLE_SCHEMAS[1], **dataclasses.asdict(result_for(KNN)), "unknown_field": 1}), "unknown_field"),
    ],
)
def test_load_rejects_files_that_are_not_results(tmp_path, content, mentioned):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(DinoevalError, match=mentioned):
        Result.load(path)


def test_load_raises_for_missing_files(tmp_path):
    with pytest.raises(DinoevalError, match=r"absent\.json"):
        Result.load(tmp_path / "absent.json")


def test_save_raises_for_unwritable_targets(tmp_path):
    with pytest.raises(DinoevalError, match="absent"):
        result_for(KNN).save(tmp_path / "absent" / "r.json")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(DinoevalError, match=r"r\.json"):
        result_for(KNN).save(tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(("value", "mentioned"), [(float("nan"), "JSON"), (Path("x"), "JSON")])
def test_value_that_json_cannot_hold_is_an_error(tmp_path, value, mentioned):
    with pytest.raises(DinoevalError, match=mentioned):
        dataclasses.replace(result_for(KNN), details={"x": value}).save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_table_shows_published_scores_and_differences():
    result = dataclasses.replace(result_for(KNN), metrics={"top1@20": 74.0})
    text = format_result(result)
    assert "74.5 (-0.50)" in text
    assert "Table 2" in text


def test_table_shows_reasons_and_related_rows():
    part = next(row for row in rows_for("knn") if row.network == "vit_s16" and row.value == 61.3)
    text = format_result(result_for(part))
    assert part.incomparable in text
    assert "61.3" in text


def test_table_accepts_a_result_without_splits():
    bare = Result(
        protocol="x",
        version=1,
        metrics={"score": 1.0},
        standard_errors={},
        config={},
        backbone={},
        data={},
        transform="t",
        machine={},
        seconds={},
    )
    assert format_result(bare).startswith("x@1 on unnamed data")


def test_align_moves_numbers_to_the_right():
    assert align([{"a": "1", "b": "x"}, {"a": "10", "b": "yy"}]) == ["   a  b ", "   1  x ", "  10  yy"]
