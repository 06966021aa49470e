"""Output folders of figures: files of the user are kept, and remains of an earlier run are deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import synthetic_images, synthetic_state
from PIL import Image

from dinoeval.models.checkpoints import save_backbone


def save(folder: Path, *names: str, seed: int = 0) -> Path:
    for name, image in zip(names, synthetic_images(len(names), seed=seed), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            image.save(file, "JPEG" if name.endswith("jpg") else "PNG")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_input_images_are_never_overwritten(call, tmp_path):
    save(tmp_path / "clip/frames", *(f"{number:05d}.png" for number in range(3)))
    save(tmp_path / "p", "dog.jpg", "dog/image.png", "figure.png")
    synthetic_images(1)[0].save(tmp_path / "attention.gif", save_all=True, append_images=synthetic_images(3, seed=4))
    (tmp_path / "link").symlink_to(tmp_path / "p")
    (tmp_path / "p.csv").write_text("path\np/dog.jpg\np/dog/image.png\n")
    (tmp_path / "out/dog").mkdir(parents=True)
    (tmp_path / "out/dog/overlay.png").symlink_to(tmp_path / "p/dog.jpg")
    before = contents(tmp_path)
    clip, p = tmp_path / "clip/frames", tmp_path / "p"
    for words, message in (
        (("attention", clip, "--video", "--out", tmp_path / "clip"), ".png is an input image"),
        (("attention", clip, "--video", "--out", clip), f"--out {clip}"),
        (("attention", tmp_path / "attention.gif", "--video", "--out", tmp_path), "attention.gif is an input image"),
        (("attention", p, "--out", p), f"--out {p}"),
        (("attention", p, "--out", tmp_path / "link/new/folder"), "link/new/folder"),
        (("pca", p / "dog.jpg", p / "dog", "--out", p / "dog/out"), f"--out {p / 'dog/out'}"),
        (("attention", p / "dog.jpg", p / "dog/image.png", "--out", p), "image.png is an input image"),
        (("pca", p / "figure.png", "--out", p), "figure.png is an input image"),
        (("attention", tmp_path / "p.csv", "--out", p), "image.png is an input image"),
        (("attention", p / "dog.jpg", "--out", tmp_path / "out"), "overlay.png is an input image"),
        (("tsne", p, "--out", p / "map.png"), "map.png"),
        (("tsne", p / "dog.jpg", p / "figure.png", "--out", p / "figure.png"), f"--out {p / 'figure.png'}"),
    ):
        code, _, err = call(*words, "--weights", tmp_path / "none.pth")  # Reported before the weights are loaded.
        assert (code, message in err, "none.pth" in err) == (2, True, False), (words, err)
        assert contents(tmp_path) == before
    assert not (p / "new").exists()


@pytest.mark.slow
def test_images_next_to_their_output_folders_are_accepted(call, tiny_weights, tmp_path):
    """Even if `image.png` is an input and a name of an output, and an input is in the folder that is written to."""
    p = save(tmp_path / "p", "image.png", "dog/dog.jpg", "...jpg")
    words = ("--weights", tiny_weights, "--image-size", 16, "--out", p)
    before = contents(p)
    for command in ("attention", "pca", "attention"):
        code, _, err = call(command, *(p / name for name in before), *words)
        assert code == 0, err
    after = contents(p)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after} == {"image.png", "...jpg", "dog", "image", "image-2", "figure.png"}
    assert not (tmp_path / "image.png").exists()


def test_second_run_deletes_frames_of_the_first(call, tiny_weights, tmp_path):
    out = tmp_path / "out"
    for count in (5, 2):
        clip = save(tmp_path / f"clip{count}", *(f"{number}.png" for number in range(count)))
        assert call("attention", clip, "--video", "--out", out, "--weights", tiny_weights)[0] == 0
        save(out / "frames", "0000.png", "00009.jpg", "my00009.png")  # Files of the user.
    assert {path.name for path in (out / "frames").iterdir()} == {"00000.png", "00001.png", "0000.png", "00009.jpg", "my00009.png"}
    with Image.open(out / "attention.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 2
    own = save(tmp_path / "own", "frames/00007.png")  # Without attention.gif.
    assert call("attention", clip, "--video", "--out", own, "--weights", tiny_weights)[0] == 0
    assert (own / "frames/00007.png").is_file()


@pytest.mark.slow
def test_second_run_deletes_heads_and_points_of_the_first(call, tiny_weights, tmp_path):
    dog, out = save(tmp_path, "dog.jpg") / "dog.jpg", tmp_path / "out"
    save_backbone(tmp_path / "six.safetensors", synthetic_state("vit_s4_16"), arch="vit_s4_16")
    words = ("attention", dog, "--out", out, "--image-size", 16, "--weights")
    assert call(*words, tmp_path / "six.safetensors", "--points", "1,1", "3,3")[0] == 0
    assert {"head5.png", "mask5.png", "point1.png", "points.png"} <= contents(out / "dog").keys()
    save(out / "dog", "head05.png", "header1.png", "point.png")  # Files of the user.
    assert call(*words, tiny_weights, "--points", "1,1")[0] == 0
    written = {f"{name}{head}.png" for name in ("head", "mask") for head in range(3)} | {"image.png", "overlay.png", "figure.png"}
    assert contents(out / "dog").keys() == written | {"point0.png", "points.png", "head05.png", "header1.png", "point.png"}
    assert call(*words, tiny_weights)[0] == 0
    assert contents(out / "dog").keys() == written | {"head05.png", "header1.png", "point.png"}
    own = save(tmp_path / "own", "dog/head9.png")  # Without overlay.png.
    assert call("attention", dog, "--out", own, "--image-size", 16, "--weights", tiny_weights)[0] == 0
    assert (own / "dog/head9.png").is_file()


def test_video_rejects_options_that_it_does_not_use(call, tmp_path):
    clip = save(tmp_path / "clip", "0.png", "1.png")
    words = ("attention", clip, "--video", "--out", tmp_path / "out", "--weights", tmp_path / "none.pth")
    for option in (("--mass", 0.5), ("--threshold", 0.3), ("--format", "pdf"), ("--heads", 1), ("--points", "1,1")):
        code, _, err = call(*words, *option)
        assert (code, f"{option[0]}" in err, "none.pth" in err) == (2, True, False)
    code, _, err = call(*words, "--bad-images", "skip")
    assert (code, "--bad-images skip" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_animated_webp_keeps_its_frame_duration(call, tiny_weights, tmp_path):
    frames = synthetic_images(3)
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], duration=40)
    code, out, err = call("attention", tmp_path / "clip.webp", "--video", "--out", tmp_path / "out", "--weights", tiny_weights)
    assert (code, "40 ms per frame" in out) == (0, True), err
