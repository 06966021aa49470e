"""Networks and the linear probe against torchvision, timm, facebookresearch/xcit and the released code.

    python benchmarks/parity_classification.py CHECKOUT XCIT DATA

CHECKOUT is a checkout of facebookresearch/dino, XCIT one of facebookresearch/xcit, DATA a folder with train/ and test/ class
folders. Networks: ResNet-50 and XCiT with random weights, written in the layout of the released full checkpoints and loaded
by dinoeval.load. Linear probe: one epoch of `train` and `validate_network` of the released code and one of dinoeval, on the
same weights, images (100 training and 30 test images per class), order, batches and first head, with center crops. Head
file: random weights in the released interleaved layout, scored by both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import released
import timm
import torch
import torchvision
from measurement import Options, write_record

import dinoeval
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import DINO_TRANSFORM
from dinoeval.features.forward import forward
from dinoeval.features.readout import parse_readout
from dinoeval.protocols import linear
from dinoeval.session import Session, SessionConfig
from dinoeval.testing import tiny_image_folder, tiny_state
from dinoeval.training.probe.sources import Cached
from dinoeval.training.probe.sweep import EvalSet, Head, Sweep, SweepSettings

COMMAND = "python benchmarks/parity_classification.py CHECKOUT XCIT DATA"
ARCH = "vit_ti56"
LR = 0.01
READOUTS = {"last4": (4, False), "clsavg": (1, True)}
"""Arguments n and avgpool of eval_linear.py by readout."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is compared."""

    xcit: tuple[str, ...] = ("xcit_small_12_p16", "xcit_small_12_p8", "xcit_medium_24_p16", "xcit_medium_24_p8")
    pixels: int = 224
    train: int = 100
    """Training images per class."""
    val: int = 30
    """Test images per class."""
    batch: int = 128


TINY = Sizes((), 64, 8, 3, 16)


def compare_networks(sizes: Sizes, xcit: Path | None) -> list[dict]:
    """Return the largest differences of features, by architecture."""
    warnings.filterwarnings("ignore")
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, sizes.pixels, sizes.pixels), dtype=np.float32))
    resnet = torchvision.models.resnet50()
    resnet.fc = torch.nn.Identity()  # type: ignore[assignment]
    rows = [compare_network("resnet50", resnet, images)]
    if xcit:
        sys.path.append(str(xcit))  # After the checkout of dino, which has a module of the same name, utils.
        import xcit as released_xcit

        rows += [compare_network(arch, getattr(released_xcit, arch)(num_classes=0), images) for arch in sizes.xcit]
    return rows


def compare_network(arch: str, network: torch.nn.Module, images: torch.Tensor) -> dict:
    """Compare a network of another library with the same weights in dinoeval, and XCiT with timm too."""
    state = inputs.random_state(network)
    network.load_state_dict(state)
    row: dict[str, Any] = {"arch": arch, "tensors": len(state)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        backbone = dinoeval.load(arch, weights=inputs.save_full_checkpoint(Path(folder) / "full.pth", state), device="cpu")
        expected = network.eval()(images)
        row["difference_to_released"] = largest_difference(backbone(images, patches=False).cls, expected)
        if arch != "resnet50":
            library = timm.create_model(f"{arch}_224", num_classes=0)
            library.load_state_dict(backbone.network.state_dict())
            row["difference_to_timm"] = largest_difference(backbone(images).cls, library.eval()(images))
    print(row, flush=True)
    return row


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return float((one - other).abs().max())


class Released:
    """The functions of eval_linear.py, on a CPU in one process."""

    def __init__(self, data: Path, state: dict[str, torch.Tensor], batch: int) -> None:
        import eval_linear
        import vision_transformer

        self.code, self.data, self.batch = eval_linear, data, batch
        eval_linear.args = types.SimpleNamespace(arch="vit_tiny")
        torch.cuda.synchronize = lambda *_: None
        eval_linear.utils.SmoothedValue.synchronize_between_processes = lambda self: None  # It sums over processes on a GPU.
        self.network = vision_transformer.vit_tiny(patch_size=56)
        self.network.load_state_dict(state)
        self.network.eval()

    def classifier(self, state: dict[str, torch.Tensor]) -> torch.nn.Module:
        """Return the released classifier, with these weights."""
        classes, dim = state["weight"].shape
        classifier = self.code.LinearClassifier(dim, classes)
        classifier.linear.load_state_dict(state)
        return torch.nn.parallel.DistributedDataParallel(classifier)

    def loader(self, split: str) -> torch.utils.data.DataLoader:
        """Return a loader of center crops."""
        images = torchvision.datasets.ImageFolder(str(self.data / split), transform=released.evaluation_transform())
        sampler = torch.utils.data.distributed.DistributedSampler(images) if split == "train" else None
        return torch.utils.data.DataLoader(images, sampler=sampler, batch_size=self.batch, num_workers=2)

    def train(self, first: dict[str, torch.Tensor], readout: str) -> dict[str, float]:
        """Train one epoch from a head, and score it."""
        n, avgpool = READOUTS[readout]
        classifier, loader = self.classifier(first), self.loader("train")
        optimizer = torch.optim.SGD(classifier.parameters(), LR * self.batch / 256.0, momentum=0.9, weight_decay=0)
        with contextlib.redirect_stdout(io.StringIO()):
            statistics = self.code.train(self.network, classifier, optimizer, loader, 0, n, avgpool)
        return {"loss": statistics["loss"], **self.score(classifier, readout)}

    def score(self, classifier: torch.nn.Module, readout: str) -> dict[str, float]:
        """Return top-1 and top-5 of a classifier."""
        with contextlib.redirect_stdout(io.StringIO()):
            scores = self.code.validate_network(self.loader("val"), self.network, classifier, *READOUTS[readout])
        return {"top1": scores["acc1"], "top5": scores["acc5"]}


def compare_probe(work: Path, sizes: Sizes, compare: bool) -> list[dict]:
    """Compare one epoch for each readout, and a head file."""
    state = tiny_state(ARCH)
    torch.save(state, work / "weights.pth")
    backbone = dinoeval.load(ARCH, weights=work / "weights.pth", device="cpu")
    other = Released(work / "data", state, sizes.batch) if compare else None
    rows = [compare_epoch(backbone, work / "data", name, sizes.batch, other) for name in READOUTS]
    return [*rows, compare_head_file(backbone, work, other)]


def compare_epoch(backbone: dinoeval.Backbone, data: Path, name: str, batch: int, other: Released | None) -> dict:
    """Train one epoch of the linear probe with dinoeval, and with the released code from the same head."""
    train, val = open_splits(str(data))
    readout = parse_readout(name)
    features, val_features = (forward(backbone, split, readout, DINO_TRANSFORM) for split in (train, val))
    settings = SweepSettings(epochs=100, batch_size=batch, device=torch.device("cpu"))
    head = Head(readout=name, lr=LR, weight_decay=0.0)
    sweep = Sweep([head], {name: features.shape[1]}, train.labels, len(train.classes), settings)
    first = sweep.weights(0)
    steps = sweep.steps(np.arange(len(train)))
    source = Cached({name: types.SimpleNamespace(take=features.__getitem__)}, np.arange(len(train)))
    for vectors, positions in source.batches(0, steps):
        sweep.learn(vectors, train.labels[positions])
    evaluation = EvalSet(features={name: val_features}, labels=val.labels)
    ranks = sweep.ranks(evaluation)
    loss = sweep.close_epoch({"val": evaluation}, len(steps))["loss"][0]
    found = {"loss": loss, "top1": 100 * float((ranks == 0).mean()), "top5": 100 * float((ranks < 5).mean())}
    row: dict[str, Any] = {"readout": name, "images": [len(train), len(val)], "dinoeval": found}
    if other:
        row["released"] = other.train(first, name)
        row["relative_loss"] = abs(found["loss"] / row["released"]["loss"] - 1)
    print(row, flush=True)
    return row


def compare_head_file(backbone: dinoeval.Backbone, work: Path, other: Released | None) -> dict:
    """Score a head file with random weights in the interleaved layout of ViT-B by `dinoeval linear --head`."""
    classes = len(list((work / "data/val").iterdir()))
    weight = torch.from_numpy(np.random.default_rng(5).standard_normal((classes, 2 * backbone.dim), dtype=np.float32))
    head = {"weight": weight, "bias": torch.zeros(classes)}
    torch.save({"state_dict": {f"module.linear.{name}": tensor for name, tensor in head.items()}}, work / "head.pth")
    session = Session(SessionConfig(cache=str(work / "cache")), backbone)
    result = linear.run(linear.Config(data=str(work / "data"), head=str(work / "head.pth"), readouts=("clsavg",)), session)
    row: dict[str, Any] = {"readout": "clsavg, head file", "dinoeval": result.metrics}
    if other:
        row["released"] = other.score(other.classifier(head), "clsavg")
    print(row, flush=True)
    return row


def main() -> None:
    options = Options(__file__, "parity_classification", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("xcit", "a checkout of facebookresearch/xcit")
    options.add_input("data", "a folder with train/ and test/ class folders, such as those of CIFAR-10")
    args = options.parse()
    sizes, reason = TINY if args.tiny else Sizes(), released.why_left_out(args.checkout)
    if not reason:
        released.use(args.checkout)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.tiny:  # The released code computes top-5 for five classes or more.
            tiny_image_folder(work / "data", classes=6, train=sizes.train, val=sizes.val)
        else:
            inputs.link_class_folders(args.data, work / "data", train=sizes.train, val=sizes.val)
        record = {"networks": compare_networks(sizes, args.xcit), "linear": compare_probe(work, sizes, not reason)}
    no_xcit = released.why_left_out(args.xcit, name="XCIT", source="facebookresearch/xcit")
    write_record(args, COMMAND, {**record, "timm": timm.__version__}, [reason, no_xcit])


if __name__ == "__main__":
    main()
