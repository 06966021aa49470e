"""Which published number goes with a run, and how runs on several subsets are put together."""

from __future__ import annotations

import math

import pytest
from factories import TINY

from dinoeval.protocols import knn
from dinoeval.protocols._classification import IMAGENET, average_runs, published_rows


def why_not(name: str, arch: str, *, train=1_281_167, transform="dino@1:256/224", precision="fp32", key=None, reasons=()) -> str | None:
    source = type("Provenance", (), {"name": name, "random": name == "random", "key": key})
    network = type("Backbone", (), {"provenance": source, "arch": arch, "precision": precision})
    session = type("Session", (), {"backbone": network, "transform": type("Transform", (), {"id": transform})})
    references, reason = published_rows(knn.PAPER, session, {**IMAGENET, "train": train}, reasons)
    return reason or f"{references[0].metric} {references[0].value}"


def test_a_published_number_stands_only_beside_what_it_was_measured_on():
    assert why_not("vit_s8", "vit_s8") == "top1@20 78.3"
    assert why_not("/mine/vits16.pth", "vit_s16", key="teacher") == "top1@20 74.5"
    assert why_not("vit_s16_vanilla_100ep", "vit_s16") == "top1@20 69.3"
    assert why_not("vit_s8_300ep", "vit_s8") == "no score of this protocol is published for vit_s8_300ep"
    assert "no score of this protocol" in why_not("/mine/x.pth", TINY)
    assert "random" in why_not("random", "vit_s16")
    assert "ImageNet-1k" in why_not("vit_s8", "vit_s8", train=1_281_166)
    assert "the transform is dino@1:248/224" in why_not("vit_s8", "vit_s8", transform="dino@1:248/224")
    assert "precision" in why_not("vit_s8", "vit_s8", precision="bf16")
    assert "student" in why_not("/mine/x.pth", "vit_s16", key="student")
    assert why_not("vit_s8", "vit_s8", reasons=[(False, "never"), (True, "an option differs")]) == "an option differs"


def test_runs_on_several_subsets_are_averaged_with_both_kinds_of_error():
    means, errors, deviations = average_runs([{"top1": 60.0}, {"top1": 64.0}], 100)
    assert (means["top1"], deviations["top1"]) == (62.0, pytest.approx(math.sqrt(8)))
    assert errors["top1"] == pytest.approx(math.sqrt(0.62 * 0.38 / 100 * 100**2 + 8 / 2))


def test_one_run_has_the_error_of_a_proportion_and_no_deviation():
    assert average_runs([{"top1": 50.0}], 100) == ({"top1": 50.0}, {"top1": 5.0}, {})
