"""Throughput: counts by hand, and the command as a user types it."""

from __future__ import annotations

import json

import pytest
from factories import synthetic_images

from dinoeval.cli import main
from dinoeval.cli.speed import _table
from dinoeval.data.opening import open_images
from dinoeval.errors import ConfigError, DataError
from dinoeval.paper.rows import printed_values
from dinoeval.testing import tiny_backbone
from dinoeval.throughput import Throughput, ThroughputConfig, _measure_from_files, count_macs, measure


def test_macs_of_vit_equal_hand_count():
    """vit_xs8_16: 4 patches of 8 x 8, 5 tokens, 96 dims, 4 blocks; in the last block only [CLS] is a query and enters the MLP."""
    tokens, dim = 5, 96
    embedding = 4 * 3 * 8 * 8 * dim
    block = tokens * (3 + 1 + 4 + 4) * dim**2 + 2 * tokens**2 * dim
    last = tokens * 2 * dim**2 + (1 + 1 + 4 + 4) * dim**2 + 2 * tokens * dim
    assert count_macs("vit_xs8_16") == embedding + 3 * block + last


def test_macs_of_resnet50_equal_torchvision_table():
    assert count_macs("resnet50") == pytest.approx(4.09e9, rel=0.005)


@pytest.mark.slow
def test_command_prints_and_writes_a_row_per_network(capsys, tmp_path):
    words = ["speed", "vit_xs8_16", "timm/resnet10t", "--batch-size", "2", "--repeats", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json", str(tmp_path / "s.json")])
    assert stop.value.code == 0
    assert "vit_xs8_16" in capsys.readouterr().out
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["arch"] for row in rows] == ["vit_xs8_16", "timm/resnet10t"]
    for row in rows:
        assert row["forward"] > 0
        assert row["from_files"] > 0
        assert row["batch_size"] == 2
    assert rows[1]["peak_bytes"] >= 4 * rows[1]["parameters"]  # At least the weights themselves.


def test_table_shows_printed_values_and_ratios():
    measured = [
        Throughput(
            arch=arch,
            parameters=10**6,
            macs=10**9,
            forward=forward,
            spread=0.1,
            from_files=1.0,
            peak_bytes=10**6,
            batch_size=2,
            device="cpu",
            precision="fp32",
            files="",
        )
        for arch, forward in (("vit_s16", 100.0), ("vit_b16", 25.0), ("vit_xs8_16", 900.0))
    ]
    lines = _table(measured, {"vit_s16": 1007.0, "vit_b16": 312.0}).splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [["1007", "1.00"], ["312", "0.81"], ["-", "-"]]


def test_unknown_architecture_is_reported_before_measuring():
    with pytest.raises(ConfigError, match=r"vit_q8.*vit_s8"):
        measure(["vit_xs8_16", "vit_q8"], ThroughputConfig(batch_size=2, repeats=1, device="cpu", workers=0))


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("repeats", 0), ("workers", -1)])
def test_config_rejects_value_out_of_range(option, value):
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} .*got {value}"):
        ThroughputConfig(**{option: value})


def test_printed_throughput_is_that_of_table_1():
    printed = printed_values("speed", "images_per_second")
    assert (printed["vit_s16"], printed["vit_b8"]) == (1007, 63)


def test_repeated_unreadable_images_are_named_once(tmp_path):
    """Few images are repeated until there are enough to measure."""
    for number, image in enumerate(synthetic_images(3)):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_text("text")
    backbone = tiny_backbone()
    options = {"images": str(tmp_path), "workers": 0, "repeats": 1}
    with pytest.raises(DataError) as raised:
        _measure_from_files(backbone, open_images(tmp_path), ThroughputConfig(**options), str(tmp_path))
    assert (str(raised.value).count("broken.png"), "1 of 4 images" in str(raised.value)) == (1, True)
    assert _measure_from_files(backbone, open_images(tmp_path), ThroughputConfig(**options, bad_images="skip"), str(tmp_path)) > 0
