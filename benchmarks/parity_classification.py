"""Backbones and the linear probe, side by side with torchvision, timm, facebookresearch/xcit and the released code.

    python benchmarks/parity_classification.py CHECKOUT-OF-DINO CHECKOUT-OF-XCIT DATA

Features: ResNet-50 and XCiT with made-up weights, written in the layout of the released full checkpoints and read back by
dinoeval.load. Linear probe: one epoch of the released `train` and `validate_network` and of ours, on the same weights,
images (DATA holds train/ and test/ class folders; 100 a class and 30 a class are used), order, batch and first head; central
crops on both sides. Head: a made-up file of the released interleaved layout, scored by both.
Writes benchmarks/results/parity_classification.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/models"), str(ROOT / "benchmarks")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402
from test_library import drawn  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.opening import open_splits  # noqa: E402
from dinoeval.data.transforms import DINO_TRANSFORM  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.features.forward import forward  # noqa: E402
from dinoeval.features.readout import parse_readout  # noqa: E402
from dinoeval.protocols import linear  # noqa: E402
from dinoeval.session import Session, SessionConfig  # noqa: E402
from dinoeval.training.probe.sources import Cached  # noqa: E402
from dinoeval.training.probe.sweep import EvalSet, Head, Sweep, SweepSettings  # noqa: E402

BATCH, LR = 128, 0.01


def backbones(xcit: Path) -> list[dict]:
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(xcit))
    import xcit as released_xcit

    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "full.pth"
        for arch in ("resnet50", "xcit_small_12_p16", "xcit_small_12_p8", "xcit_medium_24_p16", "xcit_medium_24_p8"):
            network = torchvision.models.resnet50() if arch == "resnet50" else getattr(released_xcit, arch)(num_classes=0)
            if arch == "resnet50":
                network.fc = torch.nn.Identity()
            state = drawn(network)
            network.load_state_dict(state)
            torch.save({"teacher": {f"module.backbone.{name}": tensor for name, tensor in state.items()}}, path)
            backbone = dinoeval.load(arch, weights=path, device="cpu")
            with torch.inference_mode():
                expected = network.eval()(images)
                row = {"arch": arch, "tensors": len(state), "to the released network": gap(backbone(images, patches=False).cls, expected)}
                if arch != "resnet50":
                    library = timm.create_model(f"{arch}_224", num_classes=0)
                    library.load_state_dict(backbone.network.state_dict())
                    row["to timm's"] = gap(backbone(images).cls, library.eval()(images))
            rows.append(row)
            print(row, flush=True)
    return rows


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def take(data: Path, target: Path) -> None:
    for split, source, count in (("train", data / "train", 100), ("val", next(p for p in (data / "val", data / "test") if p.is_dir()), 30)):
        for folder in sorted(source.iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                (target / split / folder.name / image.name).symlink_to(image.resolve())


def released_epoch(data: Path, state: dict, first: dict, readout: str) -> dict[str, float]:
    """One epoch of eval_linear.py's own `train`, then its `validate_network`, from our first head."""
    import eval_linear
    import vision_transformer
    from torchvision import datasets, transforms

    eval_linear.args = types.SimpleNamespace(arch="vit_tiny")
    torch.cuda.synchronize = lambda *_: None
    eval_linear.utils.SmoothedValue.synchronize_between_processes = lambda self: None  # sums over one process, on a GPU
    network = vision_transformer.vit_tiny(patch_size=56)
    network.load_state_dict(state)
    network.eval()
    n, avgpool = (4, False) if readout == "last4" else (1, True)
    classes, dim = first["weight"].shape
    classifier = eval_linear.LinearClassifier(dim, classes)
    classifier.linear.load_state_dict(first)
    classifier = torch.nn.parallel.DistributedDataParallel(classifier)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    crop = transforms.Compose([transforms.Resize(256, interpolation=3), transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    train, val = (datasets.ImageFolder(str(data / split), transform=crop) for split in ("train", "val"))
    sampler = torch.utils.data.distributed.DistributedSampler(train)
    sampler.set_epoch(0)
    loader = torch.utils.data.DataLoader(train, sampler=sampler, batch_size=BATCH, num_workers=2)
    optimizer = torch.optim.SGD(classifier.parameters(), LR * BATCH / 256.0, momentum=0.9, weight_decay=0)
    with contextlib.redirect_stdout(io.StringIO()):
        stats = eval_linear.train(network, classifier, optimizer, loader, 0, n, avgpool)
        scores = eval_linear.validate_network(
            torch.utils.data.DataLoader(val, batch_size=BATCH, num_workers=2), network, classifier, n, avgpool
        )
    return {"loss": stats["loss"], "top1": scores["acc1"], "top5": scores["acc5"]}


def probe(checkout: Path, data: Path) -> list[dict]:
    released.use(checkout)
    state = synthetic_state("vit_ti56")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        take(data, work)
        torch.save(state, work / "weights.pth")
        backbone = dinoeval.load("vit_ti56", weights=work / "weights.pth", device="cpu")
        train, val = open_splits(str(work))
        for name in ("last4", "clsavg"):
            readout = parse_readout(name)
            bank, held = (forward(backbone, half, readout, DINO_TRANSFORM) for half in (train, val))
            settings = SweepSettings(epochs=100, batch_size=BATCH, device=torch.device("cpu"))
            sweep = Sweep([Head(readout=name, lr=LR, weight_decay=0.0)], {name: bank.shape[1]}, train.labels, len(train.classes), settings)
            first = sweep.weights(0)
            steps = sweep.steps(np.arange(len(train)))
            for features, good in Cached({name: types.SimpleNamespace(take=bank.__getitem__)}, np.arange(len(train))).batches(0, steps):
                sweep.learn(features, train.labels[good])
            exam = EvalSet(features={name: held}, labels=val.labels)
            ranks = sweep.ranks(exam)
            ours = {"loss": sweep.close_epoch({"val": exam}, len(steps))["loss"][0],
                    "top1": 100 * float((ranks == 0).mean()), "top5": 100 * float((ranks < 5).mean())}  # fmt: skip
            theirs = released_epoch(work, state, first, name)
            rows.append({"readout": name, "images": [len(train), len(val)], "ours": ours, "released": theirs,
                         "loss, relative": abs(ours["loss"] / theirs["loss"] - 1)})  # fmt: skip
            print(rows[-1], flush=True)
        rows.append(head(work, state, backbone))
        print(rows[-1], flush=True)
    return rows


def head(work: Path, state: dict, backbone: dinoeval.Backbone) -> dict:
    """A made-up head file of ViT-B's interleaved layout, scored by the released validate_network and by dinoeval linear --head."""
    import eval_linear
    import vision_transformer
    from torchvision import datasets, transforms

    random = np.random.default_rng(5)
    weight = torch.from_numpy(random.standard_normal((10, 2 * backbone.dim), dtype=np.float32))
    file = {"state_dict": {"module.linear.weight": weight, "module.linear.bias": torch.zeros(10)}}
    torch.save(file, work / "head.pth")
    session = Session(SessionConfig(cache=str(work / "cache")), backbone)
    result = linear.run(linear.Config(data=str(work), head=str(work / "head.pth"), readouts=("clsavg",)), session)
    eval_linear.args = types.SimpleNamespace(arch="vit_tiny")
    network = vision_transformer.vit_tiny(patch_size=56)
    network.load_state_dict(state)
    classifier = torch.nn.parallel.DistributedDataParallel(eval_linear.LinearClassifier(2 * backbone.dim, 10))
    classifier.load_state_dict(file["state_dict"], strict=True)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    crop = transforms.Compose([transforms.Resize(256, interpolation=3), transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    val = torch.utils.data.DataLoader(datasets.ImageFolder(str(work / "val"), transform=crop), batch_size=BATCH)
    with contextlib.redirect_stdout(io.StringIO()):
        scores = eval_linear.validate_network(val, network.eval(), classifier, 1, True)
    return {"readout": "a head file on clsavg", "ours": result.metrics, "released": {"top1": scores["acc1"], "top5": scores["acc5"]}}


def main() -> None:
    checkout, xcit, data = (Path(argument) for argument in sys.argv[1:4])
    facts = {"backbones": backbones(xcit), "linear": probe(checkout, data), "timm": timm.__version__,
             "command": "python benchmarks/parity_classification.py DINO XCIT DATA", "machine": describe_machine()}  # fmt: skip
    (ROOT / "benchmarks/results/parity_classification.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
