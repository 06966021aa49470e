"""Write a backbone as a safetensors file that names its architecture and its digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dinoeval.files import write_whole
from dinoeval.models.checkpoints.safetensors_files import write_safetensors
from dinoeval.models.checkpoints.state_dict import BATCH_NORM_COUNTER, tensor_digest


def save_backbone(path: Path, state: Mapping[str, Tensor], *, arch: str, dtype: torch.dtype = torch.float32, **metadata: str) -> None:
    """Write a backbone as safetensors with its architecture and digest in the header.

    The file appears complete or not at all. Equal tensors and metadata give equal bytes. BatchNorm counters are not written.

    Args:
        path: The file to write.
        state: Tensors of the backbone by name.
        arch: Architecture, such as `vit_s16`.
        dtype: Type of the floating-point tensors in the file.
        **metadata: More entries of the header.

    Raises:
        DinoevalError: If the file cannot be written.
    """
    tensors = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in state.items()
        if not name.endswith(BATCH_NORM_COUNTER)
    }
    header = {"format": "pt", "arch": arch, "tensor_digest": tensor_digest(tensors), **metadata}
    write_whole(path, lambda target: write_safetensors(target, tensors, header))
