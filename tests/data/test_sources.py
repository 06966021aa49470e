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

from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_splits
from dinoeval.data.published_lists import VOC_CLASSES
from dinoeval.data.sources import NAMES
from dinoeval.errors import DataError
from dinoeval.results import Result


@pytest.fixture
def data(monkeypatch, tmp_path) -> Path:
    """The folder of named sets."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    return tmp_path


def test_digits_are_there_without_a_network():
    train, val = open_splits("digits")
    assert (len(train), len(val), train.classes) == (1348, 449, tuple("0123456789"))
    assert train.open(0).size == (8, 8)
    # Other values would void every cached feature and make recorded Results those of other data.
    assert (train.fingerprint(), val.fingerprint()) == ("2c4f27ea0c68da0c", "81be5ce7eefef253")
    assert (train.stamp, val.stamp) == ("53d428d525c630b8", "0577914d6a7a1ccf")


def test_named_sets_say_where_they_are_looked_for(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"\$DINOEVAL_DATA/cifar10"):
        open_splits("cifar10")
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/imagenet/train"):
        open_splits("imagenet")
    with pytest.raises(DataError, match=f"is not in {tmp_path}/cifar10 and DINOEVAL_OFFLINE is set"):
        open_splits("cifar10")
    class_folders(tmp_path / "cifar10", val_name="test")
    assert len(open_splits("cifar10")[0]) == 24


def test_cifars_own_files_are_read_through_torchvision(monkeypatch, tmp_path):
    """The published layout with made-up pixels, whose hashes torchvision is told."""
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


def kinds(images: ImageSet) -> list[str]:
    """The name of each image's class."""
    return [images.classes[label] for label in images.labels]


@pytest.mark.parametrize("year", [2018, 2019])
def test_inaturalist_is_read_from_its_lists(data, year):
    inat_tree(data / f"inat{year - 2000}", year)
    train, val = open_splits(f"inat{year - 2000}")
    assert (len(train), len(val), train.split, val.split) == (18, 6, "train", "val")
    assert train.classes == ("Quercus robur", "Amanita muscaria", "Parus major")  # by id: 3, 5, 7
    folders = {"Quercus robur": "Plantae/3", "Amanita muscaria": "Fungi/5", "Parus major": "Aves/7"}
    for half in (train, val):
        assert [path.removeprefix(f"train_val{year}/").rpartition("/")[0] for path in half.paths] == [folders[kind] for kind in kinds(half)]
    assert train.open(17).size == (20, 24)


def test_inaturalists_lists_that_do_not_fit(data):
    root = inat_tree(data / "inat18", 2018)
    table = root / "val2018.json"
    whole = json.loads(table.read_text())
    for change, said in (
        (lambda content: content["annotations"].pop(), "val2018.json does not hold images.*KeyError"),
        (lambda content: content.pop("annotations"), "KeyError.*annotations"),  # as in the lists of test images
        (lambda content: content["images"][0].update(file_name="train_val2018/none.jpg"), "no image .*none.jpg, which inat18 names"),
        (lambda content: content["categories"][0].update(id=1), "KeyError"),
        (lambda content: content["categories"][0].update(name="Pica pica"), "only in train: Parus major; only in val: Pica pica"),
        (lambda content: content.update(images=[]), r"inat18 \(val\) names no image"),
    ):
        content = json.loads(json.dumps(whole))
        change(content)
        table.write_text(json.dumps(content))
        with pytest.raises(DataError, match=said):
            open_splits("inat18")
    table.write_text(json.dumps(whole)[:-9])
    with pytest.raises(DataError, match=r"val2018.json does not hold images.*JSONDecodeError"):
        open_splits("inat18")


def test_voc07_has_several_labels_and_leaves_difficult_ones_out(data):
    marks = voc07_tree(data / "voc07")
    train, test = open_splits("voc07")
    assert (train.multi_label, train.classes, len(train), len(test)) == (True, VOC_CLASSES, 5, 4)
    assert (train.split, test.split, test.paths[0]) == ("trainval", "test", "000006.jpg")
    ours = {1: 1, -1: 0, 0: -1}
    for half in (train, test):
        assert half.labels.tolist() == [[ours[mark] for mark in row] for row in marks[half.split].tolist()]
    assert {-1, 0, 1} == set(train.labels.ravel().tolist())
    assert test.open(0).size == (20, 24)


def test_voc07_is_downloaded_where_it_may_be(data, monkeypatch, tmp_path_factory):
    """Both archives come from where torchvision says: here a server of our own, and their hashes are left alone."""
    source = tmp_path_factory.mktemp("oxford")
    voc07_tree(source)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=source))
    Thread(target=server.serve_forever, daemon=True).start()
    oxford = f"http://127.0.0.1:{server.server_port}"
    for key, split in (("2007", "trainval"), ("2007-test", "test")):
        names = {path.stem for path in source.rglob("*.jpg") if (path.stem <= "000005") == (split == "trainval")}
        with tarfile.open(source / f"{split}.tar", "w") as archive:
            for path in sorted(source.rglob("VOCdevkit/**/*.*")):
                if path.stem in names or path.stem.endswith(split):
                    archive.add(path, path.relative_to(source))
        facts = {"url": f"{oxford}/{split}.tar", "filename": f"{split}.tar", "md5": None, "base_dir": "VOCdevkit/VOC2007"}
        monkeypatch.setitem(datasets.voc.DATASET_YEAR_DICT, key, facts)
    with pytest.raises(DataError, match=r"voc07 and DINOEVAL_OFFLINE is set\. Put VOCdevkit/VOC2007/ of trainval and of test"):
        open_splits("voc07")
    monkeypatch.setenv("DINOEVAL_OFFLINE", "0")
    train, test = open_splits("voc07")
    assert (len(train), len(test), test.open(3).size) == (5, 4, (20, 24))
    (source / "test.tar").unlink()
    (data / "voc07/test.tar").unlink()
    for path in (data / "voc07/VOCdevkit").rglob("*_test.txt"):
        path.unlink()
    (data / "voc07/VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    with pytest.raises(DataError, match=rf"data set 'voc07' could not be downloaded from {oxford}/test.tar: HTTP Error 404.*Put VOCdevkit"):
        open_splits("voc07")
    server.shutdown()
    server.server_close()


def test_voc07_lists_that_do_not_fit(data):
    voc07_tree(data / "voc07")
    table = data / "voc07/VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt"
    whole = table.read_text()
    for content, said in (
        (whole.replace("000006", "000007", 1), "cat_test.txt in .* lists other images than aeroplane_test.txt"),
        (whole + "000009\n", "cat_test.txt, line 5: a name and a number are wanted"),
        (whole[:-3] + " 2\n", "other marks than 1, 0 and -1"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            open_splits("voc07")
    table.unlink()
    with pytest.raises(DataError, match=r"cat_test.txt cannot be read: No such file"):
        open_splits("voc07")


def test_cars_are_read_through_torchvision(data):
    root = cars_tree(data / "cars")
    train, test = open_splits("cars")
    assert (len(train), len(test), len(train.classes), test.split) == (12, 6, 3, "test")
    assert kinds(train)[:3] == ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "Acura RL Sedan 2012"]
    assert test.paths[:2] == ("stanford_cars/cars_test/00001.jpg", "stanford_cars/cars_test/00002.jpg")
    assert train.open(0).size == (20, 24)
    table = root / "stanford_cars/cars_test_annos_withlabels.mat"
    whole = table.read_bytes()
    savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(["one", "two"], object)})
    with pytest.raises(DataError, match=r"cars \(train\) has class numbers from 0 to 2; its 2 classes count from 0"):
        open_splits("cars")
    for content in (b"", b"no file of MATLAB's", whole[: len(whole) // 2]):
        table.write_bytes(content)
        with pytest.raises(DataError, match="its test half cannot be read"):
            open_splits("cars")


def test_flowers_train_on_train_and_val_together(data, monkeypatch):
    flowers_tree(data / "flowers102")
    files = {part: (file, None) for part, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    train, test = open_splits("flowers102")
    assert train.paths == ("image_00004.jpg", "image_00006.jpg", "image_00001.jpg", "image_00003.jpg")
    assert (kinds(train), kinds(test), len(train.classes)) == (["000", "101", "076", "101"], ["076", "000"], 102)
    assert train.open(0).size == (20, 24)


@pytest.mark.parametrize("small", [False, True])
def test_places365_is_read_through_torchvision(data, monkeypatch, small):
    """The published layout with made-up scenes, whose hashes torchvision is told to leave alone."""
    places365_tree(data / "places365", small=small)
    with pytest.raises(DataError, match=r"categories_places365.txt does not exist or is corrupted\. It is not downloaded"):
        open_splits("places365")
    monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", ("categories_places365.txt", None))
    lists = {split: (file, None) for split, (file, _) in datasets.Places365._FILE_LIST_META.items()}
    monkeypatch.setattr(datasets.Places365, "_FILE_LIST_META", lists)
    train, val = open_splits("places365")
    size = "256" if small else "large"
    assert (len(train), len(val), train.split, val.split) == (9, 6, "train-standard", "val")
    assert (train.paths[-1], val.paths[0]) == (f"data_{size}_standard/z/zen_garden/00000003.jpg", f"val_{size}/Places365_val_00000001.jpg")
    assert (kinds(train)[::3], val.labels.tolist()) == (["/a/airfield", "/c/church/outdoor", "/z/zen_garden"], [0, 1, 2, 0, 1, 2])
    assert val.open(5).size == (20, 24)
    (data / f"places365/val_{size}").rename(data / "places365/elsewhere")
    with pytest.raises(DataError, match=f"there is no .*/places365/val_{size}. It is not downloaded.*data_256_standard/ and val_256/"):
        open_splits("places365")


@pytest.mark.parametrize("unpacked", [True, False])
def test_places205_is_read_from_its_lists(data, unpacked):
    places205_tree(data / "places205", unpacked=unpacked)
    train, val = open_splits("places205")
    assert (len(train), len(val), len(train.classes)) == (9, 6, 205)
    assert (train.labels.tolist()[::3], val.paths[-1]) == ([0, 1, 204], "y/yard/gsun_val1.jpg")
    assert val.open(0).size == (20, 24)
    table = next(data.rglob("val_places205.csv"))
    whole = table.read_text()
    for content, said in (
        (
            f"\n{whole}a/abbey/x.jpg\n",
            r"val_places205.csv, line 8: a name and a number are wanted, such as 'a/b.jpg 7', not 'a/abbey/x.jpg'",
        ),
        (whole.replace(" 204", " 205"), r"places205 \(val\) has class numbers from 0 to 205; its 205 classes count from 0"),
        ("\n", r"places205 \(val\) names no image"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            open_splits("places205")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_an_absent_set_says_where_its_files_go_and_class_folders_are_taken_instead(data, name):
    with pytest.raises(DataError, match=f"{data}/{name}") as caught:
        open_splits(name)
    home = {"voc07": "host.robots.ox.ac.uk", "cars": "stanford.edu", "places205": "csail.mit.edu", "places365": "csail.mit.edu"}
    files = {"voc07": "VOCdevkit/VOC2007", "cars": "cars_test_annos_withlabels.mat", "inat18": "val2018.json", "inat19": "train_val2019/"}
    assert home.get(name, "") in str(caught.value)
    assert files.get(name, "train") in str(caught.value)
    class_folders(data / name, train=1, val=1)
    assert open_splits(name)[0].classes == ("class0", "class1", "class2")


def test_knn_scores_a_named_set_from_the_command_line(data, tiny_weights, tmp_path):
    inat_tree(data / "inat18", 2018)
    words = ["knn", "--weights", tiny_weights, "--data", "inat18", "--k", "3", "--json", tmp_path / "r.json"]
    done = subprocess.run([sys.executable, "-m", "dinoeval", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "knn@1 on inat18 (18 train, 6 val, 3 classes)" in done.stdout
    result = Result.load(tmp_path / "r.json")
    assert result.samples["label"] == [2, 0, 1, 2, 0, 1]
    assert result.metrics["top1@3"] == 100.0  # a species has its own colours
