from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from video_factories import davis_tree, synthetic_video

from dinoeval.data.davis import ANNOTATIONS, FRAMES, open_davis
from dinoeval.data.masks import write_mask
from dinoeval.errors import DataError


@pytest.fixture
def root(tmp_path):
    return davis_tree(tmp_path / "DAVIS", {"cat": synthetic_video(4), "dog": synthetic_video(5, (64, 128), objects=1)})


def test_a_tree_of_2017(root):
    cat, dog = open_davis(root)
    assert (cat.name, len(cat.frames), cat.size, cat.objects, cat.annotated) == ("cat", 4, (128, 64), 2, True)
    assert (dog.size, dog.objects) == ((64, 128), 1)
    assert [path.name for path in dog.frames] == [f"{number:05d}.jpg" for number in range(5)]
    assert cat.mask_name(2) == "00002.png"
    assert (cat.truth(3) == synthetic_video(4)[3][1]).all()


def test_a_tree_of_2016_has_one_object(tmp_path):
    root = davis_tree(tmp_path, {"cat": synthetic_video(3, objects=3)}, year=2016)
    (video,) = open_davis(root)
    assert video.objects == 1
    assert (video.first == (synthetic_video(3, objects=3)[0][1] > 0)).all()


@pytest.mark.parametrize(
    "content", ["dog\n\ncat\n", "/JPEGImages/480p/dog/00000.jpg /Annotations/480p/dog/00000.png\n/JPEGImages/480p/cat/00000.jpg x\n"]
)
def test_which_sequences(root, content):
    (root / "ImageSets/mine.txt").write_text(content)
    for named in (("dog", "cat", "dog"), ("ImageSets/mine.txt",), (str(root / "ImageSets/mine.txt"),)):
        assert [video.name for video in open_davis(root, named)] == ["dog", "cat"]
    with pytest.raises(DataError, match=r"no sequence in .* 'cart'.*Did you mean cat"):
        open_davis(root, ("cart",))
    (root / "ImageSets/mine.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no sequence"):
        open_davis(root, ("ImageSets/mine.txt",))
    (root / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(DataError, match=r"no ImageSets/2017/val\.txt.*--sequences"):
        open_davis(root)


def test_void_counts_as_background(root):
    path = root / ANNOTATIONS / "cat/00000.png"
    mask = synthetic_video(4)[0][1].copy()
    mask[:5] = 255
    write_mask(path, mask)
    video = open_davis(root)[0]
    assert video.objects == 2
    assert not video.first[:5].any()
    assert (video.first[5:] == mask[5:]).all()


def test_numbers_that_are_left_out(root):
    mask = synthetic_video(4)[0][1]
    write_mask(root / ANNOTATIONS / "cat/00000.png", np.where(mask == 2, 5, mask).astype(np.uint8))
    video = open_davis(root)[0]
    assert (video.objects, video.unseen) == (5, [2, 3, 4])


def test_first_annotations_alone(tmp_path, root):
    alone = davis_tree(tmp_path / "alone", {"cat": synthetic_video(3)}, first_alone=True)
    assert not open_davis(alone)[0].annotated
    for number in (1, 2, 3):
        (root / ANNOTATIONS / f"cat/{number:05d}.png").unlink()
    with pytest.raises(DataError, match="first frame alone for cat"):
        open_davis(root)


def test_a_change_of_a_frame_changes_the_fingerprint(root):
    before = [video.fingerprint() for video in open_davis(root)]
    synthetic_video(4, seed=9)[2][0].save(root / FRAMES / "cat/00002.jpg")
    after = [video.fingerprint() for video in open_davis(root)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def spoil(root, kind) -> None:
    frames, masks = root / FRAMES / "cat", root / ANNOTATIONS / "cat"
    match kind:
        case "middle frame":
            (frames / "00002.jpg").unlink()
        case "last frame":
            (frames / "00003.jpg").unlink()
        case "odd frame":
            Image.new("RGB", (100, 64)).save(frames / "00002.jpg")
        case "turned frame":
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.new("RGB", (128, 64)).save(frames / "00002.jpg", exif=exif)
        case "no picture":
            (frames / "00002.jpg").write_bytes(b"text")
        case "odd mask":
            write_mask(masks / "00002.png", np.zeros((60, 128), np.uint8))
        case "missing mask":
            (masks / "00002.png").unlink()
        case "no objects":
            write_mask(masks / "00000.png", np.zeros((64, 128), np.uint8))
        case "void alone":
            write_mask(masks / "00000.png", np.full((64, 128), 255, np.uint8))
        case "deep mask":
            Image.fromarray(np.arange(64 * 128, dtype=np.uint16).reshape(64, 128)).save(masks / "00000.png")
        case "no frames":
            for path in frames.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("middle frame", "lacks frames: 00002"),
        ("last frame", "lacks frames: 00003"),
        ("odd frame", r"00002\.jpg has 100 x 64 pixels, and 00000\.jpg has 128 x 64"),
        ("turned frame", r"00002\.jpg has 64 x 128"),
        ("no picture", r"00002\.jpg is no image"),
        ("odd mask", r"00002\.png has 128 x 60 pixels.*128 x 64"),
        ("missing mask", r"no annotation 00002\.png"),
        ("no objects", r"00000\.png, holds no object"),
        ("void alone", r"00000\.png, holds no object"),
        ("deep mask", r"00000\.png holds labels from 0 to 8191"),
        ("no frames", "cat holds no frame"),
    ],
)
def test_what_is_wrong_is_named_before_the_work(root, kind, says):
    spoil(root, kind)
    with pytest.raises(DataError, match=says):
        open_davis(root)


def test_folders_that_are_no_tree(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"no folder JPEGImages/480p and no Annotations/480p.*It holds photos"):
        open_davis(tmp_path)
    with pytest.raises(DataError, match="It holds nothing"):
        open_davis(tmp_path / "absent")
