"""The command `dinoeval propagate`: the masks of any video, and what it refuses to overwrite."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from video_factories import davis_tree, synthetic_video

import dinoeval
from dinoeval.data.masks import read_mask, write_mask

OPTIONS = {"image_size": 64, "radius": 4, "context_frames": 2}
WORDS = ["--image-size", 64, "--radius", 4, "--context-frames", 2, "--device", "cpu"]


@pytest.fixture
def video():
    return synthetic_video(4, (64, 128), objects=1, seed=2)


@pytest.fixture
def root(tmp_path):
    return davis_tree(tmp_path / "DAVIS", {"cat": synthetic_video(5, seed=1)})


def test_folder_of_frames_gets_the_masks_of_davis(tiny_weights, root, tmp_path, call):
    frames, mask = root / "JPEGImages/480p/cat", root / "Annotations/480p/cat/00000.png"
    words = ["propagate", frames, mask, "--out", tmp_path / "own", "--weights", tiny_weights, *WORDS]
    code, out, _ = call(*words, "--overlay", tmp_path / "drawn")
    assert code == 0
    assert "5 masks of 2 objects" in out
    assert (tmp_path / "drawn/cat_overlay.gif").exists()
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    dinoeval.evaluate("davis", backbone, data=str(root), out=str(tmp_path / "out"), **OPTIONS)
    paths = list((tmp_path / "out/cat").glob("*.png"))
    assert len(paths) == 5
    for path in paths:
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes()
    code, out, _ = call(*words)
    assert code == 0
    assert "already has all 5 masks" in out
    code, _, err = call(*words, "--top-k", 3)
    assert code == 2
    assert "top_k was 5 and is 3" in err


def test_animated_image_gets_masks(video, tiny_weights, tmp_path, call):
    frames = [image for image, _ in video]
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(video[0][1] * np.uint8(255)).save(tmp_path / "mask.png")
    words = ["propagate", tmp_path / "video.gif", tmp_path / "mask.png", "--weights", tiny_weights, *WORDS, "--out", tmp_path / "out"]
    assert call(*words)[0] == 0
    last = read_mask(tmp_path / "out/00003.png")
    assert (last == video[-1][1]).mean() > 0.7


@pytest.mark.parametrize(
    ("size", "value", "named"), [((64, 128), 0, r"mask\.png .*\bobject\b"), ((128, 128), 255, "first mask .*128 x 128")]
)
def test_first_mask_that_does_not_fit_is_rejected(size, value, named, video, tiny_weights, tmp_path, call):
    frames = [image for image, _ in video]
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:])
    Image.new("L", size, value).save(tmp_path / "mask.png")
    words = ["propagate", tmp_path / "video.gif", tmp_path / "mask.png", "--weights", tiny_weights, *WORDS, "--out", tmp_path / "out"]
    code, _, err = call(*words)
    assert code == 2
    assert re.search(named, " ".join(err.split()))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_overlay_does_not_overwrite_the_first_mask(tiny_weights, root, tmp_path, call):
    mask = tmp_path / "cat_overlay.png"
    shutil.copy(root / "Annotations/480p/cat/00000.png", mask)
    before = mask.read_bytes()
    frames = root / "JPEGImages/480p/cat"
    words = ["--out", tmp_path / "own", "--weights", tiny_weights, *WORDS]
    code, _, err = call("propagate", frames, mask, *words, "--overlay", tmp_path)
    assert code == 2
    assert "cat_overlay.png" in "".join(err.split())
    assert mask.read_bytes() == before
    shutil.copy(mask, frames / "first.png")
    code, _, err = call("propagate", frames, frames / "first.png", *words)
    assert code == 2
    assert "first.png" in "".join(err.split())
    assert not (tmp_path / "own").exists()


def test_mask_of_a_later_frame_starts_there(tiny_weights, root, tmp_path, call):
    frames, mask = root / "JPEGImages/480p/cat", tmp_path / "00002.png"
    shutil.copy(root / "Annotations/480p/cat/00002.png", mask)
    (frames / "00000.jpg").write_bytes(b"not read")
    words = ["propagate", frames, mask, "--out", tmp_path / "own", "--weights", tiny_weights, *WORDS]
    code, out, err = call(*words, "--overlay", tmp_path / "drawn")
    assert code == 0
    assert "3 masks" in out
    assert "00002.png" in err
    assert sorted(path.name for path in (tmp_path / "own").glob("*.png")) == ["00002.png", "00003.png", "00004.png"]
    assert (read_mask(tmp_path / "own/00002.png") == read_mask(mask)).all()
    with Image.open(tmp_path / "drawn/cat_overlay.gif") as animation:
        assert animation.n_frames == 3


def test_mask_of_a_frame_that_does_not_exist_is_rejected(tiny_weights, root, tmp_path, call):
    mask = tmp_path / "00007.png"
    shutil.copy(root / "Annotations/480p/cat/00002.png", mask)
    words = ["propagate", root / "JPEGImages/480p/cat", mask, "--out", tmp_path / "own", "--weights", tiny_weights, *WORDS]
    code, _, err = call(*words)
    assert code == 2
    assert "00007.png" in "".join(err.split())
    assert not (tmp_path / "own").exists()


def test_void_and_missing_background_of_the_first_mask_are_reported(tiny_weights, root, tmp_path, call):
    mask = np.full((64, 128), 1, np.uint8)
    mask[:2, :5] = 2
    write_mask(tmp_path / "full.png", mask)
    words = ["--out", tmp_path / "own", "--weights", tiny_weights, *WORDS]
    code, _, err = call("propagate", root / "JPEGImages/480p/cat", tmp_path / "full.png", *words)
    assert code == 0
    assert "no background" in err
    mask[:2, :5] = 255
    write_mask(tmp_path / "void.png", mask)
    code, _, err = call("propagate", root / "JPEGImages/480p/cat", tmp_path / "void.png", "--out", tmp_path / "other", *words[2:])
    assert code == 0
    assert "10 pixels" in err


def test_first_mask_with_gray_levels_is_rejected(tiny_weights, root, tmp_path, call):
    Image.fromarray(read_mask(root / "Annotations/480p/cat/00000.png") * np.uint8(100)).save(tmp_path / "first.png")
    words = [
        "propagate",
        root / "JPEGImages/480p/cat",
        tmp_path / "first.png",
        "--out",
        tmp_path / "own",
        "--weights",
        tiny_weights,
        *WORDS,
    ]
    code, _, err = call(*words)
    assert code == 2
    assert "100, 200" in err
