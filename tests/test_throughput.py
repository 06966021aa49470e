"""Throughput: what is counted, and the command as a user types it."""

from __future__ import annotations

import json

import pytest

from dinoeval.cli import main
from dinoeval.errors import ConfigError
from dinoeval.throughput import PUBLISHED, measure, multiply_adds


def test_multiply_adds_are_those_worked_by_hand():
    """vit_xs8_16: 4 patches of 8 x 8, 5 tokens, 96 dims, 4 blocks; in the last only [CLS] asks and passes the MLP."""
    tokens, dim = 5, 96
    embedding = 4 * 3 * 8 * 8 * dim
    block = tokens * (3 + 1 + 4 + 4) * dim**2 + 2 * tokens**2 * dim
    last = tokens * 2 * dim**2 + (1 + 1 + 4 + 4) * dim**2 + 2 * tokens * dim
    assert multiply_adds("vit_xs8_16") == embedding + 3 * block + last


def test_the_count_of_a_known_network_is_the_known_one():
    assert multiply_adds("resnet50") == pytest.approx(4.09e9, rel=0.005)  # torchvision's table


def test_the_command_prints_a_row_a_network_and_writes_them(capsys, tmp_path):
    words = ["speed", "vit_xs8_16", "timm/resnet10t", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json", str(tmp_path / "s.json")])
    assert stop.value.code == 0
    assert "vit_xs8_16" in capsys.readouterr().out
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["arch"] for row in rows] == ["vit_xs8_16", "timm/resnet10t"]
    for row in rows:
        assert row["forward"] > 0
        assert row["from_files"] > 0
        assert row["published"] is None
    assert rows[1]["peak_bytes"] >= 4 * rows[1]["parameters"]  # at least the weights themselves


def test_a_misspelt_network_is_found_before_anything_is_measured():
    with pytest.raises(ConfigError, match="Did you mean vit_s8"):
        measure(["vit_xs8_16", "vit_q8"], images=None, batch=2, rounds=1, device="cpu", precision="fp32", workers=0)


def test_the_published_rates_are_the_papers():
    assert (PUBLISHED["vit_s16"], PUBLISHED["vit_b8"]) == (1007, 63)
