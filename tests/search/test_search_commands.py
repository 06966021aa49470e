"""`dinoeval search` on the command line."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import TINY, synthetic_images, synthetic_state
from PIL import Image

import dinoeval
from dinoeval import search
from dinoeval.cli import main
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.models.checkpoints import save_backbone


@pytest.fixture
def run(capsys):
    """Run a search command; returns exit code, stdout and stderr."""

    def run_words(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["search", *map(str, words)])
        logging.getLogger("dinoeval").handlers.clear()  # its stream is closed after the setup of a test
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run_words


@pytest.fixture
def fails(run):
    """Run a search command that must print one error paragraph which mentions some words."""

    def check(words: tuple[object, ...], *mentioned: object) -> None:
        code, _, err = run(*words)
        message = next(line for line in err.splitlines() if line.startswith("dinoeval: "))
        assert (code, "Traceback" in err) == (2, False)
        assert err.rstrip().endswith(message)
        for word in mentioned:
            assert str(word) in message

    return check


@pytest.fixture
def index(photos, tiny_weights, tmp_path, run) -> Path:
    """An exact index of the photos."""
    assert run("build", photos, "--out", tmp_path / "index", "--weights", tiny_weights)[0] == 0
    return tmp_path / "index"


def test_rebuild_extracts_only_new_and_changed_images(photos, tiny_weights, tmp_path, run):
    folder = tmp_path / "index"
    build = ("build", photos, "--out", folder)
    assert run(*build, "--weights", tiny_weights, "--readout", "last2")[0] == 0
    before = {path.name for path in folder.iterdir()}
    code, _, err = run(*build)  # weights and readout are those of the index
    assert (code, bool(re.search(r"24 \w+ unchanged; 0 new", err))) == (0, True)
    assert {path.name for path in folder.iterdir()} == before
    synthetic_images(1, seed=77)[0].save(photos / "class0/new.png")
    synthetic_images(1, seed=78)[0].save(photos / "class0/1.png")
    (photos / "class2/5.png").unlink()
    code, out, err = run(*build)
    assert (code, "24 images" in out) == (0, True)
    assert re.search(r"22 \w+ unchanged; 1 new; 1 changed: class0/1.png; 1 deleted: class2/5.png", err)
    entries = [entry for entry in Path(os.environ["DINOEVAL_CACHE"]).iterdir() if entry.is_dir()]
    assert sorted(json.loads((entry / "manifest.json").read_bytes().rpartition(b"\n")[0])["rows"] for entry in entries) == [2, 24]
    opened = search.open(folder)
    assert len(list(folder.iterdir())) == len(before)
    features = l2_normalize(dinoeval.embed(dinoeval.load(weights=tiny_weights), opened.paths, readout="last2"))
    np.testing.assert_allclose(opened.vectors(), features, atol=2e-6)


def test_build_prints_the_recall_of_an_approximate_index(photos, tiny_weights, tmp_path, run):
    code, out, _ = run("build", photos, "--out", tmp_path / "index", "--weights", tiny_weights, "--index", "hnsw")
    assert (code, "hnsw (" in out, "recall@10 1.000" in out) == (0, True, True)


def test_duplicates_prints_and_writes_groups(photos, tmp_path, tiny_weights, run):
    Image.open(photos / "class0/2.png").save(photos / "class2/again.bmp")
    run("build", photos, "--out", tmp_path / "index", "--weights", tiny_weights)
    outputs = ("--json", tmp_path / "d.json", "--sheet", tmp_path / "d.html")
    code, out, err = run("duplicates", tmp_path / "index", *outputs, "--threshold", "0.99999")
    assert code == 0, err
    assert re.search(r"1 groups, 2 of 25 images.* 0\.99999", out)
    assert str(tmp_path / "d.json") in out
    assert str(tmp_path / "d.html") in out
    content = json.loads((tmp_path / "d.json").read_text())
    assert (content["threshold"], content["measured"]) == (0.99999, None)
    assert (content["deleted"], content["changed"], content["links"]) == ([], [], [])
    (group,) = content["groups"]
    assert (group["is_chain"], group["lowest_cosine"]) == (False, pytest.approx(1, abs=1e-6))
    original, copy = group["images"]
    assert [original["path"], copy["path"]] == [str(photos / "class0/2.png"), str(photos / "class2/again.bmp")]
    width, height = Image.open(photos / "class0/2.png").size
    sizes = [(photos / name).stat().st_size for name in ("class0/2.png", "class2/again.bmp")]
    assert [(one["width"], one["height"], one["size"]) for one in group["images"]] == [(width, height, size) for size in sizes]
    page = (tmp_path / "d.html").read_text()
    for shown in (out, page):
        assert all(f"{size:,} bytes" in shown for size in sizes)
        assert f"{width} x {height} pixels" in shown
        assert copy["modified"] in shown


def test_duplicates_of_byte_equal_files_and_chains_say_so(photos, tmp_path, tiny_weights, run):
    shutil.copy(photos / "class0/2.png", photos / "class2/again.png")
    run("build", photos, "--out", tmp_path / "index", "--weights", tiny_weights)
    code, out, _ = run("duplicates", tmp_path / "index", "--json", tmp_path / "d.json", "--threshold", "0.99999")
    assert code == 0
    (group,) = json.loads((tmp_path / "d.json").read_text())["groups"]
    assert [one["identical_to"] for one in group["images"]] == [None, str(photos / "class0/2.png")]
    assert f"same bytes as {photos / 'class0/2.png'}" in out
    cosines = search.open(tmp_path / "index").vectors()
    cosines = cosines @ cosines.T
    nearest = np.sort((cosines - 9 * np.eye(len(cosines))).max(1))[0]  # every image has another one that near
    _, out, _ = run("duplicates", tmp_path / "index", "--json", tmp_path / "d.json", "--threshold", nearest)
    groups = json.loads((tmp_path / "d.json").read_text())["groups"]
    for group in groups:
        rows = [search.open(tmp_path / "index").paths.index(one["path"]) for one in group["images"]]
        assert group["lowest_cosine"] == pytest.approx(cosines[np.ix_(rows, rows)].min(), abs=1e-5)
        assert group["is_chain"] == (group["lowest_cosine"] < nearest - 1e-6)
    assert sum(group["is_chain"] for group in groups) == out.count("a chain") > 0


def test_duplicates_calibrates_the_threshold_by_default(photos, index, tmp_path, run, fails):
    code, out, _ = run("duplicates", index, "--json", tmp_path / "d.json")
    assert (code, "copies of 12 images" in out) == (0, True)
    content = json.loads((tmp_path / "d.json").read_text())
    measured = content["measured"]
    assert content["threshold"] == measured["cosine"]
    assert [(one["copies"], one["recall"] * 12) for one in measured["recalls"]] == [(12, one["found"]) for one in measured["recalls"]]
    assert all(f"{one['found']:>3} of 12" in out and one["kind"] in out for one in measured["recalls"])
    shutil.rmtree(photos)
    fails(("duplicates", index), "24", photos / "class0/0.png", "search build")
    fails(("duplicates", index, "--threshold", "0.99999"), "24", photos / "class0/0.png", "search build")


def test_query_prints_and_writes_neighbors(photos, index, tmp_path, run):
    outputs = ("--json", tmp_path / "q.json", "--sheet", tmp_path / "q.html")
    queries = (photos / "class0/1.png", photos / "class1/2.png")
    code, out, err = run("query", index, *queries, "--k", 3, *outputs)
    assert code == 0, err
    content = json.loads((tmp_path / "q.json").read_text())
    assert (content["k"], content["kind"], content["images"]) == (3, "exact", 24)
    assert [query["path"] for query in content["queries"]] == [str(path) for path in queries]
    first = content["queries"][0]["neighbors"]
    assert [one["rank"] for one in first] == [1, 2, 3]
    assert str(queries[0]) not in {one["path"] for one in first}
    assert all(f"{one['cosine']:.5f}  {one['path']}" in out for one in first)
    assert (tmp_path / "q.html").read_text().count("<li>") == 2 * 4


def test_query_warns_if_k_exceeds_the_index(photos, index, run):
    code, _, err = run("query", index, photos / "class0/1.png", "--k", 50)
    assert (code, bool(re.search(r"50 .*\b23\b", err))) == (0, True)


def test_options_that_do_not_match_an_index_are_refused(photos, index, tiny_weights, tmp_path, fails):
    save_backbone(tmp_path / "other.safetensors", synthetic_state(TINY, seed=1), arch=TINY)
    digests = [dinoeval.load(weights=path).digest for path in (tiny_weights, tmp_path / "other.safetensors")]
    for command in (("query", index, photos / "class0/1.png"), ("build", photos, "--out", index)):
        fails((*command, "--weights", tmp_path / "other.safetensors"), *digests)
        fails((*command, "--readout", "gem"), "--readout gem", "cls")
        fails((*command, "--precision", "bf16"), "--precision", "fp32", "bf16")
        fails((*command, "--transform", "dino:32/16"), "--transform", "dino@1:16/16", "dino@1:32/16")
    fails(("build", photos.parent / "val", "--out", index), photos, photos.parent / "val", "--out")


def test_invalid_query_arguments_are_refused(photos, index, tmp_path, fails):
    image = photos / "class0/1.png"
    fails(("query", index, image, "--k", 0), "--k", "got 0")
    fails(("query", index), "IMAGE")
    fails(("query", index, tmp_path / "none.png"), "none.png")
    fails(("query", tmp_path / "nowhere", image), tmp_path / "nowhere", "search build")
    fails(("query", photos.parent, image), photos.parent, "train, val")
    fails(("query", index, image, "--sheet", tmp_path / "s.pdf"), "--sheet", ".html", ".png", "s.pdf")
    fails(("query", index, image, "--json", tmp_path / "no/r.json"), tmp_path / "no/r.json")
    fails(("duplicates", index, "--threshold", 2), "--threshold", "-1", "got 2")


def test_invalid_build_arguments_are_refused(photos, tiny_weights, tmp_path, fails):
    folder = tmp_path / "index"
    (tmp_path / "empty").mkdir()
    shutil.copytree(photos, tmp_path / "one", ignore=shutil.ignore_patterns("class[12]", "[1-9].png"))
    build = ("--out", folder, "--weights", tiny_weights)
    fails(("build", tmp_path / "empty", *build), tmp_path / "empty", ".png")
    fails(("build", tmp_path / "one", *build), "class0/0.png", "at least 2")
    fails(("build", tmp_path / "nowhere", *build), tmp_path / "nowhere")
    fails(("build", photos, "--out", tiny_weights, "--weights", tiny_weights), tiny_weights, "file")
    fails(("build", photos, "--out", "/proc/index", "--weights", tiny_weights), "/proc/index")
    fails(("build", photos, *build, "--readout", "patches"), "--readout patches", "cls")
    fails(("build", photos, *build, "--index", "pq"), "256", "24", "--index exact")
    assert not folder.exists()


def test_missing_weights_of_an_index_are_named(photos, tiny_weights, tmp_path, run, fails):
    weights = Path(shutil.copy(tiny_weights, tmp_path / "mine.safetensors"))
    run("build", photos, "--out", tmp_path / "index", "--weights", weights)
    moved = weights.rename(tmp_path / "moved.safetensors")
    query = ("query", tmp_path / "index", photos / "class0/1.png")
    fails(query, weights, tmp_path / "index", "--weights")
    assert run(*query, "--weights", moved)[0] == 0
