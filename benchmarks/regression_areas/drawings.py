"""Area of rendered figures and sheets. Unlike the arrays behind them, these change with every word that is written on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from regression_areas.inputs import command, flat_folder, network, pictures
from regression_areas.recording import Book
from regression_areas.scenes import video

DPI = 100


def drawings(book: Book, folder: Path) -> None:
    """Pixels of whole figures: attention, components, t-SNE, masks over frames, sheets of a search."""
    import dinoeval
    from dinoeval.figures import TsneConfig
    from dinoeval.figures.overlay import draw_video
    from dinoeval.search.sheet import Section, Tile, write_sheet

    def drawn(name: str, figure: object) -> None:
        path = folder / f"{name.replace('/', '_')}.png"
        dinoeval.figures.save(figure, path, dpi=DPI)
        book.add(name, np.array(Image.open(path)))

    photos, backbone = flat_folder(folder / "photos", 5, (80, 60), seed=81), network(folder, "vit_xs16")
    maps = dinoeval.figures.attention(backbone, photos / "0000.png", image_size=128, points=[(10, 20), (70, 50)])
    drawn("attention/default", maps.figure())
    drawn("attention/two_heads", maps.figure((0, 2), 0.6))
    drawn("attention/points", maps.points_figure())
    drawn("pca", dinoeval.figures.pca(backbone, photos, image_size=128).figure())
    rows = np.random.default_rng(82).standard_normal((24, 20)).astype(np.float32)
    names, groups = [f"name {number}" for number in range(24)], np.arange(24) % 3
    plain = dinoeval.figures.tsne(rows, names, TsneConfig(iterations=250))
    drawn("tsne/names", plain.figure())
    drawn("tsne/pictures", plain.figure(pictures(24, seed=83)))
    drawn("tsne/groups", dinoeval.figures.tsne(rows, names, TsneConfig(iterations=250), groups=groups, group_names=("a", "b", "c")).figure())
    frames = video(5, (96, 64), 2, seed=84)
    images, masks = [image for image, _ in frames], [mask for _, mask in frames]
    film, sheet = draw_video(folder / "video", "film", [str(number) for number in range(5)], images, masks)
    book.add("overlay/sheet", np.array(Image.open(sheet).convert("RGB")))
    with Image.open(film) as written:
        written.seek(3)
        book.add("overlay/film", np.array(written.convert("RGB")))
    tiles = [Tile(str(path), path.name, f"0.{number}") for number, path in enumerate(sorted(photos.glob("*.png")))]
    write_sheet(folder / "sheet.png", "title", [Section("heading", tiles), Section("other", tiles[:2])])
    book.add("search/sheet", np.array(Image.open(folder / "sheet.png").convert("RGB")))
    for kind, options in {"names": (), "each": ("--per-image", "--max-images", 30)}.items():
        _map(book, folder, kind, options)


def _map(book: Book, folder: Path, kind: str, options: tuple[object, ...]) -> None:
    """The command `tsne` on the digits."""
    path = folder / f"{kind}.png"
    command("tsne", "--data", "digits", "--out", path, "--device", "cpu", "--iterations", 250, *options)
    book.add(f"tsne/command/{kind}", np.array(Image.open(path)))
