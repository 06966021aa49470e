"""Attention as pictures: hand-made maps whose pictures are known, real files of every kind, what the command writes."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image
from torchvision import transforms

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures.attention_maps import AttentionMaps
from dinoeval.figures.preprocessing import folder_names
from dinoeval.figures.style import COLOURS, rgb


@pytest.fixture(scope="module")
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture
def by_hand() -> AttentionMaps:
    """Two heads on 2 x 3 patches of 4 pixels of a black image; head 0 looks left, head 1 at the lower right corner."""
    maps = np.array([[[0.5, 0.1, 0.0], [0.3, 0.1, 0.0]], [[0.0, 0.0, 0.08], [0.0, 0.2, 0.4]]], np.float32)
    return AttentionMaps(
        name="hand", image=np.zeros((8, 12, 3), np.uint8), maps=maps, masks=maps > 0.25, points=((5.0, 1.0),), point_patches=((0, 1),),
        point_maps=maps[None], mass=0.6, patch=4, transform="none",
    )  # fmt: skip


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_maps_and_masks_equal_the_released_steps_written_slowly(backbone):
    picture = synthetic_images(1, (50, 37))[0]
    maps = dinoeval.figures.attention(backbone, picture, image_size=22, mass=0.6, points=[(0, 0), (49, 20.5)])
    assert (maps.image.shape, maps.maps.shape, maps.patch, maps.transform) == ((20, 20, 3), (3, 5, 5), 4, "figure@1:22x22:bilinear")
    released = transforms.Compose(  # visualize_attention.py
        [transforms.Resize((22, 22)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    rows = backbone.attention(released(picture)[None, :, :20, :20])[0].numpy()  # (heads, 26, 26)
    np.testing.assert_allclose(maps.maps, rows[:, 0, 1:].reshape(3, 5, 5), atol=1e-6)
    for head in range(3):
        values = rows[head, 0, 1:] / rows[head, 0, 1:].sum()
        kept, held = set(), 0.0
        for patch in sorted(range(25), key=lambda patch: -values[patch]):
            if held < 0.6 - 1e-6:
                kept.add(patch)
            held += values[patch]
        assert set(np.flatnonzero(maps.masks[head])) == kept
    # The second point, in the squashed picture: x = 49 * 22 / 50 = 21.56, in the rest that is cut; y = 20.5 * 22 / 37 = 12.2, row 3.
    assert maps.point_patches == ((0, 0), (3, 4))
    np.testing.assert_allclose(maps.point_maps[0], rows[:, 1, 1:].reshape(3, 5, 5), atol=1e-6)
    np.testing.assert_allclose(maps.point_maps[1], rows[:, 1 + 3 * 5 + 4, 1:].reshape(3, 5, 5), atol=1e-6)


def test_a_heads_picture_is_that_of_matplotlibs_imsave(by_hand):
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, by_hand.maps[1].repeat(4, 0).repeat(4, 1), format="png")
    expected = np.asarray(Image.open(stream).convert("RGB"))
    np.testing.assert_array_equal(by_hand.head(1), expected)


def test_the_overlay_gives_each_patch_to_the_head_that_is_highest_there(by_hand):
    """Scaled by their own ranges, head 0 is 1, .2, 0 / .6, .2, 0 and head 1 is 0, 0, .2 / 0, .5, 1."""
    shown = by_hand.overlay(threshold=0.3)[::4, ::4].astype(int)  # (2, 3, 3), one pixel a patch
    for row, column, head, height in ((0, 0, 0, 1.0), (1, 0, 0, 0.6), (1, 1, 1, 0.5), (1, 2, 1, 1.0)):
        np.testing.assert_allclose(shown[row, column], rgb(COLOURS[head]) * (0.2 + 0.7 * height), atol=0.51)
    assert not shown[0, 1:].any()  # below the threshold the image stays as it is
    assert not by_hand.overlay([1], threshold=0.3)[:, :4].any()
    assert by_hand.overlay([1])[7, 11].tolist() == by_hand.overlay()[7, 11].tolist()  # a head keeps its colour


def test_a_mask_is_tinted_and_has_a_border(by_hand):
    shown = by_hand.mask(0)  # patches (0, 0) and (1, 0): the left four columns
    colour = rgb(COLOURS[0])
    assert (shown[:, 3] == colour).all()  # the border towards what is not kept
    assert (shown[:, :3] == np.rint(colour / 2)).all()  # open at the frame of the image
    assert not shown[:, 4:].any()


def test_figures_have_the_width_of_a_column_and_their_files_can_be_read(by_hand, tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        dinoeval.figures.save(by_hand.figure(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        dinoeval.figures.save(by_hand.figure(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        assert picture.width == 975  # 3.25 inches of 300 dots
    sizes = {text.get_fontsize() for axis in by_hand.pointing_figure().axes for text in (axis.title, *axis.texts)}
    assert min(sizes) >= 7
    with pytest.raises(ConfigError, match=r"must end in .png, .pdf, .svg"):
        dinoeval.figures.save(by_hand.figure(), tmp_path / "a.jpg")


def test_every_kind_of_file_is_read_upright_and_in_eight_bits(backbone, tmp_path):
    picture = synthetic_images(1, (40, 24))[0]
    picture.save(tmp_path / "rgb.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    grey = np.asarray(picture.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=synthetic_images(3, (40, 24), seed=5))

    def read(name: str, **options) -> np.ndarray:
        return dinoeval.figures.attention(backbone, tmp_path / name, image_size="native", **options).image

    whole = np.asarray(picture)
    np.testing.assert_array_equal(read("rgb.png"), whole)
    np.testing.assert_array_equal(read("turned.png"), np.asarray(picture.transpose(Image.Transpose.ROTATE_270)))
    np.testing.assert_array_equal(read("turned.png", exif_transpose=False), whole)
    np.testing.assert_array_equal(read("grey.png"), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(read("deep.png"), read("grey.png"))
    assert np.abs(read("cmyk.jpg").astype(int) - whole).mean() < 3
    assert np.abs(read("moving.gif").astype(int) - whole).mean() < 8  # the first picture


def test_sizes(backbone):
    picture = synthetic_images(1, (41, 23))[0]

    def size(image_size) -> tuple[int, ...]:
        return dinoeval.figures.attention(backbone, picture, image_size=image_size).maps.shape

    assert (size("native"), size("32x16"), size(18), size("4")) == ((3, 5, 10), (3, 4, 8), (3, 4, 4), (3, 1, 1))
    for wrong, said in (("0", "is none"), ("3", "smaller than a patch of 4"), ("12x", "is none"), ("90000x90000", "beyond")):
        with pytest.raises(ConfigError, match=said):
            size(wrong)


def test_names_of_folders_are_of_one_picture_each():
    assert folder_names(["a/x.jpg", "b/x.png", "X.gif", "x-2.jpg", "y.jpg"]) == ["x", "x-2", "X-3", "x-2-2", "y"]
    assert folder_names(["a/...jpg", "..jpg", "....png"]) == ["image", "image-2", "image-3"]  # not `..`, which is another folder


def test_the_command_writes_every_picture_in_the_size_it_says(capsys, tiny_weights, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        synthetic_images(1, (40, 24), seed=ord(folder))[0].save(tmp_path / folder / "x.png")
    out = tmp_path / "out"
    words = ("attention", tmp_path / "a", tmp_path / "b/x.png", "--out", out, "--weights", tiny_weights, "--image-size", 16)
    code, said, err = call(capsys, *words, "--points", "3,4", "39.5,23", "--heads", 2, 0, "--format", "pdf")
    assert (code, "figure@1:16x16:bilinear" in said, said.count("3 heads, 4 x 4 patches")) == (0, True, 2), err
    singles = {"image", "overlay", "head0", "head1", "head2", "mask0", "mask1", "mask2", "point0", "point1"}
    for name in ("x", "x-2"):
        assert {path.name for path in (out / name).iterdir()} == {f"{one}.png" for one in singles} | {"figure.pdf", "points.pdf"}
        for one in singles:
            with Image.open(out / name / f"{one}.png") as picture:
                assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert (out / "x/image.png").read_bytes() != (out / "x-2/image.png").read_bytes()


def test_mistakes_are_told(backbone, tmp_path):
    picture = tmp_path / "x.png"
    synthetic_images(1, (40, 24))[0].save(picture)
    (tmp_path / "y.png").write_text("text")
    Image.new("RGB", (3, 40)).save(tmp_path / "z.png")

    def said(image, **options) -> str:
        with pytest.raises(dinoeval.DinoevalError) as error:
            dinoeval.figures.attention(backbone, image, **options)
        return str(error.value)

    assert f"the point 40,1 lies outside {picture}, which has 40 x 24 pixels" in said(picture, points=[(1, 1), (40, 1)])
    assert "mass must be above 0" in said(picture, mass=0)
    assert "figures resize in their own way" in said(picture, transform="dino:8/8")
    assert "y.png cannot be used: unsupported" in said(tmp_path / "y.png")
    assert "3 x 40 pixels are smaller than a patch of 4" in said(tmp_path / "z.png", image_size="native")
    assert "none.png" in said(tmp_path / "none.png")
    assert "holds 3 images; one is drawn at a time" in said(tmp_path)
    maps = dinoeval.figures.attention(backbone, picture, image_size=16)
    for wrong, words in (
        ({"heads": [3]}, "no head 3: the last block has 3"),
        ({"threshold": 1}, "threshold must"),
        ({"heads": []}, "name"),
    ):
        with pytest.raises(ConfigError, match=words):
            maps.overlay(**wrong)
    with pytest.raises(ConfigError, match="name the points"):
        maps.pointing_figure()
    with pytest.raises(ConfigError, match="resnet50 has no patches to draw"):
        dinoeval.figures.attention(dinoeval.load("resnet50", weights="random", device="cpu"), picture)


def test_the_command_writes_nothing_after_a_mistake_and_skips_bad_images_when_asked(capsys, tiny_weights, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    synthetic_images(1, (40, 24))[0].save(folder / "x.png")
    (folder / "y.png").write_text("text")
    words = ("attention", folder, "--weights", tiny_weights, "--image-size", "native", "--out")
    code, _, err = call(capsys, *words, tmp_path / "out", "--heads", 3)
    assert (code, "no head 3" in err) == (2, True)
    assert not list((tmp_path / "out").iterdir())
    assert "'5' is no point" in call(capsys, *words, tmp_path / "out", "--points", 5)[2]
    assert "that is a file" in call(capsys, *words, folder / "x.png")[2]
    code, out, err = call(capsys, *words, tmp_path / "out", "--bad-images", "skip")
    assert (code, out.count("heads"), "y.png is left out: unsupported" in err) == (0, 1, True)
    (folder / "x.png").write_text("text")
    code, _, err = call(capsys, *words, tmp_path / "out", "--bad-images", "skip")
    assert (code, "none of the images can be read" in err) == (2, True)


def test_a_video_has_one_scale_for_all_frames_and_keeps_their_order(capsys, tiny_weights, tmp_path, backbone):
    pictures = synthetic_images(11, (40, 24))
    (tmp_path / "film").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"film/frame{number}.png")  # frame10 comes after frame9, not after frame1
    film = dinoeval.figures.attention_video(backbone, tmp_path / "film")
    for number, picture in enumerate(pictures):
        alone = dinoeval.figures.attention(backbone, picture, image_size="native")
        np.testing.assert_allclose(film.maps[number], alone.maps.mean(0), atol=1e-7)
    low, high = np.min(film.maps), np.quantile(film.maps, 0.99)
    expected = matplotlib.colormaps["inferno"]((film.maps[3].astype(float) - low) / (high - low), bytes=True)[..., :3]
    np.testing.assert_array_equal(film.picture(3)[::4, ::4], expected)
    code, said, err = call(
        capsys, "attention", tmp_path / "film", "--video", "--weights", tiny_weights, "--out", tmp_path / "out", "--fps", 10
    )
    assert (code, "80 x 24 pixels, 100 ms a frame" in said) == (0, True), err
    assert len(list((tmp_path / "out/frames").iterdir())) == 11
    with Image.open(tmp_path / "out/attention.gif") as written:
        assert (written.n_frames, written.size, written.info["duration"]) == (11, (80, 24), 100)
    again = dinoeval.figures.attention_video(backbone, tmp_path / "out/attention.gif")
    assert (again.maps.shape, again.seconds) == ((11, 6, 20), 0.1)


def test_what_is_no_video_is_refused(backbone, tmp_path):
    synthetic_images(1)[0].save(tmp_path / "still.png")
    (tmp_path / "film.mp4").write_bytes(b"\0" * 64)
    for name, said in (("still.png", "does not move"), ("film.mp4", "no picture; a folder of frames"), ("none.gif", "no such file")):
        with pytest.raises(DataError, match=said):
            dinoeval.figures.attention_video(backbone, tmp_path / name)
    (tmp_path / "odd").mkdir()
    for number, size in enumerate(((20, 24), (24, 24))):
        synthetic_images(1, size)[0].save(tmp_path / f"odd/{number}.png")
    with pytest.raises(DataError, match=r"frames differ in size: 0.png and 1.png have 5 x 6 and 6 x 6 patches"):
        dinoeval.figures.attention_video(backbone, tmp_path / "odd")
    assert dinoeval.figures.attention_video(backbone, tmp_path / "odd", image_size=16).maps.shape == (2, 4, 4)


def test_a_broken_animation_is_refused(backbone, tmp_path):
    pictures = synthetic_images(6, (40, 40))
    pictures[0].save(tmp_path / "film.gif", save_all=True, append_images=pictures[1:])
    content = (tmp_path / "film.gif").read_bytes()
    for share in (0.01, 0.3, 0.5, 0.7, 0.9):
        (tmp_path / "cut.gif").write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=r"cut.gif: no picture|frame 0000\d cannot be used|does not move"):
            dinoeval.figures.attention_video(backbone, tmp_path / "cut.gif")


def test_nan_is_refused(tiny_weights):
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    backbone.network.norm.weight.fill_(1)
    with torch.inference_mode():
        backbone.network.blocks[-1].norm1.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinite"):
        dinoeval.figures.attention(backbone, synthetic_images(1)[0], image_size=16)
