"""Queries of an open index through the Python API."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

import dinoeval
from dinoeval import search
from dinoeval.errors import DataError, DinoevalError
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.session import SessionConfig


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_query_returns_the_nearest_features(photos, backbone, tmp_path, kind):
    index = search.build(photos, tmp_path / "index", backbone, index=kind)
    assert (len(index), index.manifest["kind"], kind == "exact") == (24, kind, index.manifest["recall"] is None)
    features = l2_normalize(dinoeval.embed(backbone, photos))
    np.testing.assert_array_equal(index.vectors(), features)
    cosines = features @ features.T
    for row, matches in enumerate(search.open(tmp_path / "index").query(index.paths, k=23)):
        expected = [other for other in np.argsort(-cosines[row], kind="stable") if other != row]
        np.testing.assert_allclose(matches.cosines, cosines[row][expected], atol=1e-6)
        assert set(matches.paths) == {index.paths[other] for other in expected}


def test_query_leaves_out_its_own_file_but_not_copies(photos, backbone, tmp_path, monkeypatch):
    original = photos / "class0/3.png"
    shutil.copy(original, photos / "class1/copy.png")
    (photos / "class2/link.png").symlink_to(original)
    index = search.build(photos, tmp_path / "index", backbone)
    monkeypatch.chdir(photos / "class0")
    for path in ("3.png", original, photos / "class2/link.png"):
        (matches,) = index.query(path, k=30)
        assert len(matches.paths) == 24  # 26 without itself and the link to it
        assert matches.paths[0] == str(photos / "class1/copy.png")
        assert matches.cosines[0] == pytest.approx(1, abs=1e-5)
    (matches,) = index.query(Image.open(original), k=25)  # A PIL image has no file that could be left out.
    assert set(matches.paths[:2]) == {str(original), str(photos / "class1/copy.png")}
    assert len(matches.paths) == 25  # The file and the link to it are one image.


def test_query_names_the_file_and_not_a_link_to_it(photos, backbone, tmp_path):
    original = photos / "class1/3.png"
    (photos / "class0/0-first.png").symlink_to(original)
    index = search.build(photos, tmp_path / "index", backbone)
    assert index.paths[0].endswith("0-first.png")
    for k in (1, 3):
        assert index.query(Image.open(original), k=k)[0].paths[0] == str(original)


def test_query_leaves_out_and_names_deleted_and_changed_images(photos, backbone, tmp_path, caplog):
    shutil.copy(photos / "class0/3.png", photos / "class1/deleted.png")
    shutil.copy(photos / "class0/3.png", photos / "class1/changed.png")
    index = search.build(photos, tmp_path / "index", backbone)
    (photos / "class1/deleted.png").unlink()
    shutil.copy(photos / "class2/5.png", photos / "class1/changed.png")
    (matches,) = index.query(photos / "class0/3.png", k=2)
    assert len(matches.paths) == 2
    assert not {"deleted.png", "changed.png"} & {Path(path).name for path in matches.paths}
    assert "1 images were deleted" in caplog.text
    assert "1 images were changed" in caplog.text


@pytest.mark.parametrize("features", [np.ones((1, 3), np.float32), np.ones(192, np.float32)])
def test_features_of_another_shape_are_rejected(photos, backbone, tmp_path, features):
    with pytest.raises(DataError, match="96"):
        search.build(photos, tmp_path / "index", backbone).nearest(features, 2)


def test_queries_are_cached_only_if_there_are_many(photos, backbone, tmp_path):
    index = search.build(photos, tmp_path / "index", backbone, session=SessionConfig(bad_images="skip"))
    cache = Path(os.environ["DINOEVAL_CACHE"])
    before = sorted(cache.iterdir())
    for number, image in enumerate(synthetic_images(33, seed=3)):
        image.save(tmp_path / f"query{number:02}.png")
    queries = sorted(tmp_path.glob("query*.png"))
    (tmp_path / "text.png").write_text("text")
    results = index.query([queries[0], tmp_path / "text.png", queries[1]], k=24)
    assert [matches.query for matches in results] == [str(path) for path in queries[:2]]
    assert sorted(cache.iterdir()) == before
    for matches, features in zip(results, dinoeval.embed(backbone, queries[:2]), strict=True):  # through the cache
        np.testing.assert_array_equal(matches.cosines, index.nearest(features[None], 24)[0][0])
    before = sorted(cache.iterdir())
    index.query(queries)
    assert len(list(cache.iterdir())) > len(before)


def test_unreadable_query_raises_by_default(photos, backbone, tmp_path):
    search.build(photos, tmp_path / "index", backbone)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(DinoevalError, match=r"1 of 1 .*text\.png"):
        search.open(tmp_path / "index").query(tmp_path / "text.png")


def test_query_refuses_paths_mixed_with_pil_images(photos, backbone, tmp_path):
    index = search.build(photos, tmp_path / "index", backbone)
    with pytest.raises(DinoevalError, match="PIL"):
        index.query([photos / "class0/1.png", Image.new("RGB", (16, 16))])


def test_query_warns_about_images_changed_since_the_build(photos, backbone, tmp_path, caplog):
    index = search.build(photos, tmp_path / "index", backbone)
    (photos / "class2/5.png").unlink()
    index.query(photos / "class0/1.png", k=23)
    assert "1 images" in caplog.text
    assert str(photos / "class2/5.png") in caplog.text


@pytest.mark.parametrize("part", ["rows.faiss", "images.json", "neighbours.faiss", "manifest.json"])
def test_corrupted_index_is_refused(photos, backbone, tmp_path, part):
    search.build(photos, tmp_path / "index", backbone, index="hnsw")
    (path,) = (tmp_path / "index").glob(f"*{part}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DinoevalError, match=f"corrupted: .*{part}"):
        search.open(tmp_path / "index")
    path.write_bytes(content[:-1])
    with pytest.raises(DinoevalError, match=f"corrupted: .*{part}"):
        search.build(photos, tmp_path / "index", backbone)


def test_open_index_stays_readable_when_it_is_replaced(photos, backbone, tmp_path):
    index = search.build(photos, tmp_path / "index", backbone)
    before = index.vectors()
    (photos / "class0/0.png").unlink()
    search.build(photos, tmp_path / "index", backbone)
    np.testing.assert_array_equal(index.vectors(), before)
