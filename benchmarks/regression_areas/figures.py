"""Areas of figures and search: arrays of attention, PCA and t-SNE; indexes, queries, duplicates."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dinoeval
from dinoeval.figures import PcaConfig, TsneConfig, attention, attention_video, class_means, pca, tsne
from dinoeval.search import ImageIndex, build
from regression_areas.datasets import video
from regression_areas.inputs import PATCH8, PATCH16, SMALL, image_folder, make_image, network, save
from regression_areas.recording import Recorder


def figures(record: Recorder, folder: Path) -> None:
    """Attention maps, masks, overlays and videos; principal components; t-SNE."""
    photos = image_folder(folder / "photos", 3, (120, 84), seed=51)
    coarse, fine = network(folder, PATCH16), network(folder, PATCH8)
    _attention(record, folder, photos / "0001.png", coarse, fine)
    _components(record, photos, coarse, fine)
    _video(record, folder, fine)
    random = np.random.default_rng(53)
    features = (random.standard_normal((8, 1, 40)) * 3 + random.standard_normal((8, 6, 40))).reshape(-1, 40).astype(np.float32)
    labels, marks, names = np.repeat(np.arange(8), 6), random.choice([-1, 0, 1], (48, 5)), [f"class{number}" for number in range(8)]
    means = class_means(features, labels, names)[0]
    record.add_all("class_means", {"labels": means, "marks": class_means(features, marks, names[:5])[0]})
    for name, points in (("images", features), ("classes", means)):
        found = tsne(points, [""] * len(points), TsneConfig(iterations=250))
        values = {"points": found.points, "dims": found.pca_dims, "perplexity": found.perplexity, "divergence": found.divergence}
        record.add_all(f"tsne/{name}", values)
    config = TsneConfig(pca_dims=5, perplexity=7.0, learning_rate=50.0, iterations=300, seed=3)
    record.add("tsne/options", tsne(features, [""] * len(features), config).points)


def _attention(record: Recorder, folder: Path, photo: Path, coarse: dinoeval.Backbone, fine: dinoeval.Backbone) -> None:
    library = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    cases: dict[str, tuple[dinoeval.Backbone, dict[str, Any]]] = {
        "default": (coarse, {}),
        "native": (fine, {"image_size": "native", "points": [(10, 20), (119, 83)]}),
        "rectangle": (coarse, {"image_size": "160x96", "mass": 0.8, "points": [(60.5, 40.0)]}),
        "bundled": (dinoeval.load(device="cpu"), {"image_size": 64}),
        "timm": (library, {"image_size": 96}),
    }
    for name, (backbone, options) in cases.items():
        maps = attention(backbone, photo, **options)
        values = {"maps": maps.maps, "masks": maps.masks, "image": maps.image, "point_maps": maps.point_maps}
        patches = np.array(maps.point_patches).reshape(-1, 2)
        record.add_all(f"attention/{name}", {**values, "patches": patches, "overlay_of_two": maps.overlay((0, 2), 0.5)})
        record.add_all(f"attention/{name}/drawn", maps.images())
    turned = make_image(0, (60, 40), seed=52)
    exif = turned.getexif()
    exif[0x0112] = 6
    save(turned, folder / "turned.jpg", exif=exif)
    for name, exif_transpose in (("upright", True), ("as_stored", False)):
        maps = attention(fine, folder / "turned.jpg", image_size="native", exif_transpose=exif_transpose)
        record.add(f"attention/turned/{name}", maps.maps)
    gray = Image.fromarray(np.asarray(make_image(4, (48, 32)).convert("L"), np.uint16) * 250)
    record.add("attention/bits16", attention(fine, save(gray, folder / "bits16.png"), image_size="native").image)


def _components(record: Recorder, photos: Path, coarse: dinoeval.Backbone, fine: dinoeval.Backbone) -> None:
    for name, config, image_size in (
        ("default", PcaConfig(), 160),
        ("native", PcaConfig(), "native"),
        ("foreground", PcaConfig(only_foreground=True), 480),
    ):
        found = pca(coarse, photos, config, image_size=image_size)
        record.add_all(f"pca/{name}", {"components": found.components, "mean": found.mean, "limits": found.limits})
        record.add_all(f"pca/{name}", {"variance": found.explained_variance_ratio, "scores": np.stack(found.scores)})
        drawn = {"colors": found.colors(1), "cut_out": found.foreground_image(2)}
        record.add_all(f"pca/{name}", {"foreground": np.stack(found.foreground), **drawn})
    images = [make_image(1, (48, 48)), make_image(2, (48, 48))]
    found = pca(fine, images, PcaConfig(percentiles=(5.0, 80.0)), image_size=48)
    record.add_all("pca/percentiles", {"picture": found.components_image(0), "limits": found.limits})


def _video(record: Recorder, folder: Path, backbone: dinoeval.Backbone) -> None:
    for number, (image, _) in enumerate(video(5, (96, 64), 2, seed=9)):
        save(image, folder / f"film/frame{number + 8}.png")
    for name, options in {"native": {}, "resized": {"image_size": 64, "fps": 10.0}}.items():
        found = attention_video(backbone, folder / "film", **options)
        record.add_all(f"video/{name}", {"maps": found.maps, "limits": found.limits, "milliseconds": found.milliseconds})
        record.add(f"video/{name}/drawn", np.stack([found.attention_image(number) for number in range(len(found.maps))]))
    images = [image for image, _ in video(4, (96, 64), 2, seed=10)]
    images[0].save(folder / "film.gif", save_all=True, append_images=images[1:], duration=50)
    found = attention_video(backbone, folder / "film.gif")
    frames, drawn = (np.stack(stack) for stack in zip(*found.image_pairs(), strict=True))
    values = {"maps": found.maps, "milliseconds": found.milliseconds, "frames": frames, "drawn": drawn}
    found.save(folder / "attention.gif")
    with Image.open(folder / "attention.gif") as written:
        written.seek(2)
        record.add_all("video/animation", {**values, "saved": np.array(written.convert("RGB"))})


def _photos(folder: Path, count: int) -> Path:
    """Make images, some of them with copies: equal, encoded again, made smaller."""
    image_folder(folder, count, (48, 40), seed=55)
    for number in range(4):
        shutil.copy(folder / f"{number:04d}.png", folder / f"equal{number}.png")
    for number in range(3, 9):
        with Image.open(folder / f"{number:04d}.png") as original:
            save(original.convert("RGB"), folder / f"encoded{number}.jpg", quality=70)
            save(original.resize((24, 20)), folder / f"smaller{number}.png")
    return folder


def search(record: Recorder, folder: Path) -> None:
    """Indexes of every kind: vectors, neighbors, duplicates, thresholds; an updated index."""
    photos, backbone, names = _photos(folder / "photos", 80), network(folder, SMALL), ("0003.png", "0017.png", "encoded5.jpg")
    queries = [photos / name for name in names]

    def add_neighbors(name: str, index: ImageIndex, images: Any, k: int) -> None:
        found = index.query(images, k)
        values = {"rows": np.stack([matches.rows for matches in found]), "cosines": np.stack([matches.cosines for matches in found])}
        record.add_all(name, {**values, "names": [Path(path).name for matches in found for path in matches.paths]})

    def add_groups(name: str, index: ImageIndex, threshold: float | None) -> None:
        found = index.duplicates(threshold)
        values = {"rows": np.concatenate([group.rows for group in found]), "cosines": np.concatenate([group.cosines for group in found])}
        record.add_all(name, {"sizes": [len(group.rows) for group in found], **values})

    exact = build(photos, folder / "exact", backbone)
    record.add_all("exact", {"features": exact.vectors(), "names": [Path(path).name for path in exact.paths]})
    add_neighbors("exact/files", exact, queries, 7)
    others = image_folder(folder / "others", 4, seed=56)
    add_neighbors("exact/folder", dinoeval.search.open(folder / "exact", backbone), others, 3)
    add_neighbors("exact/in_memory", exact, make_image(3, (48, 40), seed=55), 5)
    record.add("exact/nearest", exact.nearest(exact.vectors()[:5], 6)[1])
    threshold = dataclasses.asdict(exact.measure_threshold())
    record.add_all("exact/threshold", threshold | {"recalls": [one["found"] for one in threshold["recalls"]]})
    add_groups("exact/duplicates/measured", exact, None)
    add_groups("exact/duplicates/near", exact, 0.999)
    add_neighbors("readout", build(photos, folder / "gem", backbone, readout="gem"), queries, 4)
    many = _photos(folder / "many", 300)
    for kind in ("ivf", "hnsw", "pq"):
        index = build(many, folder / kind, backbone, index=kind)
        record.add_all(f"{kind}/parameters", index.manifest["parameters"])
        record.add_all(f"{kind}/recall", index.manifest["recall"])
        add_neighbors(f"{kind}/files", index, [many / name for name in names], 10)
        add_groups(f"{kind}/duplicates", index, 0.9995)
    image_folder(photos / "new", 6, (48, 40), seed=57)
    (photos / "0010.png").unlink()
    grown = build(photos, folder / "exact", backbone)
    record.add("updated/names", [Path(path).name for path in grown.paths])
    add_neighbors("updated/files", grown, queries, 7)
