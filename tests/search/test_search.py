"""The index of a folder as a user meets it: built, asked, brought up to date, damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import TINY, class_folders, synthetic_images, synthetic_state
from PIL import Image

import dinoeval
from dinoeval import search
from dinoeval.cli import main
from dinoeval.errors import DinoevalError
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.models.checkpoints import save_backbone
from dinoeval.session import SessionConfig


@pytest.fixture
def photos(tmp_path) -> Path:
    return class_folders(tmp_path / "photos") / "train"


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def one_paragraph(done: tuple[int, str, str], *said: str) -> None:
    code, _, err = done
    message = next(line for line in err.splitlines() if line.startswith("dinoeval: "))
    assert (code, "Traceback" in err) == (2, False)
    assert err.rstrip().endswith(message)
    for words in said:
        assert words in message


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_answers_are_those_of_the_features(photos, backbone, tmp_path, kind):
    library = search.build(photos, tmp_path / "index", backbone, index=kind)
    assert (len(library), library.manifest["kind"], kind == "exact") == (24, kind, library.manifest["recall"] is None)
    rows = l2_normalize(dinoeval.embed(backbone, photos))
    np.testing.assert_array_equal(library.rows(), rows)
    cosines = rows @ rows.T
    for number, matches in enumerate(search.open(tmp_path / "index").query(library.paths, k=23)):
        expected = [row for row in np.argsort(-cosines[number], kind="stable") if row != number]
        np.testing.assert_allclose(matches.cosines, cosines[number][expected], atol=1e-6)
        assert set(matches.paths) == {library.paths[row] for row in expected}


def test_a_query_is_left_out_by_its_file_and_its_copies_stay(photos, backbone, tmp_path, monkeypatch):
    original = photos / "class0/3.png"
    shutil.copy(original, photos / "class1/copy.png")
    (photos / "class2/link.png").symlink_to(original)
    library = search.build(photos, tmp_path / "index", backbone)
    monkeypatch.chdir(photos / "class0")
    for way in ("3.png", original, photos / "class2/link.png"):
        (matches,) = library.query(way, k=30)
        assert len(matches.paths) == 24  # 26 less itself and the link to it
        assert matches.paths[0] == str(photos / "class1/copy.png")
        assert matches.cosines[0] == pytest.approx(1, abs=1e-5)
    (matches,) = library.query(Image.open(original), k=3)  # a picture without a file is nobody's
    assert set(matches.paths) == {str(photos / name) for name in ("class0/3.png", "class1/copy.png", "class2/link.png")}


def test_building_again_makes_only_what_is_new(photos, tiny_weights, tmp_path, capsys):
    index, weights = tmp_path / "index", ("--weights", tiny_weights)
    build = ("search", "build", photos, "--out", index)
    assert call(capsys, *build, *weights, "--readout", "last2")[0] == 0
    before = {path.name for path in index.iterdir()}
    code, _, err = call(capsys, *build)  # weights and readout are the index's
    assert (code, "24 images as they were; 0 new" in err) == (0, True)
    assert {path.name for path in index.iterdir()} == before
    synthetic_images(1, seed=77)[0].save(photos / "class0/new.png")
    synthetic_images(1, seed=78)[0].save(photos / "class0/1.png")
    (photos / "class2/5.png").unlink()
    cache = Path(os.environ["DINOEVAL_CACHE"])
    code, out, err = call(capsys, *build)
    assert (code, "24 images of" in out) == (0, True)
    assert "22 images as they were; 1 new; 1 changed: class0/1.png; 1 gone: class2/5.png" in err
    counts = sorted(
        json.loads((entry / "manifest.json").read_bytes().rpartition(b"\n")[0])["rows"] for entry in cache.iterdir() if entry.is_dir()
    )
    assert counts == [2, 24]
    library = search.open(index)
    assert len(list(index.iterdir())) == len(before)
    rows = l2_normalize(dinoeval.embed(dinoeval.load(weights=tiny_weights), library.paths, readout="last2"))
    np.testing.assert_allclose(library.rows(), rows, atol=2e-6)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_grows(photos, backbone, tmp_path, kind):
    index = tmp_path / "index"
    search.build(photos, index, backbone, index=kind)
    shutil.copy(photos / "class0/0.png", photos / "class0/zz.png")
    library = search.build(photos, index, backbone)
    assert (len(library), library.manifest["parameters"]["trained_on"]) == (25, 24)
    assert library.query(photos / "class0/0.png", k=1)[0].paths == [str(photos / "class0/zz.png")]
    for number, picture in enumerate(synthetic_images(40, seed=9)):
        picture.save(photos / f"class1/more{number}.png")
    assert search.build(photos, index, backbone).manifest["parameters"]["trained_on"] == 65
    assert search.build(photos, index, backbone, index="exact").manifest["parameters"] == {}
    assert sorted(path.name.partition(".")[2] for path in index.iterdir()) == ["images.json", "json", "lock", "rows.faiss"]


def test_bad_images_are_skipped_once(photos, backbone, tmp_path, caplog):
    skip = SessionConfig(bad_images="skip")
    (photos / "class1/text.png").write_text("text")
    with pytest.raises(DinoevalError, match="--bad-images skip"):
        search.build(photos, tmp_path / "index", backbone)
    assert not (tmp_path / "index").exists()
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24
    assert len(search.build(photos, tmp_path / "index", backbone)) == 24  # it has not changed since
    (photos / "class1/more.png").write_text("more text")
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24
    synthetic_images(1, seed=5)[0].save(photos / "class1/text.png")
    assert len(search.build(photos, tmp_path / "index", backbone)) == 25


def test_duplicates_on_the_command_line(photos, tiny_weights, tmp_path, capsys):
    Image.open(photos / "class0/2.png").save(photos / "class2/again.bmp")
    call(capsys, "search", "build", photos, "--out", tmp_path / "index", "--weights", tiny_weights)
    outputs = ("--json", tmp_path / "d.json", "--sheet", tmp_path / "d.png")
    code, out, err = call(capsys, "search", "duplicates", tmp_path / "index", *outputs, "--threshold", "0.99999")
    assert code == 0, err
    assert "1 groups, 2 of 25 images, at a cosine of 0.99999 or more" in out
    content = json.loads((tmp_path / "d.json").read_text())
    assert [one["path"] for one in content["groups"][0]["images"]] == [str(photos / "class0/2.png"), str(photos / "class2/again.bmp")]
    assert Image.open(tmp_path / "d.png").width > 300
    code, out, _ = call(capsys, "search", "duplicates", tmp_path / "index")
    assert (code, "measured on copies of 8 of the images" in out) == (0, True)
    shutil.rmtree(photos)
    one_paragraph(call(capsys, "search", "duplicates", tmp_path / "index"), "no threshold can be measured", "name a threshold")
    assert call(capsys, "search", "duplicates", tmp_path / "index", "--threshold", "0.99999")[0] == 0


def test_query_on_the_command_line(photos, tiny_weights, tmp_path, capsys):
    call(capsys, "search", "build", photos, "--out", tmp_path / "index", "--weights", tiny_weights)
    outputs = ("--json", tmp_path / "q.json", "--sheet", tmp_path / "q.html")
    asked = (photos / "class0/1.png", photos / "class1/2.png")
    code, out, err = call(capsys, "search", "query", tmp_path / "index", *asked, "--k", 3, *outputs)
    assert code == 0, err
    content = json.loads((tmp_path / "q.json").read_text())
    assert [query["path"] for query in content["queries"]] == [str(path) for path in asked]
    first = content["queries"][0]["neighbours"]
    assert [one["rank"] for one in first] == [1, 2, 3]
    assert str(asked[0]) not in {one["path"] for one in first}
    assert all(f"{one['cosine']:.5f}  {one['path']}" in out for one in first)
    assert (tmp_path / "q.html").read_text().count("<li>") == 2 * 4
    code, _, err = call(capsys, "search", "query", tmp_path / "index", asked[0], "--k", 50)
    assert (code, "there are 23 other images in the index: all of them are listed" in err) == (0, True)


def test_few_pictures_that_are_asked_about_leave_nothing_in_the_cache(photos, backbone, tmp_path):
    library = search.build(photos, tmp_path / "index", backbone, session=SessionConfig(bad_images="skip"))
    cache = Path(os.environ["DINOEVAL_CACHE"])
    before = sorted(cache.iterdir())
    for number, picture in enumerate(synthetic_images(33, seed=3)):
        picture.save(tmp_path / f"asked{number:02}.png")
    asked = sorted(tmp_path.glob("asked*.png"))
    (tmp_path / "text.png").write_text("text")
    found = library.query([asked[0], tmp_path / "text.png", asked[1]], k=24)
    assert [matches.query for matches in found] == [str(path) for path in asked[:2]]
    assert sorted(cache.iterdir()) == before
    with pytest.raises(DinoevalError, match=r"1 of 1 images .*text\.png"):
        search.open(tmp_path / "index").query(tmp_path / "text.png")
    rows = dinoeval.embed(backbone, asked[:2])  # by the cache
    for matches, features in zip(found, rows, strict=True):
        np.testing.assert_array_equal(matches.cosines, library.nearest(features[None], 24)[0][0])
    before = sorted(cache.iterdir())
    library.query(asked)  # many: the next time they need no forward pass
    assert len(list(cache.iterdir())) > len(before)


def test_what_does_not_fit_an_index_is_refused(photos, tiny_weights, tmp_path, capsys):
    index, weights = tmp_path / "index", ("--weights", tiny_weights)
    call(capsys, "search", "build", photos, "--out", index, *weights)
    save_backbone(tmp_path / "other.safetensors", synthetic_state(TINY, seed=1), arch=TINY)
    digests = [dinoeval.load(weights=path).digest for path in (tiny_weights, tmp_path / "other.safetensors")]
    picture = next(photos.rglob("*.png"))
    query, build = ("search", "query", index, picture), ("search", "build", photos, "--out", index)
    for command in (query, build):
        one_paragraph(call(capsys, *command, "--weights", tmp_path / "other.safetensors"), *digests)
        one_paragraph(call(capsys, *command, "--readout", "gem"), "is of readout cls, and gem was asked for")
        one_paragraph(call(capsys, *command, "--precision", "bf16"), "with precision fp32, not bf16")
        one_paragraph(call(capsys, *command, "--transform", "dino:32/16"), "with transform dino@1:16/16, not dino@1:32/16")
    one_paragraph(call(capsys, "search", "build", photos.parent / "val", "--out", index), "is an index of", "name another --out")
    one_paragraph(call(capsys, *query, "--k", 0), "k must be 1 or more")
    one_paragraph(call(capsys, "search", "query", index), "name the images")
    one_paragraph(call(capsys, "search", "query", index, tmp_path / "none.png"), "none.png")
    one_paragraph(call(capsys, "search", "query", tmp_path / "nowhere", picture), "no index")
    one_paragraph(call(capsys, "search", "query", photos.parent, picture), "is no index", "train, val")
    one_paragraph(call(capsys, *query, "--sheet", tmp_path / "s.pdf"), ".html or .png")
    one_paragraph(call(capsys, *query, "--json", tmp_path / "no/r.json"), "cannot be written")
    one_paragraph(call(capsys, "search", "duplicates", index, "--threshold", 2), "from -1 to 1")


def test_what_cannot_be_built_is_refused(photos, tiny_weights, tmp_path, capsys):
    index, weights = tmp_path / "index", ("--weights", tiny_weights)
    (tmp_path / "empty").mkdir()
    shutil.copytree(photos, tmp_path / "one", ignore=shutil.ignore_patterns("class[12]", "[1-9].png"))
    one_paragraph(call(capsys, "search", "build", tmp_path / "empty", "--out", index, *weights), "contains no image")
    one_paragraph(call(capsys, "search", "build", tmp_path / "one", "--out", index, *weights), "one image alone, class0/0.png")
    one_paragraph(call(capsys, "search", "build", tmp_path / "nowhere", "--out", index, *weights), "no folder")
    one_paragraph(call(capsys, "search", "build", photos, "--out", tiny_weights, *weights), "is a file")
    one_paragraph(call(capsys, "search", "build", photos, "--out", "/proc/index", *weights), "cannot be written")
    one_paragraph(call(capsys, "search", "build", photos, "--out", index, *weights, "--readout", "patches"), "is a map for each image")
    one_paragraph(call(capsys, "search", "build", photos, "--out", index, *weights, "--index", "pq"), "only 24 images")
    assert not index.exists()


@pytest.mark.parametrize("part", ["rows.faiss", "images.json", "neighbours.faiss", "manifest.json"])
def test_damage_is_found(photos, backbone, tmp_path, part):
    search.build(photos, tmp_path / "index", backbone, index="hnsw")
    (path,) = (tmp_path / "index").glob(f"*{part}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DinoevalError, match=f"is damaged: .*{part}"):
        search.open(tmp_path / "index")
    path.write_bytes(content[:-1])
    with pytest.raises(DinoevalError, match=f"is damaged: .*{part}"):
        search.build(photos, tmp_path / "index", backbone)


def test_an_index_whose_weights_went_away_says_where_they_were(photos, tiny_weights, tmp_path, capsys):
    weights = Path(shutil.copy(tiny_weights, tmp_path / "mine.safetensors"))
    call(capsys, "search", "build", photos, "--out", tmp_path / "index", "--weights", weights)
    moved = weights.rename(tmp_path / "moved.safetensors")
    query = ("search", "query", tmp_path / "index", photos / "class0/1.png")
    one_paragraph(call(capsys, *query), str(weights), "by --weights")
    assert call(capsys, *query, "--weights", moved)[0] == 0


@pytest.mark.parametrize("there", [False, True])
def test_a_build_that_was_killed_ends_as_an_undisturbed_one(photos, tiny_weights, backbone, tmp_path, there):
    """Killed between the rows and the manifest; an index that was there answers on. benchmarks/reliability_search.py kills anywhere."""
    whole, index = tmp_path / "whole", tmp_path / "index"
    if there:
        search.build(photos, index, backbone)
        for number, picture in enumerate(synthetic_images(9, seed=8)):
            picture.save(photos / f"class1/more{number}.png")
        shutil.copytree(index, whole)
    old = search.open(index).rows() if there else None
    kill = (
        "import os, signal, sys\nimport dinoeval.search.store as store\nfrom dinoeval.cli import main\n"
        "store.write_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nmain()"
    )
    words = ["search", "build", str(photos), "--out", str(index), "--weights", str(tiny_weights)]
    assert subprocess.run([sys.executable, "-c", kill, *words], capture_output=True, check=False).returncode == -signal.SIGKILL
    assert any(path.name.endswith(".rows.faiss") for path in index.iterdir())
    if there:
        np.testing.assert_array_equal(search.open(index).rows(), old)
    else:
        with pytest.raises(DinoevalError, match="no index"):
            search.open(index)
    subprocess.run([sys.executable, "-m", "dinoeval", *words], capture_output=True, check=True)
    expected = search.build(photos, whole, backbone, session=SessionConfig(cache=str(tmp_path / "own cache")))
    library = search.open(index)
    np.testing.assert_allclose(library.rows(), expected.rows(), atol=2e-6)
    assert (library.paths, len(list(index.iterdir()))) == (expected.paths, len(list(whole.iterdir())))


def test_an_open_index_outlives_its_replacement(photos, backbone, tmp_path):
    library = search.build(photos, tmp_path / "index", backbone)
    before = library.rows()
    (photos / "class0/0.png").unlink()
    search.build(photos, tmp_path / "index", backbone)
    np.testing.assert_array_equal(library.rows(), before)
