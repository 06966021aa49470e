from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from segmentation_factories import SIZES, masked_folder, synthetic_mask, voc_tree

from dinoeval.data.masks import VOID, write_mask
from dinoeval.data.segmentation_sets import object_labels, open_segmentation
from dinoeval.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return masked_folder(tmp_path / "set")


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_any_of_its_folders(tmp_path, inside):
    opened = open_segmentation(voc_tree(tmp_path) / inside)
    assert opened.voc
    assert opened.images.paths == tuple(f"JPEGImages/2007_00000{number}.jpg" for number in (3, 2, 1))  # in the order of the list
    for row, size in enumerate(SIZES):
        np.testing.assert_array_equal(opened.read_mask(row), synthetic_mask(size, (1, 2), row))
        assert opened.images.open(row).size == size


def test_voc_has_instance_masks_and_class_masks(tmp_path):
    root = voc_tree(tmp_path)
    assert [object_labels(open_segmentation(root, kind).read_mask(0)).tolist() for kind in ("instance", "class")] == [[1, 2], [15]]
    for path in (root / "VOCdevkit/VOC2012/SegmentationObject").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"SegmentationObject/2007_000003\.png"):
        open_segmentation(root)
    (root / "VOCdevkit/VOC2012/SegmentationObject").rmdir()
    with pytest.raises(DataError, match="SegmentationObject/"):
        open_segmentation(root)
    assert len(open_segmentation(root, "class").images) == 3


def test_images_and_masks_of_equal_names_are_paired(folder):
    (folder / "images/deep").mkdir()
    (folder / "masks/deep").mkdir()
    Image.open(folder / "images/0.jpg").save(folder / "images/deep/0.png")
    write_mask(folder / "masks/deep/0.png", synthetic_mask(SIZES[0], (7,), 5))
    Image.fromarray(synthetic_mask(SIZES[0], (3,), 6)).save(folder / "masks/without image.png")
    opened = open_segmentation(folder)
    assert not opened.voc
    found = {path: object_labels(opened.read_mask(row)).tolist() for row, path in enumerate(opened.images.paths)}
    assert found == {"0.jpg": [1, 2], "1.jpg": [1, 2], "2.jpg": [1, 2], "deep/0.png": [7]}
    assert opened.unmatched_masks == ("without image.png",)


def test_binary_and_labeled_masks_cannot_be_mixed(folder):
    Image.fromarray((synthetic_mask(SIZES[1], (1,), 1) == 1).astype(np.uint8) * 255).save(folder / "masks/1.png")
    with pytest.raises(DataError, match=r"binary masks \(1\.png\).*labels \(0\.png, 2\.png\)"):
        open_segmentation(folder)


def test_binary_masks_have_one_object(folder):
    for row, size in enumerate(SIZES):
        mask = synthetic_mask(size, (1,), row) == 1
        Image.fromarray(mask.astype(np.uint8) * 255).convert("1" if row else "L").save(folder / f"masks/{row}.png")
    opened = open_segmentation(folder)
    assert [object_labels(opened.read_mask(row)).tolist() for row in range(3)] == [[1], [1], [1]]


def test_images_without_object_are_left_out(folder):
    write_mask(folder / "masks/1.png", np.where(synthetic_mask(SIZES[1], (1,), 0) > 0, VOID, 0).astype(np.uint8))
    opened = open_segmentation(folder)
    assert opened.images.paths == ("0.jpg", "2.jpg")
    assert opened.masks.paths == ("0.png", "2.png")
    assert opened.empty == ("1.jpg",)
    for row in (0, 2):
        write_mask(folder / f"masks/{row}.png", np.zeros(SIZES[row][::-1], np.uint8))
    with pytest.raises(DataError, match=r"no usable image of .*set has an object"):
        open_segmentation(folder)


def test_gray_cmyk_and_animated_images_become_rgb(folder):
    Image.open(folder / "images/0.jpg").convert("L").save(folder / "images/0.jpg")
    Image.open(folder / "images/1.jpg").convert("CMYK").save(folder / "images/1.jpg")
    frames = [Image.open(folder / "images/2.jpg").copy() for _ in range(2)]
    (folder / "images/2.jpg").unlink()
    frames[0].save(folder / "images/2.webp", save_all=True, append_images=frames[1:])
    opened = open_segmentation(folder)
    assert [opened.images.open(row).mode for row in range(3)] == ["RGB"] * 3


def rotated_exif(folder):
    """Rotate an image by its EXIF orientation only, and the pixels of its mask."""
    image = Image.open(folder / "images/0.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "images/0.jpg", exif=exif)
    write_mask(folder / "masks/0.png", np.rot90(synthetic_mask(SIZES[0], (1,), 0)).copy())


def other_size(folder):
    write_mask(folder / "masks/1.png", synthetic_mask((40, 40), (1,), 0))


def photo_as_mask(folder):
    Image.open(folder / "images/2.jpg").save(folder / "masks/2.png")


def sixteen_bits(folder):
    Image.fromarray(synthetic_mask(SIZES[2], (1,), 0).astype(np.uint16) * 100).save(folder / "masks/2.png")


def broken_mask(folder):
    (folder / "masks/2.png").write_bytes((folder / "masks/2.png").read_bytes()[:60])


def missing_mask(folder):
    (folder / "masks/1.png").unlink()


def ambiguous_name(folder):
    Image.open(folder / "images/1.jpg").save(folder / "images/1.png")


ERRORS = {
    rotated_exif: r"mask 0\.png has 50 x 75 pixels, its image 0\.jpg 75 x 50 without applying its EXIF orientation",
    other_size: r"mask 1\.png has 40 x 40 pixels, its image 1\.jpg 50 x 66$",
    photo_as_mask: r"2\.png has \d+ colors",
    sixteen_bits: r"2\.png has labels from 0 to 25500",
    broken_mask: r"2\.png",
    missing_mask: r"1 of 3 images .*masks/: 1\.jpg",
    ambiguous_name: r"1\.jpg and 1\.png",
}


@pytest.mark.parametrize("corrupt", ERRORS, ids=lambda corrupt: corrupt.__name__)
def test_masks_that_do_not_fit_their_image_raise(folder, corrupt):
    corrupt(folder)
    with pytest.raises(DataError, match=ERRORS[corrupt]):
        open_segmentation(folder, skip_bad=True)


def test_unusable_images_raise_or_are_skipped(folder):
    (folder / "images/0.jpg").write_bytes(b"text")
    Image.open(folder / "images/1.jpg").crop((0, 0, 50, 7)).save(folder / "images/1.jpg")
    write_mask(folder / "masks/1.png", np.ones((7, 50), np.uint8))
    with pytest.raises(DataError, match=r"2 of 3 images .*0\.jpg \(unsupported.*1\.jpg \(50 x 7 pixels.* 8\).*--bad-images skip"):
        open_segmentation(folder, min_side=8)
    opened = open_segmentation(folder, min_side=8, skip_bad=True)
    assert opened.images.paths == ("2.jpg",)
    assert [bad["path"] for bad in opened.bad] == ["0.jpg", "1.jpg"]


def test_other_folders_raise(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"images/ and masks/.*photos"):
        open_segmentation(tmp_path)
    with pytest.raises(DataError, match=r"nowhere.*nothing"):
        open_segmentation(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="images contains no image"):
        open_segmentation(tmp_path)
    voc = voc_tree(tmp_path / "voc") / "VOCdevkit/VOC2012"
    (voc / "ImageSets/Segmentation/val.txt").write_text("")
    with pytest.raises(DataError, match=r"val\.txt lists no image"):
        open_segmentation(voc)
