"""The folders that figures are written to: the user's own pictures stay as they are, and what an earlier run left is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import synthetic_images, synthetic_state
from PIL import Image

from dinoeval.cli import main
from dinoeval.models.checkpoints import save_backbone


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def save(folder: Path, *names: str, seed: int = 0) -> Path:
    for name, picture in zip(names, synthetic_images(len(names), seed=seed), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            picture.save(file, "JPEG" if name.endswith("jpg") else "PNG")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_pictures_that_are_read_are_never_written(capsys, tmp_path):
    save(tmp_path / "clip/frames", *(f"{number:05d}.png" for number in range(3)))
    save(tmp_path / "p", "dog.jpg", "dog/image.png", "figure.png")
    synthetic_images(1)[0].save(tmp_path / "attention.gif", save_all=True, append_images=synthetic_images(3, seed=4))
    (tmp_path / "also").symlink_to(tmp_path / "p")
    (tmp_path / "p.csv").write_text("path\np/dog.jpg\np/dog/image.png\n")
    (tmp_path / "out/dog").mkdir(parents=True)
    (tmp_path / "out/dog/overlay.png").symlink_to(tmp_path / "p/dog.jpg")
    before = contents(tmp_path)
    clip, p = tmp_path / "clip/frames", tmp_path / "p"
    for words, said in (
        (("attention", clip, "--video", "--out", tmp_path / "clip"), ".png is one of the pictures that are read"),
        (("attention", clip, "--video", "--out", clip), "lies in"),
        (("attention", tmp_path / "attention.gif", "--video", "--out", tmp_path), "attention.gif is one of the pictures"),
        (("attention", p, "--out", p), "lies in"),
        (("attention", p, "--out", tmp_path / "also/made/anew"), "lies in"),
        (("pca", p / "dog.jpg", p / "dog", "--out", p / "dog/out"), "lies in"),
        (("attention", p / "dog.jpg", p / "dog/image.png", "--out", p), "image.png is one of the pictures that are read"),
        (("pca", p / "figure.png", "--out", p), "figure.png is one of the pictures"),
        (("attention", tmp_path / "p.csv", "--out", p), "image.png is one of the pictures that are read"),
        (("attention", p / "dog.jpg", "--out", tmp_path / "out"), "overlay.png is one of the pictures that are read"),
        (("tsne", p, "--out", p / "map.png"), "lies in"),
        (("tsne", p / "dog.jpg", p / "figure.png", "--out", p / "figure.png"), "is, or lies in,"),
    ):
        code, _, err = call(capsys, *words, "--weights", tmp_path / "none.pth")  # said before the weights are looked for
        assert (code, said in err) == (2, True), (words, err)
        assert contents(tmp_path) == before
    assert not (p / "made").exists()


def test_a_picture_beside_its_folder_is_no_reason_to_refuse(capsys, tiny_weights, tmp_path):
    """Also where a name is written elsewhere: `image.png` and a picture in the folder that is written to."""
    p = save(tmp_path / "p", "image.png", "dog/dog.jpg", "...jpg")
    words = ("--weights", tiny_weights, "--image-size", 16, "--out", p)
    before = contents(p)
    for command in ("attention", "pca", "attention"):
        code, _, err = call(capsys, command, *(p / name for name in before), *words)
        assert code == 0, err
    after = contents(p)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after} == {"image.png", "...jpg", "dog", "image", "image-2", "figure.png"}
    assert not (tmp_path / "image.png").exists()


def test_a_second_run_leaves_no_frames_of_the_first(capsys, tiny_weights, tmp_path):
    out = tmp_path / "out"
    for count in (5, 2):
        clip = save(tmp_path / f"clip{count}", *(f"{number}.png" for number in range(count)))
        assert call(capsys, "attention", clip, "--video", "--out", out, "--weights", tiny_weights)[0] == 0
        save(out / "frames", "0000.png", "00009.jpg", "my00009.png")  # the user's
    assert {path.name for path in (out / "frames").iterdir()} == {"00000.png", "00001.png", "0000.png", "00009.jpg", "my00009.png"}
    with Image.open(out / "attention.gif") as film:
        assert getattr(film, "n_frames", 1) == 2
    own = save(tmp_path / "own", "frames/00007.png")  # no GIF of ours beside them
    assert call(capsys, "attention", clip, "--video", "--out", own, "--weights", tiny_weights)[0] == 0
    assert (own / "frames/00007.png").is_file()


def test_a_second_run_leaves_no_heads_and_points_of_the_first(capsys, tiny_weights, tmp_path):
    dog, out = save(tmp_path, "dog.jpg") / "dog.jpg", tmp_path / "out"
    save_backbone(tmp_path / "six.safetensors", synthetic_state("vit_s4_16"), arch="vit_s4_16")
    words = ("attention", dog, "--out", out, "--image-size", 16, "--weights")
    assert call(capsys, *words, tmp_path / "six.safetensors", "--points", "1,1", "3,3")[0] == 0
    assert {"head5.png", "mask5.png", "point1.png", "points.png"} <= contents(out / "dog").keys()
    save(out / "dog", "head05.png", "header1.png", "point.png")  # the user's
    assert call(capsys, *words, tiny_weights, "--points", "1,1")[0] == 0
    ours = {f"{name}{head}.png" for name in ("head", "mask") for head in range(3)} | {"image.png", "overlay.png", "figure.png"}
    assert contents(out / "dog").keys() == ours | {"point0.png", "points.png", "head05.png", "header1.png", "point.png"}
    assert call(capsys, *words, tiny_weights)[0] == 0
    assert contents(out / "dog").keys() == ours | {"head05.png", "header1.png", "point.png"}
    own = save(tmp_path / "own", "dog/head9.png")  # no run of ours was here
    assert call(capsys, "attention", dog, "--out", own, "--image-size", 16, "--weights", tiny_weights)[0] == 0
    assert (own / "dog/head9.png").is_file()


def test_what_a_video_does_not_look_at_is_refused(capsys, tmp_path):
    clip = save(tmp_path / "clip", "0.png", "1.png")
    words = ("attention", clip, "--video", "--out", tmp_path / "out", "--weights", tmp_path / "none.pth")
    for option in (("--mass", 0.5), ("--threshold", 0.3), ("--format", "pdf"), ("--heads", 1), ("--points", "1,1")):
        code, _, err = call(capsys, *words, *option)
        assert (code, f"{option[0]}" in err, "none.pth" in err) == (2, True, False)
    code, _, err = call(capsys, *words, "--bad-images", "skip")
    assert (code, "no frame of a video can be skipped" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_an_animated_webp_keeps_its_speed(capsys, tiny_weights, tmp_path):
    pictures = synthetic_images(3)
    pictures[0].save(tmp_path / "film.webp", save_all=True, append_images=pictures[1:], duration=40)
    code, out, err = call(capsys, "attention", tmp_path / "film.webp", "--video", "--out", tmp_path / "out", "--weights", tiny_weights)
    assert (code, "40 ms a frame" in out) == (0, True), err
