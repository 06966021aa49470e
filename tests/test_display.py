"""Texts of objects in notebooks: short, with sizes instead of contents."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from factories import synthetic_images

import dinoeval
from dinoeval.data.images import in_memory
from dinoeval.display import short_repr, shorten
from dinoeval.features.readout import parse_readout
from dinoeval.results import Result
from dinoeval.search.query import Matches
from dinoeval.session import Session, SessionConfig


@dataclasses.dataclass
class Holder:
    value: object

    __repr__ = short_repr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 3), np.uint8), "<uint8 (2, 3)>"),
        (torch.zeros(4), "<float32 (4,)>"),
        (1 / 3, "0.333333"),
        ((1, "a"), "(1, 'a')"),
        (("a",), "('a',)"),
        (["a"] * 4, "<4 items>"),
        ({"a": np.zeros(2)}, "{'a': <float64 (2,)>}"),
        (dict.fromkeys(range(1500)), "<1,500 items>"),
        (len, "<builtin_function_or_method>"),
        (None, "None"),
        (Holder(np.zeros(1)), "Holder(value=<float64 (1,)>)"),
    ],
)
def test_short_repr_writes_sizes_of_arrays_and_long_containers(value, text):
    assert repr(Holder(value)) == f"Holder(value={text})"
    assert len(repr(Holder("x" * 10_000))) < 120


def test_shorten_keeps_beginning_and_end():
    assert [shorten("abcdefgh", limit) for limit in (8, 7, 6)] == ["abcdefgh", "abc…fgh", "abc…gh"]


@pytest.fixture
def result() -> Result:
    return Result(
        metrics={f"top1@{k}": 95.324 + k for k in range(8)},
        standard_errors={"top1@0": 1.0},
        samples={"path": ["a"] * 50_000},
        protocol="knn",
        version=1,
        config={},
        backbone={"arch": "vit_s8", "weights": "<b>mine</b>", "precision": "fp32"},
        data={"name": "cifar10"},
        transform="dino@1:256/224",
        machine={},
        seconds={},
        notes=["a < b"],
    )


def test_result_text_has_scores_and_no_samples(result):
    assert repr(result).startswith("Result(knn@1 on cifar10, vit_s8, weights <b>mine</b>, dino@1:256/224, fp32: top1@0 95.32 ± 1.00, ")
    assert "and 2 more" in repr(result)
    assert len(repr(result)) < 400
    assert str(result) == repr(result)


def test_result_is_a_table_in_notebooks(result):
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + 8
    assert "<td>95.32 ± 1.00</td>" in html
    assert "&lt;b&gt;mine&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "<li>a &lt; b</li>" in html


def test_matches_name_the_nearest_images():
    matches = Matches("q.jpg", [f"{number}.jpg" for number in range(7)], np.arange(7), np.linspace(1, 0.4, 7, dtype=np.float32))
    assert repr(matches).startswith("Matches('q.jpg': 0.jpg 1.0000, 1.jpg 0.9000, ")
    assert repr(matches).endswith("and 2 more)")


def test_features_and_tokens_have_short_texts(tiny_weights, tmp_path):
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    session = Session(SessionConfig(cache=str(tmp_path)), backbone)
    features = session.features(in_memory(synthetic_images(6, (16, 16))), parse_readout("cls"))
    for shown in (backbone, features, features.entry, features.images, backbone(torch.zeros(1, 3, 16, 16)), session):
        assert repr(shown).startswith((type(shown).__name__, "<dinoeval"))
        assert len(repr(shown)) < 500
        assert "\n" not in repr(shown)
