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


def saved(path: Path, *field: str, value: object = None) -> Path:
    """Write a Result in which one field has another value."""
    content = {"schema": READABLE_SCHEMAS[1], **dataclasses.asdict(result_for(KNN)), "samples": {"path": ["a", "b"], "top1@20": [0, 1]}}
    part = content
    for name in field[:-1]:
        part = part[name]
    part[field[-1]] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [("{", "r.json"), ("[]", "array"), ("{}", READABLE_SCHEMAS[1]), (json.dumps({"schema": READABLE_SCHEMAS[1]}), "metrics")],
)
def test_load_rejects_files_that_are_not_results(tmp_path, content, mentioned):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(DinoevalError, match=mentioned):
        Result.load(path)


@pytest.mark.parametrize(
    ("field", "value", "mentioned"),
    [
        ("metrics.top1@20", float("nan"), "NaN"),
        ("metrics.top1@20", None, r"null.* metrics"),
        ("metrics.top1@20", 10**400, r"64 bits.* metrics\.top1@20"),
        ("metrics", [], "array.* metrics"),
        ("standard_errors.top1@20", -1.0, r"standard_errors\.top1@20"),
        ("data", [], "array.* data"),
        ("data.val.images", "12", r"data\.val.*images"),
        ("data.val.bad_images", 3, r"data\.val.*bad_images"),
        ("backbone.network", ["vit_s16"], r"backbone.*network"),
        ("samples.top1@20", [1], r"path 2, top1@20 1"),
        ("samples.top1@20", ["abc", 1], r"top1@20\[0\]"),
        ("samples.top1@20", True, "bool.* samples"),
        ("unknown_field", 1, "unknown_field"),
    ],
)
def test_load_names_the_corrupted_field(tmp_path, field, value, mentioned):
    with pytest.raises(DinoevalError, match=rf"r\.json.*{mentioned}"):
        Result.load(saved(tmp_path / "r.json", *field.split("."), value=value))


def test_load_accepts_outcomes_that_the_metric_leaves_out(tmp_path):
    assert Result.load(saved(tmp_path / "r.json", "samples", "top1@20", value=[None, 0.5])).samples["top1@20"] == [None, 0.5]


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


def test_table_never_moves_the_cursor(tmp_path):
    result = Result.load(saved(tmp_path / "r.json", "data", "name", value="a\x1b[2J\r\nb"))
    assert format_result(result).splitlines()[0].startswith(r"knn@1 on a\x1b[2J\r\nb")


def test_align_moves_numbers_to_the_right():
    assert align([{"a": "1", "b": "x"}, {"a": "10", "b": "yy"}]) == ["   a  b ", "   1  x ", "  10  yy"]
