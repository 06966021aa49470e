"""ImageNet as it is downloaded, with three classes."""

from __future__ import annotations

import subprocess
import tarfile

import numpy as np
import pytest
from factories import synthetic_images
from scipy.io import savemat

from dinoeval.data.opening import open_splits
from dinoeval.errors import DataError

SYNSETS = ("n01440764", "n01443537", "n01484850")
LABELS = (2, 0, 1, 1, 2)  # of the validation images
NUMBERS = {2: 1, 0: 2, 1: 3}  # ILSVRC2012_ID by class: not in sorted order
VAL_NAMES = tuple(f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 6))


@pytest.fixture
def root(tmp_path):
    """Class folders for training, and a flat folder of validation images."""
    images = iter(synthetic_images(11))
    for name in [f"train/{synset}/{synset}_{number}.JPEG" for synset in SYNSETS for number in range(2)] + [
        f"val/{name}" for name in VAL_NAMES
    ]:
        path = tmp_path / "imagenet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        next(images).save(path, "JPEG")
    return tmp_path / "imagenet"


def kaggle(root):
    lines = [f"{name[:-5]},{SYNSETS[label]} 1 2 3 4 " for name, label in zip(VAL_NAMES, LABELS, strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))


def devkit(root):
    folder = root / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{NUMBERS[label]}\n" for label in LABELS))
    rows = np.zeros(3, [("ILSVRC2012_ID", object), ("WNID", object)])
    for row, (label, number) in zip(rows, NUMBERS.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"] = np.uint16(number), SYNSETS[label]
    savemat(folder / "meta.mat", {"synsets": rows})


def synset_list(root):
    (root / "val/imagenet_2012_validation_synset_labels.txt").write_text("\n".join(SYNSETS[label] for label in LABELS))


@pytest.mark.parametrize("write", [kaggle, devkit, synset_list])
def test_flat_validation_images_are_read_with_their_list(root, write):
    write(root)
    train, val = open_splits(str(root))
    assert (train.classes, val.classes) == (SYNSETS, SYNSETS)
    assert (val.paths, val.labels.tolist()) == (VAL_NAMES, list(LABELS))
    assert not any("not used" in note for note in train.notes)


def test_list_that_does_not_fit_raises(root):
    synset_list(root)
    (root / "val" / VAL_NAMES[0]).unlink()
    with pytest.raises(DataError, match=r"synset_labels\.txt has 5 labels for 4 images"):
        open_splits(str(root))
    kaggle(root)  # has names, so that a part of the images is enough
    assert open_splits(str(root))[1].labels.tolist() == list(LABELS[1:])


def test_flat_validation_images_without_list_name_what_is_needed(root):
    with pytest.raises(DataError, match=r"5 images but no class folders.*ILSVRC2012_devkit_t12.*LOC_val_solution\.csv"):
        open_splits(str(root))


def test_layout_of_kaggle_is_found(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path / "data"))
    inner = tmp_path / "data/imagenet/ILSVRC/Data/CLS-LOC"
    inner.parent.mkdir(parents=True)
    root.rename(inner)
    kaggle(tmp_path / "data/imagenet")
    for data in ("imagenet", str(tmp_path / "data/imagenet"), str(inner)):
        assert open_splits(data)[1].labels.tolist() == list(LABELS)


def test_printed_commands_unpack_the_archives(root, tmp_path):
    """The archives contain one archive per class, and a flat folder of validation images."""
    downloads = tmp_path / "my downloads"
    downloads.mkdir()
    for synset in SYNSETS:
        with tarfile.open(tmp_path / f"{synset}.tar", "w") as archive:
            for path in sorted((root / "train" / synset).iterdir()):
                archive.add(path, path.name)
    with tarfile.open(downloads / "ILSVRC2012_img_train.tar", "w") as archive:
        for synset in SYNSETS:
            archive.add(tmp_path / f"{synset}.tar", f"{synset}.tar")
    with tarfile.open(downloads / "ILSVRC2012_img_val.tar", "w") as archive:
        for name in VAL_NAMES:
            archive.add(root / "val" / name, name)
    devkit(tmp_path)
    with tarfile.open(downloads / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    with pytest.raises(DataError) as raised:
        open_splits(str(downloads))
    command = str(raised.value).partition("run: ")[2].partition(". The labels")[0]
    subprocess.run(["sh", "-c", command], check=True)
    train, val = open_splits(str(downloads))
    assert (len(train), train.classes, val.labels.tolist()) == (6, SYNSETS, list(LABELS))


def test_class_archives_in_train_are_named(root):
    for synset in SYNSETS:
        with tarfile.open(root / f"train/{synset}.tar", "w") as archive:
            archive.add(root / "train" / synset, synset)
        for path in (root / "train" / synset).iterdir():
            path.unlink()
        (root / "train" / synset).rmdir()
    with pytest.raises(DataError, match=r"for f in train/\*\.tar"):
        open_splits(str(root))
