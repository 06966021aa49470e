"""Lets scripts of this folder run the released code (a checkout of facebookresearch/dino) on a machine without CUDA.

Its `.cuda()` calls become identities and its process group becomes gloo; nothing else of it is changed.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch


def use(checkout: Path) -> None:
    """Make the modules of the checkout importable, on a CPU, in this process."""
    import torch.distributed as dist

    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(checkout))
    torch.hub.list = lambda *_, **__: []  # main_dino.py asks the network for XCiT's names while it is imported
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29561")
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1)


def run_eval_knn(checkout: Path, words: list[str]) -> None:
    """Run eval_knn.py as its command line would."""
    import runpy

    use(checkout)
    import utils

    utils.init_distributed_mode = lambda args: None
    sys.argv = ["eval_knn.py", *words]
    runpy.run_path(str(checkout / "eval_knn.py"), run_name="__main__")


if __name__ == "__main__":  # python benchmarks/released.py CHECKOUT OPTIONS-OF-EVAL_KNN
    run_eval_knn(Path(sys.argv[1]), sys.argv[2:])
