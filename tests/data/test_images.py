from __future__ import annotations

import dataclasses
import errno
import io

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.data import readers
from dinoeval.data.images import ImageSet, in_memory, require_classes
from dinoeval.data.opening import open_images
from dinoeval.errors import BadImage, DataError


def labeled(labels: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    return dataclasses.replace(in_memory(synthetic_images(len(labels))), labels=labels, classes=classes, name="synthetic", split="train")


@pytest.mark.parametrize("content", [b"this is text", b"", b"\xff\xd8\xff\xe0 not a JPEG file"])
def test_files_that_are_not_images_are_bad_images(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImage):
        open_images(tmp_path).open(0)


def test_truncated_images_are_bad_images(tmp_path):
    synthetic_images(1, (200, 200))[0].save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="truncated"):
        open_images(tmp_path).open(0)


def test_deleted_files_are_bad_images(tmp_path):
    synthetic_images(1)[0].save(tmp_path / "x.png")
    images = open_images(tmp_path)
    (tmp_path / "x.png").unlink()
    with pytest.raises(BadImage, match="No such file"):
        images.open(0)


def test_disk_errors_are_not_bad_images():
    def reader(row: int) -> bytes:
        raise OSError(5, "Input/output error")

    images = dataclasses.replace(in_memory(synthetic_images(1)), reader=reader)
    for use in (lambda: images.open(0), images.remarks, lambda: images.content(0)):
        with pytest.raises(DataError, match=r"00000 .*Input/output error"):
            use()


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "gif"])
@pytest.mark.parametrize("reads", range(6))
def test_remarks_report_a_disk_that_fails_after_some_reads(tmp_path, monkeypatch, kind, reads):
    """A TIFF file ends its tags at an error, and EXIF data with an error count as absent."""

    class Failing(io.FileIO):
        left = reads

        def readinto(self, buffer) -> int:
            if not self.left:
                raise OSError(errno.EIO, "Input/output error")
            self.left -= 1
            return super().readinto(memoryview(buffer)[:16]) or 0

        def readall(self) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    exif = Image.Exif()
    exif[0x0112] = 6
    synthetic_images(1, (64, 64))[0].save(tmp_path / f"x.{kind}", exif=exif)
    images = open_images(tmp_path)
    monkeypatch.setattr(readers, "open_file", lambda path: io.BufferedReader(Failing(path), 16))
    with pytest.raises(DataError, match=rf"x\.{kind} .*Input/output error"):
        images.remarks()


def test_files_that_do_not_exist_have_no_remarks(tmp_path):
    for name in ("loop.png", "gone.png"):
        (tmp_path / name).symlink_to(tmp_path / "loop.png" if name == "loop.png" else "nowhere")
    synthetic_images(1)[0].save(tmp_path / "x.png")
    assert open_images(tmp_path).remarks() == {}


def test_fingerprint_depends_on_every_multi_label():
    zero = np.zeros((3, 2), np.int8)
    labels = [zero, *(zero.copy() for _ in range(2))]
    labels[1][1, 0], labels[2][1, 0] = 1, -1
    assert len({labeled(each, ("a", "b")).fingerprint() for each in labels}) == 3
    # The same bytes have opposite meanings: all images are of the only class, no image is.
    assert labeled(np.zeros(3, np.int64), ("a",)).fingerprint() != labeled(np.zeros((3, 1), np.int8), ("a",)).fingerprint()


def test_require_classes_counts_classes_with_images():
    one = labeled(np.array([1, 1, 1]), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"synthetic \(train\).*2 needed, found b"):
        require_classes(one)
    require_classes(one, at_least=1)
    require_classes(labeled(np.array([1, 0, 1]), ("a", "b", "c")))


def test_require_classes_does_not_count_difficult_labels():
    images = labeled(np.array([[0, 1], [-1, 1]], np.int8), ("a", "b"))
    with pytest.raises(DataError, match="2 needed, found b"):
        require_classes(images)


def test_require_classes_raises_without_labels():
    with pytest.raises(DataError, match=r"memory \(all\) has no labels"):
        require_classes(in_memory(synthetic_images(1)))
