"""`dinoeval PROTOCOL --json` and `dinoeval check`."""

from __future__ import annotations

import json

from dinoeval.testing import TINY_ARCH


def test_knn_writes_a_result_that_check_compares(call, tiny_weights, image_folder, tmp_path):
    one, other, worse = (tmp_path / name for name in ("one.json", "other.json", "worse.json"))
    assert call("knn", "--weights", tiny_weights, "--data", image_folder, "--json", one)[0] == 0
    assert call("knn", "--arch", TINY_ARCH, "--weights", "random", "--data", image_folder, "--json", other)[0] == 0
    content = json.loads(one.read_text())
    assert set(content["metrics"]) == {"top1@10", "top5@10", "top1@20", "top5@20"}
    assert content["backbone"]["digest"] != json.loads(other.read_text())["backbone"]["digest"]
    code, out, _ = call("check", one)
    assert (code, "not comparable" in out, "vit_xs4_16" in out) == (2, True, True)
    assert call("check", one, "--against", one)[0] == 0
    content["samples"]["top1@20"] = [0] * 9
    content["metrics"]["top1@20"] = 0.0
    worse.write_text(json.dumps(content))
    code, out, _ = call("check", one, worse, "--against", one)
    assert (code, "worse" in out) == (1, True)


def test_check_requires_a_result(call):
    code, _, err = call("check")
    assert (code, "--json" in err) == (2, True)
