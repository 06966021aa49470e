from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
import tarfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from data_factories import cars_tree, flowers_tree, inat_tree, places205_tree, places365_tree, voc07_tree
from factories import class_folders
from scipy.io import savemat
from torchvision import datasets

from dinoeval.data.images import ImageSet, require_files
from dinoeval.data.opening import open_splits
from dinoeval.data.published_lists import VOC_CLASSES
from dinoeval.data.sources import NAMES
from dinoeval.errors import DataError
from dinoeval.results import Result


@pytest.fixture
def data(monkeypatch, tmp_path) -> Path:
    """The folder of named datasets."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    return tmp_path


def test_digits_need_no_files_and_never_change():
    train, val = open_splits("digits")
    assert (len(train), len(val), train.classes) == (1348, 449, tuple("0123456789"))
    assert train.open(0).size == (8, 8)
    # Other values would invalidate cached features and recorded Results.
    assert (train.fingerprint(), val.fingerprint()) == ("2c4f27ea0c68da0c", "81be5ce7eefef253")
    assert (train.stamp, val.stamp) == ("53d428d525c630b8", "0577914d6a7a1ccf")


def test_missing_datasets_name_their_folder(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"\$DINOEVAL_DATA/cifar10"):
        open_splits("cifar10")
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/imagenet/train"):
        open_splits("imagenet")
    with pytest.raises(DataError, match=f"is not in {tmp_path}/cifar10 and DINOEVAL_OFFLINE is set"):
        open_splits("cifar10")
    class_folders(tmp_path / "cifar10", val_name="test")
    assert len(open_splits("cifar10")[0]) == 24


def test_cifar_files_are_read_by_torchvision(monkeypatch, tmp_path):
    """The published layout with random pixels; hashes are not checked."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        content = {"data": random.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{number}" for number in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    train, test = open_splits("cifar10")
    assert (len(train), len(test), train.open(0).size, test.labels.tolist()) == (20, 4, (32, 32), [0, 1, 2, 9])


def class_names(images: ImageSet) -> list[str]:
    """Return the class name of each image."""
    return [images.classes[label] for label in images.labels]


@pytest.mark.parametrize("year", [2018, 2019])
def test_inat_is_read_from_its_lists(data, year):
    inat_tree(data / f"inat{year - 2000}", year)
    train, val = open_splits(f"inat{year - 2000}")
    assert (len(train), len(val), train.split, val.split) == (18, 6, "train", "val")
    assert train.classes == ("Quercus robur", "Amanita muscaria", "Parus major")  # by id: 3, 5, 7
    folders = {"Quercus robur": "Plantae/3", "Amanita muscaria": "Fungi/5", "Parus major": "Aves/7"}
    for images in (train, val):
        found = [path.removeprefix(f"train_val{year}/").rpartition("/")[0] for path in images.paths]
        assert found == [folders[name] for name in class_names(images)]
    assert train.open(17).size == (20, 24)


def test_invalid_inat_lists_raise(data):
    root = inat_tree(data / "inat18", 2018)
    table = root / "val2018.json"
    intact = json.loads(table.read_text())
    for change, mentioned in (
        (lambda content: content["annotations"].pop(), r"val2018\.json.*KeyError"),
        (lambda content: content.pop("annotations"), "KeyError.*annotations"),  # as in lists of test images
        (lambda content: content["categories"][0].update(id=1), "KeyError"),
        (lambda content: content["categories"][0].update(name="Pica pica"), "only in train: Parus major; only in val: Pica pica"),
        (lambda content: content.update(images=[]), r"inat18 \(val\) has no images"),
    ):
        content = json.loads(json.dumps(intact))
        change(content)
        table.write_text(json.dumps(content))
        with pytest.raises(DataError, match=mentioned):
            open_splits("inat18")
    table.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"val2018\.json.*RecursionError"):
        open_splits("inat18")
    missing = json.loads(json.dumps(intact))
    missing["images"][0].update(file_name="train_val2018/none.jpg")
    table.write_text(json.dumps(missing))
    with pytest.raises(DataError, match=r"1 of 6 images of inat18 \(val\).*none\.jpg"):
        require_files(open_splits("inat18")[1])
    table.write_text(json.dumps(intact)[:-9])
    with pytest.raises(DataError, match=r"val2018\.json.*JSONDecodeError"):
        open_splits("inat18")


def test_voc07_is_multi_label_with_difficult_labels(data):
    marks = voc07_tree(data / "voc07")
    train, test = open_splits("voc07")
    assert (train.multi_label, train.classes, len(train), len(test)) == (True, VOC_CLASSES, 5, 4)
    assert (train.split, test.split, test.paths[0]) == ("trainval", "test", "000006.jpg")
    label_of = {1: 1, -1: 0, 0: -1}
    for images in (train, test):
        assert images.labels.tolist() == [[label_of[mark] for mark in row] for row in marks[images.split].tolist()]
    assert {-1, 0, 1} == set(train.labels.ravel().tolist())
    assert test.open(0).size == (20, 24)


def test_voc07_is_downloaded_unless_offline(data, monkeypatch, tmp_path_factory):
    """Both archives come from a local server; hashes are not checked."""
    source = tmp_path_factory.mktemp("server")
    voc07_tree(source)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=source))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for key, split in (("2007", "trainval"), ("2007-test", "test")):
        names = {path.stem for path in source.rglob("*.jpg") if (path.stem <= "000005") == (split == "trainval")}
        with tarfile.open(source / f"{split}.tar", "w") as archive:
            for path in sorted(source.rglob("VOCdevkit/**/*.*")):
                if path.stem in names or path.stem.endswith(split):
                    archive.add(path, path.relative_to(source))
        metadata = {"url": f"{address}/{split}.tar", "filename": f"{split}.tar", "md5": None, "base_dir": "VOCdevkit/VOC2007"}
        monkeypatch.setitem(datasets.voc.DATASET_YEAR_DICT, key, metadata)
    with pytest.raises(DataError, match=r"voc07 and DINOEVAL_OFFLINE.*VOCdevkit/VOC2007/ of trainval and of test"):
        open_splits("voc07")
    monkeypatch.setenv("DINOEVAL_OFFLINE", "0")
    train, test = open_splits("voc07")
    assert (len(train), len(test), test.open(3).size) == (5, 4, (20, 24))
    (source / "test.tar").unlink()
    (data / "voc07/test.tar").unlink()
    for path in (data / "voc07/VOCdevkit").rglob("*_test.txt"):
        path.unlink()
    (data / "voc07/VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    with pytest.raises(DataError, match=rf"'voc07'.*{address}/test\.tar: HTTP Error 404.*VOCdevkit"):
        open_splits("voc07")
    server.shutdown()
    server.server_close()


def test_invalid_voc07_lists_raise(data):
    voc07_tree(data / "voc07")
    table = data / "voc07/VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt"
    intact = table.read_text()
    for content, mentioned in (
        (intact.replace("000006", "000007", 1), r"cat_test\.txt in .*aeroplane_test\.txt"),
        (intact + "000009\n", r"cat_test\.txt, line 5: .*'000009'"),
        (intact[:-3] + " 2\n", "1, 0 and -1"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=mentioned):
            open_splits("voc07")
    table.unlink()
    with pytest.raises(DataError, match=r"cat_test\.txt cannot be read: No such file"):
        open_splits("voc07")


def test_cars_are_read_by_torchvision(data):
    root = cars_tree(data / "cars")
    train, test = open_splits("cars")
    assert (len(train), len(test), len(train.classes), test.split) == (12, 6, 3, "test")
    assert class_names(train)[:3] == ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "Acura RL Sedan 2012"]
    assert test.paths[:2] == ("stanford_cars/cars_test/00001.jpg", "stanford_cars/cars_test/00002.jpg")
    assert train.open(0).size == (20, 24)
    table = root / "stanford_cars/cars_test_annos_withlabels.mat"
    intact = table.read_bytes()
    savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(["one", "two"], object)})
    with pytest.raises(DataError, match=r"cars \(train\) has class numbers 0 to 2, .* 0 to 1"):
        open_splits("cars")
    for content in (b"", b"not a MATLAB file", intact[: len(intact) // 2]):
        table.write_bytes(content)
        with pytest.raises(DataError, match="its test split cannot be read"):
            open_splits("cars")


def test_flowers_train_split_joins_train_and_val(data, monkeypatch):
    flowers_tree(data / "flowers102")
    files = {part: (file, None) for part, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    train, test = open_splits("flowers102")
    assert train.paths == ("image_00004.jpg", "image_00006.jpg", "image_00001.jpg", "image_00003.jpg")
    assert (class_names(train), class_names(test), len(train.classes)) == (["000", "101", "076", "101"], ["076", "000"], 102)
    assert train.open(0).size == (20, 24)


@pytest.mark.parametrize("small", [False, True])
def test_places365_is_read_by_torchvision(data, monkeypatch, small):
    """The published layout with synthetic images; hashes are not checked."""
    places365_tree(data / "places365", small=small)
    with pytest.raises(DataError, match=r"categories_places365\.txt does not exist or is corrupted\."):
        open_splits("places365")
    monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", ("categories_places365.txt", None))
    lists = {split: (file, None) for split, (file, _) in datasets.Places365._FILE_LIST_META.items()}
    monkeypatch.setattr(datasets.Places365, "_FILE_LIST_META", lists)
    train, val = open_splits("places365")
    size = "256" if small else "large"
    assert (len(train), len(val), train.split, val.split) == (9, 6, "train-standard", "val")
    assert (train.paths[-1], val.paths[0]) == (f"data_{size}_standard/z/zen_garden/00000003.jpg", f"val_{size}/Places365_val_00000001.jpg")
    assert (class_names(train)[::3], val.labels.tolist()) == (["/a/airfield", "/c/church/outdoor", "/z/zen_garden"], [0, 1, 2, 0, 1, 2])
    assert val.open(5).size == (20, 24)
    (data / f"places365/val_{size}").rename(data / "places365/elsewhere")
    with pytest.raises(DataError, match=f"/places365/val_{size} does not exist.*data_256_standard/ and val_256/"):
        open_splits("places365")


@pytest.mark.parametrize("unpacked", [True, False])
def test_places205_is_read_from_its_lists(data, unpacked):
    places205_tree(data / "places205", unpacked=unpacked)
    train, val = open_splits("places205")
    assert (len(train), len(val), len(train.classes)) == (9, 6, 205)
    assert (train.labels.tolist()[::3], val.paths[-1]) == ([0, 1, 204], "y/yard/gsun_val1.jpg")
    assert val.open(0).size == (20, 24)
    table = next(data.rglob("val_places205.csv"))
    intact = table.read_text()
    for content, mentioned in (
        (f"\n{intact}a/abbey/x.jpg\n", r"val_places205\.csv, line 8: .*'a/abbey/x\.jpg'"),
        (intact.replace(" 204", " 205"), r"places205 \(val\) has class numbers 0 to 205, .* 0 to 204"),
        ("\n", r"places205 \(val\) has no images"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=mentioned):
            open_splits("places205")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_absent_dataset_lists_its_files(data, name):
    with pytest.raises(DataError, match=f"{data}/{name}") as caught:
        open_splits(name)
    home = {"voc07": "host.robots.ox.ac.uk", "cars": "stanford.edu", "places205": "csail.mit.edu", "places365": "csail.mit.edu"}
    files = {"voc07": "VOCdevkit/VOC2007", "cars": "cars_test_annos_withlabels.mat", "inat18": "val2018.json", "inat19": "train_val2019/"}
    assert home.get(name, "") in str(caught.value)
    assert files.get(name, "train") in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_class_folders_replace_any_dataset(data, name):
    class_folders(data / name, train=1, val=1)
    assert open_splits(name)[0].classes == ("class0", "class1", "class2")


@pytest.mark.slow
def test_knn_command_evaluates_a_named_dataset(data, tiny_weights, tmp_path):
    inat_tree(data / "inat18", 2018)
    words = ["knn", "--weights", tiny_weights, "--data", "inat18", "--k", "3", "--json", tmp_path / "r.json"]
    done = subprocess.run([sys.executable, "-m", "dinoeval", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "knn@1 on inat18 (18 train, 6 val, 3 classes)" in done.stdout
    result = Result.load(tmp_path / "r.json")
    assert result.samples["label"] == [2, 0, 1, 2, 0, 1]
    assert result.metrics["top1@3"] == 100.0  # each species has its own color
