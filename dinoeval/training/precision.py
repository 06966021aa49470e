"""Mixed precision of a training step: automatic casting, and scaled gradients for fp16."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """The precision of forward passes; weights stay in float32.

    Args:
        device: Where the network runs.
        precision: fp32, bf16 or fp16. Only fp16 scales the loss.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device, self.dtype = device, _DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        """Make a context in which forward passes run in this precision.

        Returns:
            A context manager that does nothing for fp32.
        """
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)
