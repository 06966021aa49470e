"""Every command reads images by one rule, and reports what a reader of its results should know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from PIL import Image

import dinoeval
from dinoeval.data.frames import read_frame
from dinoeval.session import SessionConfig


@pytest.fixture
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DINOEVAL_CACHE", str(tmp_path / "cache"))


def rotated_file(folder: Path, name: str = "rotated.png") -> Image.Image:
    """Write an image whose EXIF orientation says to rotate it by 90 degrees clockwise; return the stored image."""
    image, exif = synthetic_images(1, (24, 16), seed=7)[0], Image.Exif()
    exif[0x0112] = 6
    image.save(folder / name, exif=exif)
    return image


def write_kinds(folder: Path) -> dict[str, np.ndarray]:
    """Write files of several kinds; return the pixels that each must give, by the name of the file."""
    color = np.asarray(synthetic_images(1, (24, 16), seed=3)[0])
    gray = color[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "deep.tif")
    opaque = np.where(gray > 100, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack((color, opaque))).save(folder / "cut.png")
    Image.fromarray(color).save(folder / "video.png", save_all=True, append_images=synthetic_images(2, (24, 16)))
    on_gray = np.repeat(gray[..., None], 3, 2)
    on_white = np.where(opaque[..., None] > 0, color, 255)
    return {
        "deep.png": on_gray,
        "deep.tif": on_gray,
        "cut.png": on_white,
        "video.png": color,
        "rotated.png": np.asarray(rotated_file(folder)),
    }


def test_all_commands_read_the_same_pixels(backbone, tmp_path):
    kinds = write_kinds(tmp_path)
    index = dinoeval.search.build(tmp_path, tmp_path / "index", backbone)
    for name, pixels in kinds.items():
        path, expected = tmp_path / name, Image.fromarray(pixels.astype(np.uint8))
        features = dinoeval.embed(backbone, expected)
        np.testing.assert_array_equal(dinoeval.embed(backbone, path), features)
        np.testing.assert_array_equal(dinoeval.embed(backbone, [Image.open(path), path]), dinoeval.embed(backbone, [expected, expected]))
        np.testing.assert_array_equal(dinoeval.figures.attention(backbone, path, image_size="native").image, pixels)
        np.testing.assert_array_equal(np.asarray(read_frame(path)), pixels)
        assert index.query(expected, k=1)[0].cosines[0] == pytest.approx(1, abs=1e-6)


def test_exif_transpose_means_the_same_in_all_commands(backbone, tmp_path):
    upright = rotated_file(tmp_path).transpose(Image.Transpose.ROTATE_270)
    upright.save(tmp_path / "upright.png")
    path, session = tmp_path / "rotated.png", SessionConfig(exif_transpose=True)
    expected = dinoeval.embed(backbone, upright)
    np.testing.assert_array_equal(dinoeval.embed(backbone, path, exif_transpose=True), expected)
    np.testing.assert_array_equal(dinoeval.embed(backbone, [Image.open(path)], exif_transpose=True), expected)
    image = dinoeval.figures.attention(backbone, path, image_size="native", exif_transpose=True).image
    np.testing.assert_array_equal(image, np.asarray(upright))
    index = dinoeval.search.build(tmp_path, tmp_path / "index", backbone, session=session)
    assert (index.manifest["image"], index.manifest["remarks"]) == ("image@1+exif", {"oriented": ["rotated.png"]})
    reopened = dinoeval.search.open(tmp_path / "index", backbone)
    assert reopened.query(path, k=1)[0].cosines[0] == pytest.approx(1, abs=1e-6)


def test_index_of_another_rule_is_rejected(backbone, tmp_path):
    write_kinds(tmp_path)
    dinoeval.search.build(tmp_path, tmp_path / "index", backbone)
    with pytest.raises(dinoeval.DinoevalError, match=r"--exif-transpose .*image@1, not by image@1\+exif"):
        dinoeval.search.open(tmp_path / "index", backbone, session=SessionConfig(exif_transpose=True))


def test_update_of_an_index_keeps_its_remarks(backbone, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rotated_file(folder, "a.png")
    synthetic_images(1)[0].save(folder / "b.png")
    dinoeval.search.build(folder, tmp_path / "index", backbone)
    rotated_file(folder, "c.png")
    assert dinoeval.search.build(folder, tmp_path / "index", backbone).manifest["remarks"] == {"oriented": ["a.png", "c.png"]}
    (folder / "a.png").unlink()
    assert dinoeval.search.build(folder, tmp_path / "index", backbone).manifest["remarks"] == {"oriented": ["c.png"]}


@pytest.mark.parametrize("exif_transpose", [False, True])
def test_remarks_are_in_the_result_also_from_the_cache(backbone, tmp_path, exif_transpose):
    root = class_folders(tmp_path / "data")
    rotated_file(root / "train/class0")
    frames = synthetic_images(2)
    frames[0].save(root / "val/class1/video.gif", save_all=True, append_images=frames[1:])
    session = SessionConfig(exif_transpose=exif_transpose)
    first, second = (dinoeval.evaluate("knn", backbone, session=session, data=str(root), k=(5,)) for _ in range(2))
    assert first.notes == second.notes
    oriented, several = second.notes[-2:]
    assert oriented.endswith("1 (class0/rotated.png)")
    assert ("not applied" in oriented) != exif_transpose
    assert several.endswith("1 (class1/video.gif)")
    assert second.image_rule == "image@1" + "+exif" * exif_transpose


def test_commands_print_remarks(call, tiny_weights, tmp_path):
    folder, network = tmp_path / "photos", ("--weights", tiny_weights)
    folder.mkdir()
    rotated_file(folder)
    for words in (("embed", folder, "--out", tmp_path / "f.npz"), ("attention", folder, "--out", tmp_path / "maps", "--image-size", "16")):
        code, out, _ = call(*words, *network)
        assert (code, "EXIF" in out, "rotated.png" in out) == (0, True, True)


@pytest.mark.slow
def test_training_images_are_surveyed(backbone, tmp_path):
    root = class_folders(tmp_path / "data")
    rotated_file(root / "train/class0")
    options = {"data": str(root), "preset": "digits", "epochs": 2, "warmup_epochs": 0, "train_batch_size": 8}
    result = dinoeval.evaluate("finetune", backbone, **options)
    assert any(note.endswith("1 (class0/rotated.png)") for note in result.notes)
