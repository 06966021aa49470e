"""The calibration of the threshold of duplicates, on synthetic photographs with known duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval import search
from dinoeval.errors import DinoevalError
from dinoeval.search.pixels import SmallVersions, correlate, same_picture_limit
from dinoeval.search.threshold import CopyRecall, choose_threshold, make_copies


def photographs(count: int) -> list[Image.Image]:
    """Smooth images with structure at several scales, of 96 x 72 pixels."""
    random = np.random.default_rng(1)
    images = []
    for _ in range(count):
        pixels = np.zeros((72, 96, 3))
        for cells in (3, 6, 12, 24):
            coarse = Image.fromarray(random.integers(0, 256, (cells, cells * 4 // 3, 3), np.uint8))
            pixels += np.asarray(coarse.resize((96, 72), Image.Resampling.BICUBIC), float) / cells**0.5
        images.append(Image.fromarray(np.uint8(255 * (pixels - pixels.min()) / np.ptp(pixels))))
    return images


def crop(image: Image.Image) -> Image.Image:
    return image.crop((2, 2, 94, 70))


def test_copies_are_reencoded_downscaled_and_cropped():
    image = synthetic_images(1, (400, 200))[0]
    copies = make_copies(image)
    assert [copy.size for copy in copies] == [(400, 200), (400, 200), (200, 100), (380, 190)]
    pixels = [np.asarray(one, np.int16) for one in (image, *copies)]
    errors = [np.abs(one - pixels[0]).mean() for one in pixels[1:3]]
    assert 0 < errors[0] < errors[1] < 20
    np.testing.assert_array_equal(pixels[4], pixels[0][5:195, 10:390])
    assert [copy.size for copy in make_copies(Image.new("RGB", (1, 3)))] == [(1, 3), (1, 3), (1, 1), (1, 3)]


def test_threshold_is_midway_between_copies_and_others():
    assert choose_threshold(np.array([0.99, 0.98, 1.0]), np.array([0.5, 0.9, 0.94])) == 0.96


def test_threshold_prefers_missed_over_false_duplicates():
    """F0.25 at 0.9: recall 1, precision 1/1.5, 0.68. At 0.99: recall 0.75, precision 1, 0.981. At 0.995: 0.5, 1, 0.944."""
    assert choose_threshold(np.array([0.9, 0.99, 0.995, 1.0]), np.array([0.2, 0.3, 0.95, 0.97])) == 0.98


def test_threshold_without_other_images_accepts_all_copies():
    assert choose_threshold(np.array([0.9, 0.95]), np.empty(0)) == pytest.approx(0.9, abs=1e-5)


def test_recall_interval_is_wilsons():
    """By hand for 8 of 10 and z = 1.96: center 0.8 + 0.19208 = 0.99208, half width 0.31349, both divided by 1.38416."""
    low, high = CopyRecall("crop", found=8, copies=10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert CopyRecall("crop", found=5, copies=5).interval == (pytest.approx(0.5655, abs=1e-4), 1.0)
    assert CopyRecall("crop", found=0, copies=5).interval[0] == 0


COPIES = {
    "JPEG 30": lambda image, path: image.save(f"{path}.jpg", quality=30),
    "crop": lambda image, path: crop(image).save(f"{path}.png"),
    "gray": lambda image, path: image.convert("L").save(f"{path}.png"),
    "brighter": lambda image, path: image.point(lambda value: min(255, round(value * 1.1))).save(f"{path}.png"),
    "logo": lambda image, path: (logo := image.copy(), logo.paste("white", (50, 60, 90, 70)), logo.save(f"{path}.png")),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_the_same_picture_and_others_are_not(tmp_path, kind):
    originals = photographs(5)
    small = [SmallVersions.of(image) for image in originals]
    limit = same_picture_limit(small)
    for row, image in enumerate(originals):
        COPIES[kind](image, tmp_path / str(row))
        (path,) = tmp_path.glob(f"{row}.*")
        copy = SmallVersions.of(Image.open(path).convert("RGB"))
        same = [correlate(copy, one) >= limit for one in small]
        assert same == [other == row for other in range(5)], [round(correlate(copy, one), 3) for one in small]


def test_flat_images_of_different_colors_are_different_pictures():
    colors = {name: SmallVersions.of(Image.new("RGB", (40, 30), name)) for name in ("red", "blue", "white", "gray")}
    assert correlate(colors["red"], colors["red"]) == pytest.approx(1)
    assert correlate(colors["red"], colors["blue"]) < 0.5
    assert correlate(colors["white"], colors["gray"]) < 0.5


def test_limit_rises_if_all_images_resemble_each_other():
    """Images of one fixed camera: all have the same background, and a small object elsewhere."""
    background = np.asarray(photographs(1)[0])
    frames = []
    for number in range(8):
        frame = background.copy()
        frame[40:60, 10 * number : 10 * number + 14] = (250, 20, 20)
        frames.append(SmallVersions.of(Image.fromarray(frame)))
    assert same_picture_limit(frames) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG 30", "crop"])
def test_threshold_does_not_depend_on_the_share_of_duplicates(tmp_path, backbone, kind):
    """0, 1, 12 or all 24 images have a copy. The distance of the threshold from 1 changes by less than a quarter."""
    originals, distances = photographs(24), []
    for copied in (0, 1, 12, 24):
        folder = tmp_path / f"{copied}"
        folder.mkdir()
        for number, image in enumerate(originals):
            image.save(folder / f"{number:02}.png")
            if number < copied:
                COPIES[kind](image, folder / f"{number:02}-copy")
        index = search.build(folder, tmp_path / f"index{copied}", backbone)
        measured = index.measure_threshold()
        distances.append(1 - measured.cosine)
        groups = [{path.rpartition("/")[2][:2] for path in group.paths} for group in index.duplicates(measured.cosine)]
        found = sum({f"{number:02}"} in groups for number in range(copied))
        assert found >= 0.75 * copied, (copied, found, measured)
    assert max(distances) < 1.25 * np.median(distances)
    assert min(distances) > 0.75 * np.median(distances)


def test_byte_equal_copies_do_not_change_the_threshold(tmp_path, backbone):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(photographs(8)):
        image.save(folder / f"{number}.png")
    before = search.build(folder, tmp_path / "index", backbone).measure_threshold()
    for path in list(folder.iterdir()):
        for number in range(2):
            (folder / f"{number}-{path.name}").write_bytes(path.read_bytes())
    index = search.build(folder, tmp_path / "index", backbone)
    assert index.measure_threshold() == before
    assert [len(group.paths) for group in index.duplicates(before.cosine)] == [3] * 8


def test_reported_recall_is_that_of_copies_added_later(tmp_path, backbone):
    """Every image is cropped as in the report; the share that is listed lies in the interval, or near it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    originals = photographs(24)
    for number, image in enumerate(originals):
        image.save(folder / f"{number:02}.png")
    measured = search.build(folder, tmp_path / "index", backbone).measure_threshold()
    for number, image in enumerate(originals):
        crop(image).save(folder / f"{number:02}-copy.png")
    index = search.build(folder, tmp_path / "index", backbone)
    pairs = [{path.rpartition("/")[2][:2] for path in group.paths} for group in index.duplicates(measured.cosine)]
    listed = sum({f"{number:02}"} in pairs for number in range(24)) / 24
    low, high = next(one for one in measured.recalls if "5%" in one.kind).interval
    assert low - 0.1 <= listed <= high + 0.1


def test_calibration_of_equal_files_asks_for_a_threshold(tmp_path, backbone):
    for name in ("a.png", "b.png"):
        photographs(1)[0].save(tmp_path / name)
    index = search.build(tmp_path, tmp_path / "index", backbone)
    with pytest.raises(DinoevalError, match="--threshold"):
        index.measure_threshold()
    assert [len(group.paths) for group in index.duplicates(0.999)] == [2]
