"""Areas of figures and search: arrays behind attention, PCA and t-SNE; indexes, queries, duplicates."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from regression_areas.inputs import flat_folder, network, picture, save
from regression_areas.recording import Book
from regression_areas.scenes import video


def figures(book: Book, folder: Path) -> None:
    """Attention maps, masks, overlays and videos; principal components; t-SNE."""
    import dinoeval

    photos = flat_folder(folder / "photos", 3, (120, 84), seed=51)
    backbone, fine = network(folder, "vit_xs16"), network(folder, "vit_xs8")
    library = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    cases = {
        "default": (backbone, {}),
        "native": (fine, {"image_size": "native", "points": [(10, 20), (119, 83)]}),
        "rectangle": (backbone, {"image_size": "160x96", "mass": 0.8, "points": [(60.5, 40.0)]}),
        "bundled": (dinoeval.load(device="cpu"), {"image_size": 64}),
        "timm": (library, {"image_size": 96}),
    }
    for name, (chosen, options) in cases.items():
        maps = dinoeval.figures.attention(chosen, photos / "0001.png", **options)
        values = {"maps": maps.maps, "masks": maps.masks, "image": maps.image, "point_maps": maps.point_maps}
        book.add_all(f"attention/{name}", values)
        book.add(f"attention/{name}/patches", np.array(maps.point_patches).reshape(-1, 2))
        for title, drawn in maps.images().items():
            book.add(f"attention/{name}/drawn/{title}", drawn)
        book.add(f"attention/{name}/overlay_of_two", maps.overlay((0, 2), 0.5))
    turned = picture(0, (60, 40), seed=52)
    exif = turned.getexif()
    exif[0x0112] = 6
    save(turned, folder / "turned.jpg", exif=exif)
    for upright in (True, False):
        maps = dinoeval.figures.attention(fine, folder / "turned.jpg", image_size="native", exif_transpose=upright)
        book.add(f"attention/turned/{'upright' if upright else 'as_stored'}", maps.maps)

    from dinoeval.figures import PcaConfig, TsneConfig

    for name, (config, options) in {
        "default": (PcaConfig(), {"image_size": 160}),
        "native": (PcaConfig(), {"image_size": "native"}),
        "foreground": (PcaConfig(only_foreground=True), {}),
    }.items():
        found = dinoeval.figures.pca(backbone, photos, config, **options)
        book.add_all(f"pca/{name}", {"components": found.components, "mean": found.mean, "limits": found.limits})
        book.add_all(f"pca/{name}", {"variance": found.explained_variance_ratio, "scores": np.stack(found.scores)})
        book.add_all(f"pca/{name}", {"foreground": np.stack(found.foreground), "colors": found.colors(1), "cut_out": found.foreground_image(2)})
    percentiles = dinoeval.figures.pca(fine, [picture(1, (48, 48)), picture(2, (48, 48))], PcaConfig(percentiles=(5.0, 80.0)), image_size=48)
    book.add_all("pca/percentiles", {"picture": percentiles.components_image(0), "limits": percentiles.limits})

    for number, (image, _) in enumerate(video(5, (96, 64), 2, seed=9)):
        save(image, folder / f"film/frame{number + 8}.png")
    for name, options in {"native": {}, "resized": {"image_size": 64, "fps": 10.0}}.items():
        film = dinoeval.figures.attention_video(fine, folder / "film", **options)
        book.add_all(f"video/{name}", {"maps": film.maps, "limits": list(film.limits), "milliseconds": film.milliseconds})
        book.add(f"video/{name}/drawn", np.stack([film.attention_image(number) for number in range(len(film.maps))]))

    images = [image for image, _ in video(4, (96, 64), 2, seed=10)]
    images[0].save(folder / "film.gif", save_all=True, append_images=images[1:], duration=50)
    film = dinoeval.figures.attention_video(fine, folder / "film.gif")
    book.add_all("video/animation", {"maps": film.maps, "milliseconds": film.milliseconds})
    for title, stack in zip(("frames", "drawn"), zip(*film.image_pairs(), strict=True), strict=True):
        book.add(f"video/animation/{title}", np.stack(stack))
    film.save(folder / "attention.gif")
    with Image.open(folder / "attention.gif") as written:
        written.seek(2)
        book.add("video/animation/saved", np.array(written.convert("RGB")))
    gray = Image.fromarray(np.asarray(picture(4, (48, 32)).convert("L"), np.uint16) * 250)
    book.add("attention/bits16", dinoeval.figures.attention(fine, save(gray, folder / "bits16.png"), image_size="native").image)

    random = np.random.default_rng(53)
    rows = (random.standard_normal((8, 1, 40)) * 3 + random.standard_normal((8, 6, 40))).reshape(-1, 40).astype(np.float32)
    labels, marks = np.repeat(np.arange(8), 6), random.choice([-1, 0, 1], (48, 5))
    names = [f"class{number}" for number in range(8)]
    book.add("class_means/labels", dinoeval.figures.class_means(rows, labels, names)[0])
    book.add("class_means/marks", dinoeval.figures.class_means(rows, marks, names[:5])[0])
    for name, some in (("images", rows), ("classes", dinoeval.figures.class_means(rows, labels, names)[0])):
        found = dinoeval.figures.tsne(some, [str(number) for number in range(len(some))], TsneConfig(iterations=250))
        values = {"points": found.points, "dims": found.pca_dims, "perplexity": found.perplexity, "divergence": found.divergence}
        book.add_all(f"tsne/{name}", values)
    other = dinoeval.figures.tsne(rows, [""] * len(rows), TsneConfig(pca_dims=5, perplexity=7.0, learning_rate=50.0, iterations=300, seed=3))
    book.add("tsne/options", other.points)


def _photos(folder: Path, count: int) -> Path:
    """Pictures, some of them with copies: equal, encoded again, made smaller."""
    flat_folder(folder, count, (48, 40), seed=55)
    for number in range(4):
        shutil.copy(folder / f"{number:04d}.png", folder / f"equal{number}.png")
    for number in range(3, 9):
        with Image.open(folder / f"{number:04d}.png") as original:
            save(original.convert("RGB"), folder / f"encoded{number}.jpg", quality=70)
            save(original.resize((24, 20)), folder / f"smaller{number}.png")
    return folder


def search(book: Book, folder: Path) -> None:
    """Indexes of every kind: rows, answers, duplicates, thresholds; an index that is brought up to date."""
    import dinoeval

    photos, backbone = _photos(folder / "photos", 80), network(folder, "vit_xs8_32")
    asked = [photos / "0003.png", photos / "0017.png", photos / "encoded5.jpg"]

    def answers(name: str, library: dinoeval.search.ImageIndex, images: object, k: int) -> None:
        found = library.query(images, k)
        book.add(f"{name}/rows", np.stack([matches.rows for matches in found]))
        book.add(f"{name}/cosines", np.stack([matches.cosines for matches in found]))
        book.add(f"{name}/names", [Path(path).name for matches in found for path in matches.paths])

    def groups(name: str, library: dinoeval.search.ImageIndex, threshold: float | None) -> None:
        found = library.duplicates(threshold)
        book.add(f"{name}/sizes", [len(group.rows) for group in found])
        book.add(f"{name}/rows", np.concatenate([group.rows for group in found]))
        book.add(f"{name}/cosines", np.concatenate([group.cosines for group in found]))

    exact = dinoeval.search.build(photos, folder / "exact", backbone)
    book.add_all("exact", {"features": exact.vectors(), "names": [Path(path).name for path in exact.paths]})
    answers("exact/files", exact, asked, 7)
    answers("exact/folder", dinoeval.search.open(folder / "exact", backbone), flat_folder(folder / "others", 4, seed=56), 3)
    answers("exact/in_memory", exact, picture(3, (48, 40), seed=55), 5)
    book.add("exact/nearest", exact.nearest(exact.vectors()[:5], 6)[1])
    book.add_all("exact/threshold", dataclasses.asdict(exact.measure_threshold()))
    groups("exact/duplicates/measured", exact, None)
    groups("exact/duplicates/near", exact, 0.999)
    answers("readout", dinoeval.search.build(photos, folder / "gem", backbone, readout="gem"), asked, 4)
    many = _photos(folder / "many", 300)
    for kind in ("ivf", "hnsw", "pq"):
        library = dinoeval.search.build(many, folder / kind, backbone, index=kind)
        book.add_all(f"{kind}/parameters", library.manifest["parameters"])
        book.add_all(f"{kind}/recall", library.manifest["recall"])
        answers(f"{kind}/files", library, [many / path.name for path in asked], 10)
        groups(f"{kind}/duplicates", library, 0.9995)
    flat_folder(photos / "new", 6, (48, 40), seed=57)
    (photos / "0010.png").unlink()
    grown = dinoeval.search.build(photos, folder / "exact", backbone)
    book.add("updated/names", [Path(path).name for path in grown.paths])
    answers("updated/files", grown, asked, 7)
    _parts_of_search(book, folder)


def _parts_of_search(book: Book, folder: Path) -> None:
    """Copies that a threshold is measured on, the choice of a threshold, groups, and what an index learns from rows."""
    from dinoeval.maths.neighbors import l2_normalize
    from dinoeval.search import approximate
    from dinoeval.search.duplicates import link_duplicates
    from dinoeval.search.threshold import choose_threshold, make_copies
    from dinoeval.search.vectors import VectorFile, sample, write_vectors

    for number, copy in enumerate(make_copies(picture(5, (61, 47), seed=58))):
        book.add(f"parts/copies/{number}", np.asarray(copy))
    random = np.random.default_rng(59)
    for spread in (0.02, 0.05, 0.1):
        chosen = choose_threshold(1 - spread * np.abs(random.standard_normal(200)), 0.8 + 0.08 * random.standard_normal(500), 50)
        book.add_all(f"parts/threshold/{spread}", dataclasses.asdict(chosen))
    drawn = l2_normalize(random.standard_normal((3000, 16), dtype=np.float32))
    write_vectors(folder / "rows.index", [drawn[:1000], drawn[1000:]], 3000, 16)
    rows = VectorFile(folder / "rows.index", 3000, 16)
    components, best = link_duplicates(rows, 0.85)
    book.add_all("parts/linked", {"rows": np.concatenate(components), "sizes": [len(one) for one in components], "nearest": best})
    book.add("parts/sample", sample(3000, 40))
    for kind in ("ivf", "pq", "hnsw"):
        index = approximate.train_index(kind, rows)
        tuned, recall = approximate.tune(kind, index, rows)
        book.add_all(f"parts/{kind}", {**tuned.parameters(), "recall": recall["recall"]})
        if kind != "hnsw":
            book.add(f"parts/{kind}/centroids", index.quantizer.reconstruct_n(0, index.nlist))
        cosines, found = tuned.search(drawn[:50], 8)
        book.add_all(f"parts/{kind}", {"cosines": cosines, "rows": found})
