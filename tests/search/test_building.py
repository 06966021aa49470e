"""Building and updating an index through the Python API."""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from factories import synthetic_images

from dinoeval import search
from dinoeval.errors import DinoevalError
from dinoeval.session import SessionConfig


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_index_is_extended_or_retrained(photos, backbone, tmp_path, kind):
    folder = tmp_path / "index"
    search.build(photos, folder, backbone, index=kind)
    shutil.copy(photos / "class0/0.png", photos / "class0/zz.png")
    index = search.build(photos, folder, backbone)
    assert (len(index), index.manifest["parameters"]["trained_on"]) == (25, 24)
    assert index.query(photos / "class0/0.png", k=1)[0].paths == [str(photos / "class0/zz.png")]
    for number, image in enumerate(synthetic_images(40, seed=9)):
        image.save(photos / f"class1/more{number}.png")
    assert search.build(photos, folder, backbone).manifest["parameters"]["trained_on"] == 65
    assert search.build(photos, folder, backbone, index="exact").manifest["parameters"] == {}
    assert sorted(path.name.partition(".")[2] for path in folder.iterdir()) == ["images.json", "json", "lock", "rows.faiss"]


def test_unreadable_images_are_skipped_until_they_change(photos, backbone, tmp_path):
    skip = SessionConfig(bad_images="skip")
    (photos / "class1/text.png").write_text("text")
    with pytest.raises(DinoevalError, match="--bad-images skip"):
        search.build(photos, tmp_path / "index", backbone)
    assert not (tmp_path / "index").exists()
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24
    index = search.build(photos, tmp_path / "index", backbone)
    assert len(index) == 24  # the file has not changed
    assert index.unreadable == [str(photos / "class1/text.png")]
    (photos / "class1/more.png").write_text("more text")
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24
    synthetic_images(1, seed=5)[0].save(photos / "class1/text.png")
    assert len(search.build(photos, tmp_path / "index", backbone)) == 25


@pytest.mark.slow
@pytest.mark.parametrize("update", [False, True])
def test_killed_build_is_resumed_by_the_same_command(photos, tiny_weights, backbone, tmp_path, update):
    """Kill the build between vectors and manifest. benchmarks/reliability_search.py kills it at random moments."""
    uninterrupted, folder = tmp_path / "uninterrupted", tmp_path / "index"
    if update:
        search.build(photos, folder, backbone)
        for number, image in enumerate(synthetic_images(9, seed=8)):
            image.save(photos / f"class1/more{number}.png")
        shutil.copytree(folder, uninterrupted)
    old = search.open(folder).vectors() if update else None
    kill = (
        "import os, signal, sys\nimport dinoeval.search.store as store\nfrom dinoeval.cli import main\n"
        "store.write_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nmain()"
    )
    words = ["search", "build", str(photos), "--out", str(folder), "--weights", str(tiny_weights)]
    assert subprocess.run([sys.executable, "-c", kill, *words], capture_output=True, check=False).returncode == -signal.SIGKILL
    assert any(path.name.endswith(".rows.faiss") for path in folder.iterdir())
    if update:
        np.testing.assert_array_equal(search.open(folder).vectors(), old)
    else:
        with pytest.raises(DinoevalError, match=str(folder)):
            search.open(folder)
    subprocess.run([sys.executable, "-m", "dinoeval", *words], capture_output=True, check=True)
    expected = search.build(photos, uninterrupted, backbone, session=SessionConfig(cache=str(tmp_path / "second cache")))
    index = search.open(folder)
    np.testing.assert_allclose(index.vectors(), expected.vectors(), atol=2e-6)
    assert (index.paths, len(list(folder.iterdir()))) == (expected.paths, len(list(uninterrupted.iterdir())))


def test_broken_links_are_unreadable_and_hidden_files_no_images(photos, backbone, tmp_path):
    (photos / "class1/lost.png").symlink_to("nowhere")
    (photos / "class1/@eaDir").mkdir()
    shutil.copy(photos / "class0/0.png", photos / "class1/@eaDir/thumb.png")
    with pytest.raises(DinoevalError, match=r"1 of 25 images.*class1/lost\.png"):
        search.build(photos, tmp_path / "index", backbone)
    skip = SessionConfig(bad_images="skip")
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24
    assert len(search.build(photos, tmp_path / "index", backbone, session=skip)) == 24


@pytest.mark.parametrize("update", [False, True])
def test_interrupted_build_leaves_the_old_or_the_new_index(photos, backbone, tmp_path, monkeypatch, update):
    """Interrupt before and after every file that a build renames or removes; then the same call succeeds."""
    if update:
        search.build(photos, tmp_path / "old", backbone)
        (photos / "class1/2.png").unlink()
        shutil.copy(photos / "class0/2.png", photos / "class2/copy.png")
    expected = search.build(photos, tmp_path / "complete", backbone).vectors()  # its features are in the cache from now on
    files = sorted(path.name.partition(".")[2] for path in (tmp_path / "complete").iterdir())
    remaining = 0
    originals = {name: getattr(pathlib.Path, name) for name in ("replace", "unlink")}

    def interrupting(name: str):
        def call(path, *args, **options):
            nonlocal remaining
            watched = folder in path.parents
            for happens in (False, True):
                if watched:
                    remaining -= 1
                    if remaining == 0:
                        raise KeyboardInterrupt
                if not happens:
                    result = originals[name](path, *args, **options)
            return result

        return call

    for name in originals:
        monkeypatch.setattr(pathlib.Path, name, interrupting(name))
    for number in range(1, 40):
        folder, remaining = tmp_path / f"index{number}", number
        if update:
            shutil.copytree(tmp_path / "old", folder)
        try:
            search.build(photos, folder, backbone)
        except KeyboardInterrupt:
            if update:
                assert len(search.open(folder)) == 24
        remaining_after = remaining
        remaining = 0
        np.testing.assert_array_equal(search.build(photos, folder, backbone).vectors(), expected)
        assert sorted(path.name.partition(".")[2] for path in folder.iterdir()) == files
        if remaining_after > 0:
            break
    assert remaining_after > 0
    assert number > 3


def test_leftovers_of_killed_builds_are_removed(photos, backbone, tmp_path):
    search.build(photos, tmp_path / "index", backbone)
    before = sorted(path.name for path in (tmp_path / "index").iterdir())
    for name in ("0123abcd.rows.faiss", "0123abcd.images.json", ".4711-0123ab.manifest.json"):
        (tmp_path / "index" / name).write_text("unfinished")
    search.build(photos, tmp_path / "index", backbone)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == before
