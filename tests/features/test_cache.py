"""The feature cache: entries are complete or absent, never wrong. Tests start and kill real processes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, class_folders, synthetic_images, synthetic_state

import dinoeval
from dinoeval.data.opening import open_images, open_splits
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import CacheError, ConfigError, DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.entry import INDEX, MANIFEST
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.features import Features
from dinoeval.features.readout import Cls, ClsAvg, LastCls, Patches
from dinoeval.maths.neighbors import load_faiss
from dinoeval.session import Session, SessionConfig

CROP = CenterCrop(16, 16)


def features(weights: Path, folder: Path, cache: FeatureCache | None = None, readout=Cls(), **options) -> Features:  # noqa: B008
    chosen = ExtractOptions(**{"batch_size": 4, **options})
    return extract(dinoeval.load(weights=weights), open_images(folder), readout, CROP, cache or FeatureCache(), options=chosen)


def command(weights: Path, folder: Path, out: Path, *more: str) -> list[str]:
    words = ["embed", str(folder), "--weights", str(weights), "--transform", "dino:16/16", "--batch-size", "1", "--out", str(out), *more]
    return [sys.executable, "-m", "dinoeval", *words]


def test_second_extract_is_cached_and_equal(tiny_weights, image_folder):
    first, second = features(tiny_weights, image_folder), features(tiny_weights, image_folder)
    assert (first.cached, second.cached) == (False, True)
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    backbone = dinoeval.load(weights=tiny_weights)
    expected = dinoeval.embed(backbone, image_folder, transform="dino:16/16", cache=False)
    np.testing.assert_allclose(first.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("readout", [Cls(), LastCls(2), ClsAvg(), Patches()])
def test_entry_is_a_flat_faiss_index(tiny_weights, image_folder, readout):
    found = features(tiny_weights, image_folder, readout=readout)
    index = found.entry.index()
    dim = int(np.prod(found.entry.feature_shape))
    assert (index.ntotal, index.d, index.metric_type) == (33, dim, load_faiss().METRIC_INNER_PRODUCT)
    np.testing.assert_array_equal(index.reconstruct_n(0, 33).reshape(33, *found.entry.feature_shape), found.numpy())
    plain = load_faiss().IndexFlatIP(dim)
    plain.add(found.numpy().reshape(33, dim))
    assert load_faiss().serialize_index(plain).tobytes() == (found.entry.folder / INDEX).read_bytes()


def test_every_part_of_spec_changes_the_key(tiny_weights, image_folder, tmp_path):
    one = features(tiny_weights, image_folder)
    other_weights = extract(dinoeval.load("vit_xs4_16", weights="random"), open_images(image_folder), Cls(), CROP, FeatureCache())
    backbone = dinoeval.load(weights=tiny_weights)
    other_crop = extract(backbone, open_images(image_folder), Cls(), CenterCrop(20, 16), FeatureCache())
    low = extract(dinoeval.load(weights=tiny_weights, precision="bf16"), open_images(image_folder), Cls(), CROP, FeatureCache())
    torch.save(synthetic_state(TINY), tmp_path / "unnamed.pth")
    unnamed = dinoeval.load("vit_xs4_16_h2", weights=tmp_path / "unnamed.pth")
    other_heads = extract(unnamed, open_images(image_folder), Cls(), CROP, FeatureCache())
    fewer = features(tiny_weights, image_folder / "train")
    all_entries = [one, other_weights, other_crop, low, other_heads, fewer, features(tiny_weights, image_folder, readout=ClsAvg())]
    assert len({entry.entry.key for entry in all_entries}) == len(all_entries)
    assert not any(entry.cached for entry in all_entries)


def test_replaced_file_of_equal_size_is_not_cached(tiny_weights, tmp_path):
    for number, image in enumerate(synthetic_images(3)):
        image.save(tmp_path / f"{number}.bmp")
    before = features(tiny_weights, tmp_path)
    time.sleep(0.02)
    synthetic_images(1, seed=5)[0].save(tmp_path / "1.bmp")
    after = features(tiny_weights, tmp_path)
    assert not after.cached
    assert (before.numpy() == after.numpy()).all(1).tolist() == [True, False, True]


def test_folders_with_equal_metadata_do_not_share_features(tiny_weights, tmp_path):
    """Archives with all times set to zero unpack to such folders."""
    for seed, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        synthetic_images(1, seed=seed)[0].save(folder / "0.bmp")
        os.utime(folder / "0.bmp", (0, 0))
    found = [features(tiny_weights, folder) for folder in (tmp_path / "a", tmp_path / "b")]
    assert not found[1].cached
    assert not np.array_equal(found[0].numpy(), found[1].numpy())


def test_extract_raises_when_tensors_were_changed(tiny_weights, image_folder):
    backbone = dinoeval.load(weights=tiny_weights)
    backbone.network.norm.bias.data.add_(1)
    with pytest.raises(ConfigError, match=r"digest .*changed"):
        dinoeval.embed(backbone, image_folder)


def test_features_stay_readable_after_prune(tiny_weights, image_folder, monkeypatch):
    from dinoeval.features import features as module

    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 96 * 10)
    found = features(tiny_weights, image_folder)
    expected, blocks = found.numpy(), found.blocks()
    first = next(blocks)
    assert FeatureCache().remove(found.entry.folder) == f"deleted {found.entry.key}"
    np.testing.assert_array_equal(np.concatenate([first, *blocks]), expected)


def test_corrupted_partial_entry_is_restarted(tiny_weights, image_folder, tmp_path):
    intact = features(tiny_weights, image_folder)
    for part in ("index", "journal", "header"):
        cache = FeatureCache(tmp_path / part)
        with cache.locked(intact.entry.key):
            manifest = intact.entry.manifest
            partial = cache.begin(intact.entry.key, spec=manifest.recipe, num_rows=33, feature_shape=(96,), chunk_rows=manifest.chunk_rows)
        if part == "header":
            with partial.index.open("r+b") as file:
                file.write(bytes(20))
        else:
            path = partial.index if part == "index" else partial.folder / "journal"
            path.write_bytes(path.read_bytes()[:-1])
        again = features(tiny_weights, image_folder, cache)
        np.testing.assert_array_equal(again.numpy(), intact.numpy())
        assert again.entry.index().ntotal == 33


@pytest.mark.parametrize("header_bytes", [range(0, 45, 15), pytest.param(range(45), marks=pytest.mark.slow)], ids=["some", "all"])
def test_flipped_byte_is_detected_and_recomputed(tiny_weights, image_folder, header_bytes):
    """Bytes of the index header, of the features and of the manifest."""
    intact = features(tiny_weights, image_folder)
    expected, folder = intact.numpy(), intact.entry.folder
    generator = random.Random(0)
    for name in (INDEX, MANIFEST):
        content = (folder / name).read_bytes()
        header = header_bytes if name == INDEX else []
        for place in [*header, len(content) - 1, *generator.sample(range(len(content)), 40 if len(header_bytes) == 45 else 4)]:
            corrupted = bytearray((folder / name).read_bytes())
            corrupted[place] ^= 1 << generator.randrange(8)
            (folder / name).write_bytes(corrupted)
            again = features(tiny_weights, image_folder)
            assert not again.cached, f"byte {place} of {name}"
            np.testing.assert_array_equal(again.numpy(), expected)
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-4])
    assert not features(tiny_weights, image_folder).cached
    (folder / MANIFEST).unlink()
    assert not features(tiny_weights, image_folder).cached
    assert features(tiny_weights, image_folder).cached


@pytest.mark.slow
def test_killed_runs_resume_to_identical_bytes(tiny_weights, tmp_path):
    """A real process is killed six times at random moments; benchmarks/reliability.py does thirty and more."""
    folder = class_folders(tmp_path / "set", train=60, val=20)
    uninterrupted = tmp_path / "uninterrupted"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DINOEVAL_CACHE": str(uninterrupted)}
    subprocess.run(command(tiny_weights, folder, tmp_path / "a.npy"), env=environment, check=True, capture_output=True)
    generator = random.Random(1)
    environment["DINOEVAL_CACHE"] = str(tmp_path / "killed")

    def chunks_done() -> int:
        journals = list((tmp_path / "killed").glob("*.partial/journal"))
        return sum(int((np.fromfile(journal, "<u8") > 0).sum()) for journal in journals)

    kills = resumed = 0
    while kills < 6:
        before = chunks_done()
        process = subprocess.Popen(command(tiny_weights, folder, tmp_path / "b.npy"), env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and chunks_done() <= before:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        log = process.communicate()[1]
        resumed += "resuming" in log
        kills += 1
    done = subprocess.run(command(tiny_weights, folder, tmp_path / "b.npy"), env=environment, check=True, capture_output=True, text=True)
    assert kills > 1
    assert resumed or "resuming" in done.stderr
    names = [next(path.glob(f"*/{INDEX}")) for path in (uninterrupted, tmp_path / "killed")]
    assert names[0].parent.name == names[1].parent.name
    assert names[0].read_bytes() == names[1].read_bytes()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert not list((tmp_path / "killed").glob("*.partial"))


@pytest.mark.slow
def test_concurrent_processes_make_one_entry(tiny_weights, tmp_path):
    folder = class_folders(tmp_path / "set", train=60, val=20)
    runs = [
        subprocess.Popen(command(tiny_weights, folder, tmp_path / f"{name}.npy"), stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    for run in runs:
        assert run.wait(120) == 0, run.stderr.read()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    entries = list(FeatureCache().entries())
    assert len(entries) == 1
    assert entries[0][1].verify() is None


@pytest.mark.slow
def test_torchrun_entry_equals_single_process(tiny_weights, tmp_path):
    folder = class_folders(tmp_path / "set", train=30, val=10)
    subprocess.run(command(tiny_weights, folder, tmp_path / "one.npz", "--cache", str(tmp_path / "one")), check=True, capture_output=True)
    words = command(tiny_weights, folder, tmp_path / "two.npz", "--cache", str(tmp_path / "two"))[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    done = subprocess.run(launcher, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    np.testing.assert_allclose(two["features"], one["features"], atol=1e-5)
    assert (one["paths"] == two["paths"]).all()


def test_unreadable_images_are_listed_or_skipped(tiny_weights, tmp_path):
    class_folders(tmp_path)
    for name in ("train/class0/a.jpg", "val/class2/b.png"):
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=r"2 of 35 .*train/class0/a\.jpg \(.*val/class2/b\.png \(.*--bad-images skip"):
        features(tiny_weights, tmp_path)
    found = features(tiny_weights, tmp_path, bad_images="skip")
    assert found.cached  # the first run stored what it computed
    assert (len(found), len(found.images), found.numpy().shape) == (33, 33, (33, 96))
    assert "train/class0/a.jpg" not in found.images.paths
    good = extract(dinoeval.load(weights=tiny_weights), found.images, Cls(), CROP, FeatureCache(), options=ExtractOptions(batch_size=4))
    np.testing.assert_allclose(found.numpy(), good.numpy(), atol=2e-6)


def test_oversized_image_is_unreadable_and_cached(tiny_weights, tmp_path):
    """An image 1 pixel wide and 60,000 high: with its short side at 256 it would have 3.9 billion pixels."""
    synthetic_images(1, (1, 60_000))[0].save(tmp_path / "thread.png")
    synthetic_images(1)[0].save(tmp_path / "good.png")
    backbone, crop, skip = dinoeval.load(weights=tiny_weights), CenterCrop(256, 224), ExtractOptions(bad_images="skip")
    runs = [extract(backbone, open_images(tmp_path), Cls(), crop, FeatureCache(), options=skip) for _ in range(2)]
    assert [len(run) for run in runs] == [1, 1]
    assert [run.cached for run in runs] == [False, True]
    assert "256 x" in runs[0].bad[0]["reason"]


def test_set_with_one_or_no_readable_image(tiny_weights, tmp_path):
    synthetic_images(1)[0].save(tmp_path / "a.png")
    assert features(tiny_weights, tmp_path).numpy().shape == (1, 96)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        features(tiny_weights, tmp_path, bad_images="skip")


def test_nan_features_raise_and_are_not_stored(tmp_path, image_folder):
    """The weights are finite, but large enough to overflow."""
    state = synthetic_state(TINY)
    torch.save({name: tensor * (1e30 if "fc1.weight" in name else 1) for name, tensor in state.items()}, tmp_path / "huge.pth")
    with pytest.raises(DataError, match=r"class0/0\.png .*NaN or infinite.*huge\.pth"):
        extract(dinoeval.load(TINY, weights=tmp_path / "huge.pth"), open_images(image_folder), Cls(), CROP, FeatureCache())
    assert not list(FeatureCache().entries())


@pytest.mark.slow
def test_full_disk_raises_and_removes_partial_entry(tiny_weights, image_folder, tmp_path):
    """A limit on the size of files stands for a full disk: the same system calls fail."""
    code = (
        "import resource, sys; from dinoeval.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY)); main(sys.argv[1:])"
    )
    words = command(tiny_weights, image_folder, tmp_path / "x.npy")[3:]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(FeatureCache().root) in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in FeatureCache().root.iterdir() if path.suffix != ".lock"]
    assert not (tmp_path / "x.npy").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_unwritable_cache_raises_but_stays_readable(tiny_weights, image_folder, tmp_path):
    """A file in place of the folder, and a file system without write access (/proc), fail as a read-only disk does."""
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", Path("/proc/dinoeval")):
        with pytest.raises(CacheError, match=rf"{root} cannot be (written|read)"):
            features(tiny_weights, image_folder, FeatureCache(root))
    made = features(tiny_weights, image_folder)
    made.entry.folder.parent.joinpath(f"{made.entry.key}.lock").unlink()
    for folder in (made.entry.folder, made.entry.folder.parent):
        folder.chmod(0o555)
    try:
        assert features(tiny_weights, image_folder).cached
        assert not made.entry.folder.parent.joinpath(f"{made.entry.key}.lock").exists()
    finally:
        for folder in (made.entry.folder.parent, made.entry.folder):
            folder.chmod(0o755)


def test_backbone_is_frozen_and_unchanged_after_use(tiny_weights, image_folder):
    backbone = dinoeval.load(weights=tiny_weights)
    assert isinstance(dinoeval.embed(backbone, image_folder), np.ndarray)
    assert not backbone.network.training
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert backbone(torch.zeros(1, 3, 16, 16)).cls.grad_fn is None
    from dinoeval.models.checkpoints import tensor_digest

    assert tensor_digest(backbone.network.state_dict()) == backbone.digest


def test_manifest_describes_the_entry(tiny_weights, image_folder):
    entry = features(tiny_weights, image_folder).entry
    manifest = json.loads((entry.folder / MANIFEST).read_bytes().rpartition(b"\n")[0])
    assert manifest["recipe"]["readout"] == "cls"
    assert manifest["about"]["arch"] == "vit_xs4_16"
    assert manifest["rows"] == 33


def test_subset_ignores_unreadable_images_of_the_rest(tiny_weights, tmp_path):
    """The result is the same whether or not the whole set is cached."""
    folder = class_folders(tmp_path / "data")
    (folder / "train/class2/7.png").write_text("text")
    images = open_splits(str(folder))[0]
    rows = np.arange(10)
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    fresh = Session(SessionConfig(cache=str(tmp_path / "one")), backbone).features(images, Cls(), rows)
    Session(SessionConfig(cache=str(tmp_path / "two"), bad_images="skip"), backbone).features(images, Cls())
    picked = Session(SessionConfig(cache=str(tmp_path / "two")), backbone).features(images, Cls(), rows)
    assert (fresh.bad, picked.bad) == ([], [])
    np.testing.assert_allclose(fresh.numpy(), picked.numpy(), atol=1e-5)
    with pytest.raises(DataError, match=r"1 of 24 .*class2/7\.png"):
        Session(SessionConfig(cache=str(tmp_path / "two")), backbone).features(images, Cls())
