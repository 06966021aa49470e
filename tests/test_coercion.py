"""Options of any sensible type, and backbones by name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import dinoeval
from dinoeval.coercion import coerce
from dinoeval.session import SessionConfig
from dinoeval.testing import tiny_backbone, tiny_image_folder

WHOLE = [20, [20], (20.0,), ("20",), "20", np.int64(20), np.array([20]), np.array(20), torch.tensor(20), {20}, range(20, 21)]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_of_any_type_are_integers(value):
    (number,) = coerce(value, tuple[int, ...], "k")
    assert (number, type(number)) == (20, int)


@pytest.mark.parametrize("value", [0.07, "0.07", np.float64(0.07), Fraction(7, 100), np.array(0.07)])
def test_numbers_of_any_type_are_floats(value):
    assert coerce(value, float, "temperature") == 0.07


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (2.5, int),
        (True, int),
        (None, int),
        ("many", int),
        (float("inf"), int),
        (b"20", int),
        ([20, "x"], tuple[int, ...]),
        ({"k": 20}, tuple[int, ...]),
        ([1], float),
        ("", float),
        (7, str),
        (["a"], str),
        (1, bool),
        ("yes", bool),
        ("fp8", Literal["fp32", "bf16"]),
        (1.5, int | None),
    ],
)
def test_wrong_types_name_the_option(value, hint):
    with pytest.raises(dinoeval.DinoevalError, match="--batch-size"):
        coerce(value, hint, "batch_size")


def test_unions_paths_and_unknown_types():
    assert coerce("native", int | Literal["native"], "image_size") == "native"
    assert coerce(None, int | None, "workers") is None
    assert coerce(Path("a/b"), str | None, "data") == str(Path("a/b"))
    assert coerce(np.bool_(True), bool, "flip") is True
    assert coerce("cls", tuple[str, ...], "readouts") == ("cls",)
    assert coerce(marker := object(), dict, "other") is marker


@pytest.mark.parametrize("session", [{"workers": 0.0}, SessionConfig(workers=np.int64(0)), None])  # type: ignore[arg-type]
@pytest.mark.parametrize("k", [5, [5.0], np.array([5])])
def test_evaluate_takes_options_of_any_type(session, k, tmp_path):
    data = tiny_image_folder(tmp_path / "data")
    usual = dinoeval.evaluate("knn", tiny_backbone(), data=str(data), k=(5,))
    result = dinoeval.evaluate("knn", tiny_backbone(), session=session, data=data, k=k)
    assert (result.metrics, result.config) == (usual.metrics, usual.config)
    result.save(tmp_path / "result.json")
    assert dinoeval.Result.load(tmp_path / "result.json").metrics == usual.metrics


@pytest.mark.parametrize("options", [{"session": 3}, {"session": {"worker": 1}}, {"session": {"workers": "x"}}, {"k": 2.5}, {"k": None}])
def test_evaluate_rejects_wrong_options_by_name(options):
    name = next(iter(options.get("session", options))) if isinstance(options.get("session", options), dict) else "session"
    with pytest.raises(dinoeval.DinoevalError, match=name):
        dinoeval.evaluate("knn", tiny_backbone(), data="digits", **options)


def test_backbones_are_named_by_file_or_model(tiny_weights, tmp_path):
    data = tiny_image_folder(tmp_path / "data")
    expected = dinoeval.embed(dinoeval.load(weights=tiny_weights), data)
    for source in (tiny_weights, str(tiny_weights), dinoeval.load(tiny_weights)):
        np.testing.assert_array_equal(dinoeval.embed(source, data), expected)
    by_path = dinoeval.evaluate("knn", tiny_weights, data=data, k=3)
    assert by_path.metrics == dinoeval.evaluate("knn", dinoeval.load(str(tiny_weights)), data=data, k=3).metrics
    assert by_path.backbone["weights"] == str(tiny_weights)
    assert dinoeval.evaluate("knn", "vit_digits", data=data, k=3).backbone["network"] == "vit_digits"
    maps = dinoeval.figures.attention(tiny_weights, data / "val" / "class0" / "0.png", image_size=16)
    assert maps.maps.shape == (3, 4, 4)
    assert len(dinoeval.search.build(data / "val", tmp_path / "index", tiny_weights, session={"workers": 0})) == 9


@pytest.mark.parametrize("source", [torch.nn.Linear(2, 2), None, 7, ["vit_s8"]])
def test_other_backbones_are_rejected_kindly(source, tmp_path):
    data = tiny_image_folder(tmp_path / "data")
    for call in (lambda: dinoeval.embed(source, data), lambda: dinoeval.evaluate("knn", source, data=data)):
        with pytest.raises(dinoeval.DinoevalError, match=r"dinoeval\.load"):
            call()
