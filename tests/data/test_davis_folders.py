from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from video_factories import davis_tree, synthetic_video

from dinoeval.data.davis import ANNOTATIONS, FRAMES, open_davis
from dinoeval.data.loading import ImageRule
from dinoeval.data.masks import write_mask
from dinoeval.errors import DataError


@pytest.fixture
def root(tmp_path):
    return davis_tree(tmp_path / "DAVIS", {"cat": synthetic_video(4), "dog": synthetic_video(5, (64, 128), objects=1)})


def test_davis_2017_has_labels_per_object(root):
    cat, dog = open_davis(root)
    assert (cat.name, len(cat.frames), cat.size, cat.objects, cat.annotated) == ("cat", 4, (128, 64), 2, True)
    assert (dog.size, dog.objects) == ((64, 128), 1)
    assert [path.name for path in dog.frames] == [f"{number:05d}.jpg" for number in range(5)]
    assert cat.mask_name(2) == "00002.png"
    assert (cat.ground_truth(3) == synthetic_video(4)[3][1]).all()


def test_davis_2016_has_one_object(tmp_path):
    root = davis_tree(tmp_path, {"cat": synthetic_video(3, objects=3)}, year=2016)
    (video,) = open_davis(root)
    assert video.objects == 1
    assert (video.first_mask == (synthetic_video(3, objects=3)[0][1] > 0)).all()


@pytest.mark.parametrize(
    "content", ["dog\n\ncat\n", "/JPEGImages/480p/dog/00000.jpg /Annotations/480p/dog/00000.png\n/JPEGImages/480p/cat/00000.jpg x\n"]
)
def test_sequences_are_read_from_names_or_a_list(root, content):
    (root / "ImageSets/mine.txt").write_text(content)
    for sequences in (("dog", "cat", "dog"), ("ImageSets/mine.txt",), (str(root / "ImageSets/mine.txt"),)):
        assert [video.name for video in open_davis(root, sequences)] == ["dog", "cat"]


def test_unknown_sequence_suggests_the_nearest(root):
    with pytest.raises(DataError, match=r"'cart'.*Did you mean cat"):
        open_davis(root, ("cart",))


def test_open_davis_raises_when_there_is_no_list(root):
    (root / "ImageSets/mine.txt").write_text("\n")
    with pytest.raises(DataError, match=r"mine\.txt"):
        open_davis(root, ("ImageSets/mine.txt",))
    (root / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(DataError, match=r"ImageSets/2017/val\.txt.*--sequences"):
        open_davis(root)


def test_void_in_the_first_mask_is_background(root):
    path = root / ANNOTATIONS / "cat/00000.png"
    mask = synthetic_video(4)[0][1].copy()
    mask[:5] = 255
    write_mask(path, mask)
    video = open_davis(root)[0]
    assert video.objects == 2
    assert not video.first_mask[:5].any()
    assert (video.first_mask[5:] == mask[5:]).all()


def test_unused_labels_are_listed(root):
    mask = synthetic_video(4)[0][1]
    write_mask(root / ANNOTATIONS / "cat/00000.png", np.where(mask == 2, 5, mask).astype(np.uint8))
    video = open_davis(root)[0]
    assert (video.objects, video.unused_labels) == (5, [2, 3, 4])


def test_video_with_first_mask_only_is_not_annotated(tmp_path):
    root = davis_tree(tmp_path, {"cat": synthetic_video(3)}, first_only=True)
    assert not open_davis(root)[0].annotated


def test_open_davis_raises_when_only_some_are_annotated(root):
    for number in (1, 2, 3):
        (root / ANNOTATIONS / f"cat/{number:05d}.png").unlink()
    with pytest.raises(DataError, match=r"cat.*--sequences"):
        open_davis(root)


def test_fingerprint_changes_with_a_frame(root):
    before = [video.fingerprint() for video in open_davis(root)]
    synthetic_video(4, seed=9)[2][0].save(root / FRAMES / "cat/00002.jpg")
    after = [video.fingerprint() for video in open_davis(root)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def break_dataset(root, kind) -> None:
    frames, masks = root / FRAMES / "cat", root / ANNOTATIONS / "cat"
    match kind:
        case "middle frame":
            (frames / "00002.jpg").unlink()
        case "last frame":
            (frames / "00003.jpg").unlink()
        case "frame of another size":
            Image.new("RGB", (100, 64)).save(frames / "00002.jpg")
        case "frame without image":
            (frames / "00002.jpg").write_bytes(b"text")
        case "mask of another size":
            write_mask(masks / "00002.png", np.zeros((60, 128), np.uint8))
        case "missing mask":
            (masks / "00002.png").unlink()
        case "no objects":
            write_mask(masks / "00000.png", np.zeros((64, 128), np.uint8))
        case "void only":
            write_mask(masks / "00000.png", np.full((64, 128), 255, np.uint8))
        case "16-bit mask":
            Image.fromarray(np.arange(64 * 128, dtype=np.uint16).reshape(64, 128)).save(masks / "00000.png")
        case "no frames":
            for path in frames.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("kind", "mentioned"),
    [
        ("middle frame", "cat lacks frames: 00002"),
        ("last frame", "cat lacks frames: 00003"),
        ("frame of another size", r"00002\.jpg has 100 x 64 pixels, 00000\.jpg has 128 x 64"),
        ("frame without image", r"00002\.jpg .*unsupported"),
        ("mask of another size", r"00002\.png has 128 x 60 pixels.*128 x 64"),
        ("missing mask", r"annotations: 00002\.png"),
        ("no objects", r"00000\.png has no object"),
        ("void only", r"00000\.png has no object"),
        ("16-bit mask", r"00000\.png has labels from 0 to 8191"),
        ("no frames", "cat contains no frame"),
    ],
)
def test_open_davis_names_invalid_files(root, kind, mentioned):
    break_dataset(root, kind)
    with pytest.raises(DataError, match=mentioned):
        open_davis(root)


def test_open_davis_raises_for_other_folders(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"JPEGImages/480p and no Annotations/480p.*photos"):
        open_davis(tmp_path)
    with pytest.raises(DataError, match=r"absent.*nothing"):
        open_davis(tmp_path / "absent")


def test_exif_orientation_of_frames_counts_if_the_rule_says_so(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 64)).save(root / FRAMES / "cat/00002.jpg", exif=exif)
    assert open_davis(root, ["cat"])[0].remarks == {"oriented": ["cat/00002.jpg"]}
    with pytest.raises(DataError, match=r"00002\.jpg has 64 x 128"):
        open_davis(root, ["cat"], ImageRule(exif_transpose=True))
