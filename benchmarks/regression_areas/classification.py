"""Areas of the classification protocols on frozen features: k-NN, logistic regression, linear probe."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from regression_areas.inputs import class_folders, label_table, network, voc07
from regression_areas.recording import Book


class CannotRun(Exception):  # noqa: N818
    """Raised by an area that needs a library that is not installed."""


def knn(book: Book, folder: Path) -> None:
    """Weighted k-NN on all images, on parts of them, and with several labels an image."""
    import dinoeval
    from dinoeval.session import SessionConfig

    data, table = str(class_folders(folder / "classes")), str(label_table(folder / "labels"))
    backbone = network(folder)
    book.result("digits", dinoeval.evaluate("knn", dinoeval.load(device="cpu"), data="digits"))
    book.result("plain", dinoeval.evaluate("knn", backbone, data=data, k=(1, 5, 10, 20)))
    book.result("default_k", dinoeval.evaluate("knn", backbone, data=data))
    book.result("temperature", dinoeval.evaluate("knn", backbone, data=data, k=(20,), temperature=0.5))
    book.result("half", dinoeval.evaluate("knn", backbone, data=data, k=(5, 10), train_subset="50pct"))
    book.result("one_half", dinoeval.evaluate("knn", backbone, data=data, k=(5,), train_subset="50pct", subset_seeds=1))
    book.result("fifth", dinoeval.evaluate("knn", network(folder, seed=1), data=data, k=(5,), train_subset="20pct"))
    listed = folder / "list.txt"
    listed.write_text("".join(f"class{label}/{number:02d}.png\n" for label in (0, 1, 3) for number in (2, 5, 7)))
    book.result("listed", dinoeval.evaluate("knn", backbone, data=data, k=(3,), train_subset=str(listed)))
    book.result("several_labels", dinoeval.evaluate("knn", backbone, data=table, k=(1, 5, 20)))
    book.result("several_labels_half", dinoeval.evaluate("knn", backbone, data=table, k=(5,), train_subset="50pct", subset_seeds=2))
    os.environ["DINOEVAL_DATA"] = str(voc07(folder / "sets"))
    book.result("voc07", dinoeval.evaluate("knn", backbone, data="voc07", k=(5, 20)))
    book.result("transform", dinoeval.evaluate("knn", backbone, session=SessionConfig(transform="dino:20/16"), data=data, k=(10,)))
    book.result("bf16", dinoeval.evaluate("knn", network(folder, precision="bf16"), data=data, k=(10,)))
    book.result("small_batches", dinoeval.evaluate("knn", network(folder, seed=2), session=SessionConfig(batch_size=5), data=data, k=(10,)))
    workers = SessionConfig(workers=1, batch_size=5)
    book.result("worker_process", dinoeval.evaluate("knn", network(folder, seed=3), session=workers, data=data, k=(10,)))
    (Path(data) / "val/class0/99.png").write_bytes(b"no picture")
    book.result("bad_image", dinoeval.evaluate("knn", backbone, session=SessionConfig(bad_images="skip"), data=data, k=(10,)))


def _logistic(book: Book, folder: Path, solver: str) -> None:
    import dinoeval

    data, table = str(class_folders(folder / "classes")), str(label_table(folder / "labels"))
    backbone = network(folder)
    book.result("plain", dinoeval.evaluate("logistic", backbone, data=data, solver=solver))
    book.result("chosen", dinoeval.evaluate("logistic", backbone, data=data, solver=solver, lambdas=(0.01, 0.1, 1.0)))
    half = {"train_subset": "50pct", "subset_seeds": 2, "lambdas": (0.1, 1.0)}
    book.result("half", dinoeval.evaluate("logistic", backbone, data=data, solver=solver, **half))
    book.result("several_labels", dinoeval.evaluate("logistic", backbone, data=table, solver=solver, lambdas=(0.1, 1.0)))
    os.environ["DINOEVAL_DATA"] = str(voc07(folder / "sets"))
    book.result("voc07", dinoeval.evaluate("logistic", backbone, data="voc07", solver=solver))
    book.result("stopped", dinoeval.evaluate("logistic", backbone, data=data, solver=solver, max_iter=3))


def logistic(book: Book, folder: Path) -> None:
    """Logistic regression by scikit-learn."""
    _logistic(book, folder, "sklearn")


def logistic_cyanure(book: Book, folder: Path) -> None:
    """Logistic regression by cyanure, where it is installed."""
    try:
        import cyanure.estimators  # noqa: F401
    except ImportError as error:
        raise CannotRun(str(error)) from error
    _logistic(book, folder, "cyanure")


def linear(book: Book, folder: Path) -> None:
    """The linear probe: augmented and cached features, several readouts, with and without held-out images, saved heads."""
    import dinoeval
    from dinoeval.session import SessionConfig

    data, backbone = str(class_folders(folder / "classes")), network(folder)
    common = {"data": data, "train_batch_size": 16, "epochs": 3}
    sweep = {"readouts": ("cls", "last2", "clsavg", "gem"), "lrs": (0.1, 1.0, 3e38), "weight_decays": (0.0, 0.01), "held_out": 0.25}
    for features in ("augmented", "cached"):
        run = folder / features
        book.result(features, dinoeval.evaluate("linear", backbone, features=features, out=str(run), **sweep, **common))
        for name in ("head_chosen", "head_best_on_val"):
            saved = torch.load(run / f"{name}.pth", weights_only=False)
            book.state(f"{features}/{name}", saved["state_dict"])
            book.add_all(f"{features}/{name}", {"epoch": saved["epoch"], "score": saved["best_acc"], "lr": saved["dinoeval"]["lr"]})
    chosen = str(folder / "augmented/head_chosen.pth")
    book.result("saved_head", dinoeval.evaluate("linear", backbone, data=data, head=chosen))
    torch.save({"state_dict": _released_head(7, 4 * 96)}, folder / "released.pth")
    book.result("released_head", dinoeval.evaluate("linear", backbone, data=data, head=str(folder / "released.pth")))
    one = {"lrs": (0.5,), "held_out": 0.0, "out": str(folder / "one")}
    book.result("one_head_on_all", dinoeval.evaluate("linear", backbone, **one, **common))
    whole = {"lrs": (0.05, 0.5), "held_out": 0.0, "out": str(folder / "all")}
    book.result("two_heads_on_all", dinoeval.evaluate("linear", backbone, **whole, **common))
    half = {"readouts": ("cls",), "lrs": (0.2, 2.0), "train_subset": "50pct", "subset_seeds": 2, "out": str(folder / "half")}
    book.result("half", dinoeval.evaluate("linear", backbone, **half, **common))
    cached_half = {"readouts": ("cls",), "lrs": (0.2, 2.0), "train_subset": "50pct", "subset_seeds": 2, "features": "cached"}
    book.result("cached_half", dinoeval.evaluate("linear", network(folder, seed=1), **cached_half, **common))
    auto = {"readouts": ("auto",), "lrs": (1.0,), "epochs": 1, "features": "cached"}
    book.result("default_batch", dinoeval.evaluate("linear", backbone, data=data, **auto))
    (Path(data) / "train/class1/99.png").write_bytes(b"no picture")
    skip, few = SessionConfig(bad_images="skip"), {"readouts": ("cls",), "lrs": (0.5,), "held_out": 0.1}
    for features in ("augmented", "cached"):
        result = dinoeval.evaluate("linear", backbone, session=skip, features=features, **few, **common)
        book.result(f"bad_image/{features}", result)


def _released_head(classes: int, dim: int) -> dict[str, torch.Tensor]:
    """A head with drawn weights in the layout of the released files."""
    draw = torch.Generator().manual_seed(9)
    return {
        "module.linear.weight": torch.randn(classes, dim, generator=draw),
        "module.linear.bias": torch.randn(classes, generator=draw),
    }
