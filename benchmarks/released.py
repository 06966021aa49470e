"""Run the released code, a checkout of facebookresearch/dino, on a machine without CUDA.

Its `.cuda()` calls do nothing and its process group uses gloo. Nothing else is changed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from measurement import free_port
from PIL import Image

NOTHING: Mapping[str, str] = {}
OPENCV = {"cv2": "opencv-python-headless"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def why_left_out(
    checkout: Path | None, *, requires: Mapping[str, str] = NOTHING, name: str = "CHECKOUT", source: str = "facebookresearch/dino"
) -> str | None:
    """Return why the other side of a comparison cannot run, or None if it can.

    Args:
        checkout: A checkout of the other code, or None.
        requires: The packages that it imports: name to install by name of the module.
        name: Name of the argument that takes the checkout.
        source: The repository.
    """
    if checkout is None:
        return f"the code of {source}: pass {name}, a checkout of it"
    missing = [package for module, package in requires.items() if importlib.util.find_spec(module) is None]
    return f"the code of {source}: it requires {' and '.join(missing)} (pip install {' '.join(missing)})" if missing else None


def use(checkout: Path) -> None:
    """Make the modules of the checkout importable, on a CPU, in this process.

    Args:
        checkout: A checkout of facebookresearch/dino.
    """
    import torch.distributed as dist

    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(checkout))
    restore_removed_names()
    torch.hub.list = lambda *_, **__: []  # main_dino.py downloads the names of XCiT models when it is imported.
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = free_port()
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1)


def restore_removed_names() -> None:
    """Restore two names that NumPy and Pillow have removed since, under which the old code uses them."""
    np.in1d = np.isin  # type: ignore[attr-defined]
    Image.ANTIALIAS = Image.Resampling.LANCZOS  # type: ignore[attr-defined]


def evaluation_transform():
    """Return the transform of eval_knn.py and of the validation in eval_linear.py."""
    from torchvision import transforms

    normalize = transforms.Normalize(MEAN, STD)
    return transforms.Compose([transforms.Resize(256, interpolation=3), transforms.CenterCrop(224), transforms.ToTensor(), normalize])


def run_script(checkout: Path, script: str, *words: object) -> str:
    """Run a script of the checkout in a new process.

    Args:
        checkout: A checkout of facebookresearch/dino.
        script: Name of the script, such as eval_knn.py.
        words: Its command line.

    Returns:
        What it prints. Average precision of Copydays has nine decimals instead of three.

    Raises:
        RuntimeError: If the script fails.
    """
    command = [sys.executable, __file__, checkout, script, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-3000:]}")
    return done.stdout


def main(checkout: Path, script: str, words: list[str]) -> None:
    """Run a script of the checkout in this process, as its command line does."""
    use(checkout)
    import utils

    utils.init_distributed_mode = lambda args: None
    sys.argv = [script, *words]
    source = (checkout / script).read_text().replace("mAP=%.3f", "mAP=%.9f")
    exec(compile(source, script, "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
