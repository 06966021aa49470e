"""`dinoeval embed` and `dinoeval cache`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from factories import synthetic_images


def test_embed_writes_features_and_paths(call, tiny_weights, image_folder, tmp_path):
    out = tmp_path / "f.npz"
    code, _, err = call("embed", image_folder / "val", "--weights", tiny_weights, "--out", out, "--readout", "last4")
    assert code == 0, err
    content = np.load(out)
    assert content["features"].shape == (9, 4 * 96)
    assert content["paths"].tolist() == [f"class{label}/{number}.png" for label in range(3) for number in range(3)]


def test_embed_writes_patch_maps_to_npy(call, tiny_weights, image_folder, tmp_path):
    image = next((image_folder / "val/class1").iterdir())
    assert call("embed", image, "--weights", tiny_weights, "--out", tmp_path / "f.npy", "--readout", "patches")[0] == 0
    assert np.load(tmp_path / "f.npy").shape == (1, 4, 4, 96)
    assert json.loads((tmp_path / "f.paths.json").read_text()) == [str(image)]


def test_embed_sorts_folders_and_counts_other_files(call, tiny_weights, tmp_path):
    names = ["alps/old/a.png", "alps/w.png", "beach.png"]
    for name, image in zip(names, synthetic_images(3), strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("text")
    (tmp_path / "photos/lost.jpg").symlink_to("nowhere")
    words = ("embed", tmp_path / "photos", "--weights", tiny_weights, "--out", tmp_path / "f.npy")
    code, _, err = call(*words)
    assert (code, "lost.jpg" in err) == (2, True)
    code, _, err = call(*words, "--bad-images", "skip")
    assert (code, "1 .txt" in err) == (0, True)
    assert json.loads((tmp_path / "f.paths.json").read_text()) == names


@pytest.fixture
def cache_root(call, tiny_weights, image_folder) -> Path:
    """The folder of a cache with the two entries of a k-NN run."""
    call("knn", "--weights", tiny_weights, "--data", image_folder)
    return Path(call("cache", "path")[1].strip())


def test_cache_list_describes_entries(call, cache_root):
    code, out, _ = call("cache", "list")
    assert (code, out.count("vit_xs4_16 cls fp32 dino@1:16/16"), str(cache_root) in out) == (0, 2, True)


def test_cache_option_names_another_folder(call, cache_root, tmp_path):
    assert call("cache", "path", "--cache", tmp_path / "other")[1] == f"{tmp_path / 'other'}\n"
    assert "0.0 MB" in call("cache", "list", "--cache", tmp_path / "other")[1]


def corrupt(cache_root: Path) -> str:
    """Change the last byte of an entry and return its key."""
    index = next(cache_root.glob("*/features.faiss"))
    index.write_bytes(index.read_bytes()[:-1] + b"!")
    return index.parent.name


def test_cache_verify_reports_corrupted_entries(call, cache_root):
    assert call("cache", "verify")[0] == 0
    key = corrupt(cache_root)
    code, out, _ = call("cache", "verify")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 1
    assert "corrupted" in lines.pop(key)
    assert [line.split()[1] for line in lines.values()] == ["intact"]


def test_cache_prune_deletes_only_what_is_broken(call, cache_root):
    key, unfinished = corrupt(cache_root), f"{'0' * 32}.partial"
    for name in (unfinished, "photos", "clip.partial"):  # the last two do not belong to the cache
        (cache_root / name).mkdir()
    _, out, _ = call("cache", "prune")
    assert out.splitlines() == [f"deleted {unfinished}", f"deleted {key}"]
    assert (cache_root / "photos").is_dir()
    assert (cache_root / "clip.partial").is_dir()


def test_cache_prune_rejects_unknown_names(call, cache_root):
    code, _, err = call("cache", "prune", "zzz")
    assert (code, "zzz" in err, "dinoeval cache list" in err) == (2, True, True)


def test_cache_prune_all_empties_the_cache(call, cache_root):
    assert call("cache", "prune", "--all")[0] == 0
    assert "0.0 MB" in call("cache", "list")[1]


@pytest.mark.slow
def test_cache_prune_deletes_runs_only_if_asked(call, tiny_weights, image_folder):
    probe = ("linear", "--weights", tiny_weights, "--data", image_folder, "--epochs", "1", "--train-batch-size", "8", "--readouts", "cls")
    for rate in ("0.1", "1"):
        assert call(*probe, "--lrs", rate)[0] == 0
    root = Path(call("cache", "path")[1].strip())
    interrupted, finished = sorted((root / "runs").iterdir())
    for head in interrupted.glob("head_*.pth"):  # an interrupted run has none
        head.unlink()
    (root / "runs/mine").mkdir()
    _, out, _ = call("cache", "list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "unfinished" in lines[interrupted.name]
    assert lines[finished.name].endswith("finished")
    assert "unfinished" not in lines[finished.name]
    assert "mine" not in out
    assert call("cache", "prune", "--all")[0] == 0
    assert finished.is_dir()
    assert call("cache", "prune", "--runs")[1] == f"deleted {finished.name}\n"
    assert call("cache", "prune", interrupted.name[:12])[1] == f"deleted {interrupted.name}\n"
    assert [path.name for path in (root / "runs").iterdir()] == ["mine"]
