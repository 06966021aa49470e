"""Attention figures: hand-made maps with known images, every kind of file, what the command writes."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image
from torchvision import transforms

import dinoeval
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures.attention_maps import AttentionMaps
from dinoeval.figures.preprocessing import folder_names
from dinoeval.figures.style import COLORS, rgb


@pytest.fixture(scope="module")
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture
def hand_made() -> AttentionMaps:
    """Two heads on 2 x 3 patches of 4 pixels of a black image; head 0 attends to the left, head 1 to the lower right corner."""
    maps = np.array([[[0.5, 0.1, 0.0], [0.3, 0.1, 0.0]], [[0.0, 0.0, 0.08], [0.0, 0.2, 0.4]]], np.float32)
    return AttentionMaps(
        name="hand",
        image=np.zeros((8, 12, 3), np.uint8),
        maps=maps,
        masks=maps > 0.25,
        points=((5.0, 1.0),),
        point_patches=((0, 1),),
        point_maps=maps[None],
        mass=0.6,
        patch=4,
        transform="none",
    )


def test_maps_and_masks_equal_slow_released_steps(backbone):
    image = synthetic_images(1, (50, 37))[0]
    maps = dinoeval.figures.attention(backbone, image, image_size=22, mass=0.6, points=[(0, 0), (49, 20.5)])
    assert (maps.image.shape, maps.maps.shape, maps.patch, maps.transform) == (
        (20, 20, 3),
        (3, 5, 5),
        4,
        "figure@1:22x22:bilinear:as-stored",
    )
    released = transforms.Compose(  # visualize_attention.py
        [transforms.Resize((22, 22)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    rows = backbone.attention(released(image)[None, :, :20, :20])[0].numpy()  # (heads, 26, 26)
    np.testing.assert_allclose(maps.maps, rows[:, 0, 1:].reshape(3, 5, 5), atol=1e-6)
    for head in range(3):
        values = rows[head, 0, 1:] / rows[head, 0, 1:].sum()
        kept, held = set(), 0.0
        for patch in sorted(range(25), key=lambda patch: -values[patch]):
            if held < 0.6 - 1e-6:
                kept.add(patch)
            held += values[patch]
        assert set(np.flatnonzero(maps.masks[head])) == kept
    # The second point in the resized image: x = 49 * 22 / 50 = 21.56, in the cropped remainder; y = 20.5 * 22 / 37 = 12.2, row 3.
    assert maps.point_patches == ((0, 0), (3, 4))
    np.testing.assert_allclose(maps.point_maps[0], rows[:, 1, 1:].reshape(3, 5, 5), atol=1e-6)
    np.testing.assert_allclose(maps.point_maps[1], rows[:, 1 + 3 * 5 + 4, 1:].reshape(3, 5, 5), atol=1e-6)


def test_head_image_equals_matplotlib_imsave(hand_made):
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, hand_made.maps[1].repeat(4, 0).repeat(4, 1), format="png")
    expected = np.asarray(Image.open(stream).convert("RGB"))
    np.testing.assert_array_equal(hand_made.head(1), expected)


def test_overlay_gives_each_patch_to_its_highest_head(hand_made):
    """Scaled to [0, 1], head 0 is 1, .2, 0 / .6, .2, 0 and head 1 is 0, 0, .2 / 0, .5, 1."""
    shown = hand_made.overlay(threshold=0.3)[::4, ::4].astype(int)  # (2, 3, 3), one pixel per patch
    for row, column, head, height in ((0, 0, 0, 1.0), (1, 0, 0, 0.6), (1, 1, 1, 0.5), (1, 2, 1, 1.0)):
        np.testing.assert_allclose(shown[row, column], rgb(COLORS[head]) * (0.2 + 0.7 * height), atol=0.51)
    assert not shown[0, 1:].any()  # Below the threshold the image is not changed.
    assert not hand_made.overlay([1], threshold=0.3)[:, :4].any()
    assert hand_made.overlay([1])[7, 11].tolist() == hand_made.overlay()[7, 11].tolist()  # A head keeps its color.


def test_mask_is_tinted_and_has_a_border(hand_made):
    shown = hand_made.mask(0)  # patches (0, 0) and (1, 0): the left four columns
    color = rgb(COLORS[0])
    assert (shown[:, 3] == color).all()  # The border inside the mask.
    assert (shown[:, :3] == np.rint(color / 2)).all()  # No border at the frame of the image.
    assert not shown[:, 4:].any()


def test_figure_files_are_reproducible_and_one_column_wide(hand_made, tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        dinoeval.figures.save(hand_made.figure(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        dinoeval.figures.save(hand_made.figure(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.width == 975  # 3.25 inches at 300 dpi.
    sizes = {text.get_fontsize() for axis in hand_made.points_figure().axes for text in (axis.title, *axis.texts)}
    assert min(sizes) >= 7
    with pytest.raises(ConfigError, match=r"a\.jpg.*\.png, \.pdf, \.svg"):
        dinoeval.figures.save(hand_made.figure(), tmp_path / "a.jpg")


def test_files_are_read_by_the_rule_for_images(backbone, tmp_path):
    image = synthetic_images(1, (40, 24))[0]
    image.save(tmp_path / "rgb.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotated by 90 degrees to the right.
    image.save(tmp_path / "turned.png", exif=exif)
    image.convert("L").save(tmp_path / "gray.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    gray = np.asarray(image.convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.save(tmp_path / "moving.gif", save_all=True, append_images=synthetic_images(3, (40, 24), seed=5))

    def read(name: str, **options) -> np.ndarray:
        return dinoeval.figures.attention(backbone, tmp_path / name, image_size="native", **options).image

    whole = np.asarray(image)
    np.testing.assert_array_equal(read("rgb.png"), whole)
    np.testing.assert_array_equal(read("turned.png", exif_transpose=True), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))
    np.testing.assert_array_equal(read("turned.png"), whole)
    np.testing.assert_array_equal(read("gray.png"), np.repeat(gray[..., None], 3, -1))
    np.testing.assert_array_equal(read("deep.png"), read("gray.png"))
    assert np.abs(read("cmyk.jpg").astype(int) - whole).mean() < 3
    assert np.abs(read("moving.gif").astype(int) - whole).mean() < 8  # The first frame.


@pytest.mark.parametrize(("image_size", "shape"), [("native", (3, 5, 10)), ("32x16", (3, 4, 8)), (18, (3, 4, 4)), ("4", (3, 1, 1))])
def test_image_size_selects_the_grid(backbone, image_size, shape):
    image = synthetic_images(1, (41, 23))[0]
    assert dinoeval.figures.attention(backbone, image, image_size=image_size).maps.shape == shape


@pytest.mark.parametrize(
    ("image_size", "message"),
    [("0", "'0'"), ("3", "patch size, 4, got 3"), ("12x", "'12x'"), ("90000x90000", "90000x90000 exceeds 178,956,970 pixels")],
)
def test_invalid_image_size_is_rejected(backbone, image_size, message):
    with pytest.raises(ConfigError, match=f"--image-size.*{message}"):
        dinoeval.figures.attention(backbone, synthetic_images(1, (41, 23))[0], image_size=image_size)


def test_folder_names_are_distinct():
    assert folder_names(["a/x.jpg", "b/x.png", "X.gif", "x-2.jpg", "y.jpg"]) == ["x", "x-2", "X-3", "x-2-2", "y"]
    assert folder_names(["a/...jpg", "..jpg", "....png"]) == ["image", "image-2", "image-3"]  # Not `..`, which is another folder.


def test_attention_command_writes_every_image_in_the_given_size(call, tiny_weights, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        synthetic_images(1, (40, 24), seed=ord(folder))[0].save(tmp_path / folder / "x.png")
    out = tmp_path / "out"
    words = ("attention", tmp_path / "a", tmp_path / "b/x.png", "--out", out, "--weights", tiny_weights, "--image-size", 16)
    code, printed, err = call(*words, "--points", "3,4", "39.5,23", "--heads", 2, 0, "--format", "pdf")
    assert (code, "figure@1:16x16:bilinear" in printed, printed.count("3 heads, 4 x 4 patches")) == (0, True, 2), err
    names = {"image", "overlay", "head0", "head1", "head2", "mask0", "mask1", "mask2", "point0", "point1"}
    for folder in ("x", "x-2"):
        assert {path.name for path in (out / folder).iterdir()} == {f"{name}.png" for name in names} | {"figure.pdf", "points.pdf"}
        for name in names:
            with Image.open(out / folder / f"{name}.png") as image:
                assert (image.size, image.mode) == ((16, 16), "RGB")
    assert (out / "x/image.png").read_bytes() != (out / "x-2/image.png").read_bytes()


def test_attention_reports_invalid_input(backbone, tmp_path):
    image = tmp_path / "x.png"
    synthetic_images(1, (40, 24))[0].save(image)
    (tmp_path / "y.png").write_text("text")
    Image.new("RGB", (3, 40)).save(tmp_path / "z.png")

    def message_of(image, **options) -> str:
        with pytest.raises(dinoeval.DinoevalError) as error:
            dinoeval.figures.attention(backbone, image, **options)
        return str(error.value)

    assert f"point 40,1 is outside {image}, which has 40 x 24 pixels" in message_of(image, points=[(1, 1), (40, 1)])
    assert "--mass must be above 0" in message_of(image, mass=0)
    assert "--transform dino:8/8" in message_of(image, transform="dino:8/8")
    assert "y.png cannot be used: " in message_of(tmp_path / "y.png")
    assert "3 x 40 pixels are smaller than a patch of 4" in message_of(tmp_path / "z.png", image_size="native")
    assert "none.png" in message_of(tmp_path / "none.png")
    assert f"{tmp_path} contains 3 images" in message_of(tmp_path)
    maps = dinoeval.figures.attention(backbone, image, image_size=16)
    for options, message in (
        ({"heads": [3]}, "head 3 .* 3 heads"),
        ({"threshold": 1}, "--threshold .*got 1"),
        ({"heads": []}, "--heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            maps.overlay(**options)
    with pytest.raises(ConfigError, match="--points"):
        maps.points_figure()
    with pytest.raises(ConfigError, match="resnet50 has no patches"):
        dinoeval.figures.attention(dinoeval.load("resnet50", weights="random", device="cpu"), image)


@pytest.fixture
def one_bad_image(tmp_path) -> Path:
    """A folder with the image x.png, and y.png, which is not an image."""
    folder = tmp_path / "in"
    folder.mkdir()
    synthetic_images(1, (40, 24))[0].save(folder / "x.png")
    (folder / "y.png").write_text("text")
    return folder


def test_attention_command_writes_nothing_on_error(call, tiny_weights, tmp_path, one_bad_image):
    words = ("attention", one_bad_image, "--weights", tiny_weights, "--image-size", "native", "--out")
    code, _, err = call(*words, tmp_path / "out", "--heads", 3)
    assert (code, "head 3" in err) == (2, True)
    assert not list((tmp_path / "out").iterdir())
    assert "--points value '5'" in call(*words, tmp_path / "out", "--points", 5)[2]
    assert f"--out {one_bad_image / 'x.png'} is a file" in call(*words, one_bad_image / "x.png")[2]


def test_attention_command_skips_bad_images_if_requested(call, tiny_weights, tmp_path, one_bad_image):
    words = ("attention", one_bad_image, "--weights", tiny_weights, "--image-size", "native", "--out", tmp_path / "out")
    code, _, err = call(*words)
    assert (code, "y.png cannot be used" in err) == (2, True)
    code, out, err = call(*words, "--bad-images", "skip")
    assert (code, out.count("heads"), "skipped y.png" in err) == (0, 1, True)
    (one_bad_image / "x.png").write_text("text")
    code, _, err = call(*words, "--bad-images", "skip")
    assert (code, "none of the images" in err) == (2, True)


def test_video_has_one_color_scale_and_keeps_the_order_of_frames(call, tiny_weights, tmp_path, backbone):
    frames = synthetic_images(11, (40, 24))
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"clip/frame{number}.png")  # frame10 comes after frame9, not after frame1.
    video = dinoeval.figures.attention_video(backbone, tmp_path / "clip")
    for number, frame in enumerate(frames):
        alone = dinoeval.figures.attention(backbone, frame, image_size="native")
        np.testing.assert_allclose(video.maps[number], alone.maps.mean(0), atol=1e-7)
    low, high = np.min(video.maps), np.quantile(video.maps, 0.99)
    expected = matplotlib.colormaps["inferno"]((video.maps[3].astype(float) - low) / (high - low), bytes=True)[..., :3]
    np.testing.assert_array_equal(video.attention_image(3)[::4, ::4], expected)
    code, printed, err = call("attention", tmp_path / "clip", "--video", "--weights", tiny_weights, "--out", tmp_path / "out", "--fps", 10)
    assert (code, "80 x 24 pixels, 100 ms per frame" in printed) == (0, True), err
    assert len(list((tmp_path / "out/frames").iterdir())) == 11
    with Image.open(tmp_path / "out/attention.gif") as written:
        assert (written.n_frames, written.size, written.info["duration"]) == (11, (80, 24), 100)
    assert [text.get_text() for axis in video.figure().axes for text in axis.texts][:2] == [f"{low:.2g}", f"{high:.2g}"]
    again = dinoeval.figures.attention_video(backbone, tmp_path / "out/attention.gif")
    assert (again.maps.shape, again.seconds) == ((11, 6, 20), 0.1)


def test_attention_video_rejects_other_files(backbone, tmp_path):
    synthetic_images(1)[0].save(tmp_path / "still.png")
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 64)
    for name, message in (("still.png", "still.png.*--video"), ("clip.mp4", "clip.mp4: .*ffmpeg"), ("none.gif", "none.gif: No such file")):
        with pytest.raises(DataError, match=message):
            dinoeval.figures.attention_video(backbone, tmp_path / name)
    (tmp_path / "odd").mkdir()
    for number, size in enumerate(((20, 24), (24, 24))):
        synthetic_images(1, size)[0].save(tmp_path / f"odd/{number}.png")
    with pytest.raises(DataError, match=r"0\.png and 1\.png have 5 x 6 and 6 x 6 patches.*--image-size"):
        dinoeval.figures.attention_video(backbone, tmp_path / "odd")
    assert dinoeval.figures.attention_video(backbone, tmp_path / "odd", image_size=16).maps.shape == (2, 4, 4)


def test_attention_video_rejects_truncated_animation(backbone, tmp_path):
    frames = synthetic_images(6, (40, 40))
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "clip.gif").read_bytes()
    for fraction in (0.01, 0.3, 0.5, 0.7, 0.9):
        (tmp_path / "cut.gif").write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(DataError, match=r"cut\.gif: |frame 0000\d|cut\.gif.*--video"):
            dinoeval.figures.attention_video(backbone, tmp_path / "cut.gif")


def test_attention_rejects_nan(tiny_weights):
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    backbone.network.norm.weight.fill_(1)
    with torch.inference_mode():
        backbone.network.blocks[-1].norm1.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinite"):
        dinoeval.figures.attention(backbone, synthetic_images(1)[0], image_size=16)
