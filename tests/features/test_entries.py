"""Files of the feature cache that were changed, forged or cannot be read: one error or a new entry, never wrong features."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dinoeval.decoding import encode_sealed
from dinoeval.errors import CacheError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.entry import INDEX, MANIFEST, Entry, Manifest, Plan, crc32_of, write_manifest
from dinoeval.features.partial import ENTRY, JOURNAL, PLAN, create
from dinoeval.features.spec import key_of

SPEC = {"readout": "cls", "precision": "fp32", "transform": "t", "rate": 0.1}
FEATURES = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def entry(cache) -> Entry:
    """An entry of five images with four numbers each, in chunks of two."""
    return made(cache)


def made(cache: FeatureCache, finish: bool = True) -> Entry:
    key = key_of(SPEC)
    with cache.locked(key):
        partial = cache.begin(key, spec=SPEC, num_rows=5, feature_shape=(4,), chunk_rows=2)
        for chunk in range(3 if finish else 1):
            bad = [{"row": 4, "path": "gr\udcfcn.png", "reason": "no image"}] if chunk == 2 else []
            partial.write(chunk, FEATURES[2 * chunk : 2 * chunk + 2], bad)
        return partial.finish({"arch": "a"}) if finish else None


def forge(entry: Entry, field: str, value: object) -> None:
    """Change a field of the manifest and update its checksum."""
    content = json.loads((entry.folder / MANIFEST).read_bytes().rpartition(b"\n")[0])
    (entry.folder / MANIFEST).write_bytes(encode_sealed({**content, field: value}))


def test_entry_is_read_as_written(cache, entry):
    found = cache.find(entry.key)
    assert found == entry
    assert found.bad == [{"row": 4, "path": "gr\udcfcn.png", "reason": "no image"}]
    with found.open() as file:
        np.testing.assert_array_equal(found.matrix(file), FEATURES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", {**SPEC, "readout": "gem"}),
        ("rows", 10**12),
        ("rows", 4),
        ("rows", None),
        ("row_shape", [2, -2]),
        ("row_shape", [2**40, 2**40]),
        ("row_shape", []),
        ("chunk_rows", 0),
        ("header_bytes", -1),
        ("header_bytes", 2**62),
        ("crc32", [1]),
        ("crc32", "abc"),
        ("bad", [{"row": 5, "path": "a", "reason": "b"}]),
        ("bad", [{"row": 1}]),
        ("about", []),
        ("extra", 1),
    ],
)
def test_forged_manifest_is_a_corrupted_entry(cache, entry, field, value, caplog):
    forge(entry, field, value)
    assert isinstance(dict(cache.entries())[entry.key], str)
    assert cache.find(entry.key) is None
    assert entry.key in caplog.text


def test_renamed_entry_is_not_served_as_another(cache, entry):
    """The features of another readout, moved or copied by hand."""
    other = key_of({**SPEC, "readout": "gem"})
    shutil.copytree(entry.folder, cache.root / other)
    assert cache.find(other) is None
    assert cache.find(entry.key) == entry


def test_pipe_in_place_of_a_manifest_is_not_read(cache, entry):
    (entry.folder / MANIFEST).unlink()
    os.mkfifo(entry.folder / MANIFEST)
    assert MANIFEST in dict(cache.entries())[entry.key]
    assert cache.find(entry.key) is None


@pytest.mark.parametrize("how", ["missing", "short", "folder"])
def test_index_that_does_not_fit_is_a_corrupted_entry(cache, entry, how):
    index = entry.folder / INDEX
    content = index.read_bytes()
    index.unlink()
    if how == "short":
        index.write_bytes(content[:-1])
    elif how == "folder":
        index.mkdir()
    assert INDEX in dict(cache.entries())[entry.key]
    assert cache.find(entry.key) is None


@pytest.mark.parametrize("change", ["chunk size", "length", "text", "folder", "rows"])
def test_changed_plan_starts_over(cache, entry, change):
    made_again = FeatureCache(cache.root.with_name("again"))
    made(made_again, finish=False)
    folder = made_again.partial_folder(entry.key)
    plan = folder / PLAN
    content = plan.read_bytes()
    if change == "folder":
        plan.unlink()
        plan.mkdir()
    else:
        changed = {
            "chunk size": content.replace(b'"chunk_rows": 2', b'"chunk_rows": 0'),
            "length": content[:-1],
            "text": b"\xff" * 9,
            "rows": encode_sealed(Plan(recipe=SPEC, rows=6, row_shape=(4,), chunk_rows=2)),
        }
        plan.write_bytes(changed[change])
    assert made(made_again).verify() is None


def test_old_notes_of_bad_images_are_ignored(cache):
    made(cache, finish=False)
    folder = cache.partial_folder(key_of(SPEC))
    for name in ("bad.x", "bad.99", "bad.1"):
        (folder / name).write_text("[")
    with cache.locked(key_of(SPEC)):
        partial = cache.begin(key_of(SPEC), spec=SPEC, num_rows=5, feature_shape=(4,), chunk_rows=2)
        assert partial.todo() == [1, 2]


def test_unreadable_journal_is_one_error_and_loses_nothing(cache):
    """A folder in place of a file fails as a broken disk does."""
    made(cache, finish=False)
    folder = cache.partial_folder(key_of(SPEC))
    with cache.locked(key_of(SPEC)):
        partial = cache.begin(key_of(SPEC), spec=SPEC, num_rows=5, feature_shape=(4,), chunk_rows=2)
        (folder / JOURNAL).rename(folder / "kept")
        (folder / JOURNAL).mkdir()
        for read in (partial.todo, lambda: partial.finish({})):
            with pytest.raises(CacheError, match=f"{folder} cannot be read"):
                read()
    assert (folder / "kept").exists()
    assert (folder / ENTRY / INDEX).exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_file_or_link_in_place_of_an_incomplete_entry_is_replaced(cache, kind, tmp_path):
    cache.root.mkdir()
    folder, other = cache.partial_folder(key_of(SPEC)), tmp_path / "other"
    other.mkdir()
    (other / "photo").write_text("kept")
    if kind == "file":
        folder.write_text("")
    else:
        folder.symlink_to(other if kind == "link" else tmp_path / "absent")
    assert made(cache).verify() is None
    assert not os.path.lexists(folder)
    assert (other / "photo").read_text() == "kept"


def test_rest_of_a_run_that_was_killed_at_its_end_is_removed(cache, entry):
    folder = cache.partial_folder(entry.key)
    folder.mkdir()
    (folder / JOURNAL).write_bytes(b"")
    assert cache.partials() == [(folder, False)]
    assert cache.find(entry.key) == entry
    assert cache.partials() == []


def test_progress_next_to_a_complete_entry_is_kept(cache, entry):
    """A set with unreadable images that became readable is extracted again while the old entry exists."""
    folder = cache.partial_folder(entry.key)
    create(folder, Plan(recipe=SPEC, rows=5, row_shape=(4,), chunk_rows=2))
    assert cache.find(entry.key) == entry
    assert cache.partials() == [(folder, True)]


@pytest.mark.parametrize("kind", ["file", "dangling link", "link to itself"])
def test_root_that_is_no_folder_is_not_an_empty_cache(kind, tmp_path):
    root = tmp_path / "cache"
    if kind == "file":
        root.write_text("")
    else:
        root.symlink_to(root if kind == "link to itself" else tmp_path / "absent")
    cache = FeatureCache(root)
    for call in (lambda: list(cache.entries()), cache.partials, cache.runs):
        with pytest.raises(CacheError, match=f"{root} cannot be read"):
            call()
    assert list(FeatureCache(tmp_path / "not yet").entries()) == []


def test_manifest_of_earlier_versions_is_read(tmp_path):
    """The text that json.dumps writes, with sorted names."""
    entry = tmp_path / key_of(SPEC)
    entry.mkdir()
    (entry / INDEX).write_bytes(bytes(10 + 4 * 4))
    about = {"arch": "a", "weights": "w", "data": "d", "split": "all", "device": "cpu"}
    write_manifest(
        entry,
        Manifest(
            recipe=SPEC,
            rows=2,
            row_shape=(2,),
            chunk_rows=4,
            header_bytes=10,
            header_crc32=crc32_of(entry / INDEX, 0, 10),
            crc32=[crc32_of(entry / INDEX, 10, 16)],
            bad=[],
            about=about,
            created="2026-01-01T00:00:00+0000",
        ),
    )
    body = json.dumps(json.loads((entry / MANIFEST).read_bytes().rpartition(b"\n")[0]), sort_keys=True).encode()
    (entry / MANIFEST).write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
    assert FeatureCache(tmp_path).find(entry.name).manifest.about == about


def test_unreadable_entries_are_listed(call, cache, entry):
    for name in ("0" * 32, f"{'1' * 32}.partial"):
        (cache.root / name).write_text("")
    Path(entry.folder / INDEX).unlink()
    code, out, _ = call("cache", "list", "--cache", cache.root)
    assert (code, out.count("corrupted"), out.count("left behind")) == (0, 2, 1)
    code, out, _ = call("cache", "verify", "--cache", cache.root)
    assert (code, out.count("corrupted")) == (1, 2)
    code, out, _ = call("cache", "prune", "--cache", cache.root)
    assert (code, out.count("deleted")) == (0, 3)


@pytest.mark.parametrize("command", [["list"], ["verify"], ["prune"], ["prune", "--all"]])
def test_root_that_is_a_file_is_one_paragraph(call, command, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("cache", *command, "--cache", tmp_path / "file")
    assert (code, err.count("\n"), f"{tmp_path / 'file'} cannot be read" in err) == (2, 1, True)
