"""Which printed numbers a Result is compared with: every row, and every requirement of every row."""

from __future__ import annotations

import dataclasses

import pytest
from paper_results import result_for

from dinoeval.models import zoo
from dinoeval.models.zoo import ZOO, identify
from dinoeval.paper.comparable import LABELS, comparable, network_of
from dinoeval.paper.rows import PaperRow, Requirement, builtin_rows, rows_for

ROWS = [row for row in builtin_rows() if row.protocol != "speed"]
IDS = [f"{row.protocol}-{row.source}-{row.network}-{row.metric}-{row.value}" for row in ROWS]


def value_of(rows: tuple[PaperRow, ...], metric: str) -> set[float]:
    return {row.value for row in rows if row.metric == metric}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_row_accepts_a_result_that_meets_its_requirements(row):
    found = comparable(result_for(row))
    if row.incomparable:
        assert row.value in value_of(found.related, row.metric)
        assert any(row.incomparable in reason for reason in found.reasons) or found.rows
    else:
        assert row.value in value_of(found.rows, row.metric)
        assert found.reasons == ()


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_row_rejects_every_unmet_requirement_by_name(row):
    for one in row.requires:
        wrong = one.maximum * 2 if one.maximum is not None else "something else"
        found = comparable(result_for(row, {one.field: wrong}), [row])
        assert found.rows == found.related == ()
        if not row.incomparable:
            assert any(reason.startswith((one.field, LABELS.get(one.field, one.field))) for reason in found.reasons)


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"backbone.precision": "bf16"}, "bf16"),
        ({"backbone.key": "student"}, "student"),
        ({"data.val.bad_images": ["a.jpg"]}, "cannot be read"),
        ({"metrics": {"top1@10": 74.5}}, "top1@20"),
        ({"transform": "dino@1:248/224"}, "dino@1:248/224"),
        ({"data.train.images": 1_281_166}, "1,281,166"),
        ({"config.temperature": 0.1}, "0.1"),
    ],
)
def test_knn_reason_names_the_difference(changes, mentioned):
    row = next(row for row in rows_for("knn") if row.network == "vit_s16")
    found = comparable(result_for(row, changes))
    assert found.rows == ()
    assert any(mentioned in reason for reason in found.reasons)


def test_all_reasons_are_returned_not_only_the_first():
    row = next(row for row in rows_for("knn") if row.network == "vit_s16")
    changes = {"backbone.precision": "fp16", "transform": "own", "config.temperature": 1.0, "data.val.images": 5}
    assert len(comparable(result_for(row, changes)).reasons) == 4


@pytest.mark.parametrize("protocol", ["knn", "linear", "logistic", "finetune", "retrieval", "copydays", "davis", "segment"])
def test_unknown_weights_get_the_same_answer_from_every_protocol(protocol):
    row = next(row for row in rows_for(protocol) if row.network == "vit_s16") if protocol != "copydays" else rows_for(protocol)[1]
    unknown = {"backbone.network": None, "backbone.weights": "mine.pth"}
    found = comparable(result_for(row, unknown))
    assert found.rows == ()
    (reason,) = found.reasons
    assert "mine.pth" in reason
    assert row.network in reason


def test_network_is_identified_by_the_digest_of_its_tensors(monkeypatch):
    digest = "d" * 64
    monkeypatch.setitem(ZOO, "vit_s16", dataclasses.replace(ZOO["vit_s16"], tensor_digest=digest))
    assert identify("/data/mine.pth", digest) == "vit_s16"
    assert identify("/data/mine.pth", "e" * 64) is None
    row = next(row for row in rows_for("knn") if row.network == "vit_s16")
    network = identify("/data/mine.pth", digest)
    assert row.value in value_of(
        comparable(result_for(row, {"backbone.network": network, "backbone.weights": "mine.pth"})).rows, row.metric
    )


def test_network_is_identified_by_verified_names_only():
    assert identify("vit_s16", "0") == "vit_s16"
    assert identify("vit_s16_full", "0") == "vit_s16"
    assert identify("timm/deit_small_patch16_224.fb_in1k", "0") == "timm/deit_small_patch16_224"
    assert identify(ZOO["vit_s16"].filename, "0") is None
    assert identify("random", "0") is None
    assert identify("vit_s16_vanilla_100ep", "0") == "vit_s16_vanilla_100ep"
    assert zoo.ZOO["vit_digits"].tensor_digest


def test_random_weights_are_related_to_random_rows_only():
    row = next(row for row in rows_for("segment") if row.network == "random/vit_s16")
    found = comparable(result_for(row))
    assert found.rows == ()
    assert [(one.source, one.value) for one in found.related] == [("Figure 4", 22.0)]
    knn = next(row for row in rows_for("knn") if row.network == "vit_s16")
    reasons = comparable(result_for(knn, {"backbone.random": True, "backbone.network": None})).reasons
    assert any("random" in reason for reason in reasons)


def test_earlier_results_are_identified_by_model_names():
    row = next(row for row in rows_for("knn") if row.network == "vit_s8")
    result = result_for(row)
    for weights, expected in (("vit_s8", True), ("vit_s8_full", True), ("vit_s8.pth", False)):
        backbone = {**result.backbone, "weights": weights}
        del backbone["network"]
        assert bool(comparable(dataclasses.replace(result, backbone=backbone)).rows) is expected


def test_earlier_results_are_identified_by_names_of_timm():
    row = next(row for row in builtin_rows() if row.protocol == "finetune" and row.network == "timm/deit_small_patch16_224")
    result = result_for(row)
    for weights, expected in ((f"{row.network}.fb_in1k", row.network), (row.network, row.network), ("timm/other.fb_in1k", None)):
        old = dataclasses.replace(result, backbone={"weights": weights, "arch": weights})
        assert network_of(old, [row]) == expected


def test_equal_values_of_several_sources_are_one_row():
    row = next(row for row in rows_for("knn") if row.network == "vit_s16")
    (found,) = comparable(result_for(row)).rows
    assert found.source == "Table 2 and README and Table 10"


def test_disagreeing_sources_are_both_returned():
    row = next(row for row in rows_for("copydays") if row.network == "vit_b8")
    assert [(one.source, one.value) for one in comparable(result_for(row)).rows] == [("Table 4", 85.5), ("README", 85.8)]


@pytest.mark.parametrize(("train", "val", "remark"), [(265_240, 3_003, False), (265_213, 3_030, True)])
def test_inaturalist_2019_accepts_both_counts_and_reports_which(train, val, remark):
    row = next(row for row in rows_for("finetune") if row.network == "vit_s16" and row.value == 78.2)
    (found,) = comparable(result_for(row, {"data.train.images": train, "data.val.images": val})).rows
    assert any("265,213" in text for text in found.remarks) is remark


def test_protocol_without_rows_is_a_reason():
    row = PaperRow(source="x", protocol="texture", network="vit_s16", metric="top1", value=1.0, decimals=1)
    assert "texture" in comparable(result_for(row)).reasons[0]
    (found,) = comparable(result_for(row), [row]).rows
    assert found == row


def test_option_that_an_earlier_version_did_not_have_counts_as_not_set():
    row = next(row for row in rows_for("knn") if row.network == "vit_s16")
    result = result_for(row)
    config = {name: value for name, value in result.config.items() if name != "train_subset"}
    assert row.value in value_of(comparable(dataclasses.replace(result, config=config)).rows, row.metric)


@pytest.mark.parametrize(
    ("protocol", "source", "changes", "others"),
    [
        ("linear", "Table 2", {"config.epochs": 10, "config.features": "cached", "config.held_out": 0.1}, "config.head"),
        ("retrieval", "Table 3", {"config.image_size": 64, "config.multiscale": False, "config.query_crop": True}, "config.dataset"),
    ],
)
def test_reasons_are_those_of_the_experiment_that_was_run(protocol, source, changes, others):
    """Rows of another dataset or of a released head may have fewer unmet requirements."""
    rows = [row for row in rows_for(protocol) if row.network == "vit_s16" and row.source == source]
    found = comparable(result_for(rows[-1], changes))
    assert {reason.partition(":")[0] for reason in found.reasons if reason.startswith("config")} == set(changes)
    assert not any(reason.startswith(others) for reason in found.reasons)


def test_released_head_is_compared_on_its_own_readout_only():
    row = next(row for row in rows_for("linear") if row.network == "vit_b16" and row.metric == "top1")
    assert comparable(result_for(row)).rows
    assert any("config.readouts" in reason for reason in comparable(result_for(row, {"config.readouts": ("last2",)})).reasons)


def test_masks_made_elsewhere_are_not_called_weights():
    row = next(row for row in rows_for("davis") if row.network == "vit_s16")
    backbone = {"arch": "none", "weights": "masks in mine", "random": False, "key": None, "precision": "none"}
    found = comparable(dataclasses.replace(result_for(row, {"config.masks": True}), backbone=backbone))
    assert found.reasons[0] == "no network was run, masks in mine were scored"
    assert not any("published" in reason for reason in found.reasons)
    assert any(reason.startswith("config.masks") for reason in found.reasons)


def test_rows_may_hold_lists_and_single_values():
    row = PaperRow(
        source="x",
        protocol="texture",
        network="vit_s16",
        metric="top1",
        value=1.0,
        decimals=1,
        requires=[Requirement("config.k", [20, 10]), Requirement("data.name", "digits"), Requirement("config.sizes", ([1, 2],))],
    )
    result = result_for(row, {"config.sizes": [1, 2]})
    assert comparable(result, [row]).rows == (row,)


def test_requirement_distinguishes_booleans_from_numbers():
    assert not Requirement("x", (False,)).accepts(0)
    assert not Requirement("x", (0,)).accepts(False)
    assert Requirement("x", (0.0,)).accepts(0)
    assert Requirement("x", maximum=1e-3).accepts(1e-3)
    assert not Requirement("x", maximum=1e-3).accepts(1.001e-3)
    assert not Requirement("x", maximum=1.0).accepts(None)
