"""State dicts as plain mappings: hash them, and match them against a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from dinoeval.errors import CheckpointError, join_names

BATCH_NORM_COUNTER = "num_batches_tracked"
"""Suffix of the step counters of BatchNorm: integers that do not change what a network computes in eval mode."""


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """Hash the names, shapes and float32 values of tensors.

    The digest does not depend on the file format, on the order of the tensors or on BatchNorm counters.

    Args:
        state: Tensors by name, on any device.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Examples:
        >>> import torch
        >>> digest = tensor_digest({"norm.weight": torch.ones(2)})
        >>> digest[:12], len(digest)
        ('65fd9ebc91b1', 64)
        >>> digest == tensor_digest({"norm.weight": torch.ones(2, dtype=torch.float16)})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith(BATCH_NORM_COUNTER)):
        tensor = state[name].detach().float().contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def match_state_dict(
    state: Mapping[str, Tensor], ignored: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, arch: str, source: str
) -> dict[str, Tensor]:
    """Select the tensors that a network loads strictly.

    A tensor of `ignored` is used if the network has a part of that name. BatchNorm counters are set to zero.

    Args:
        state: Tensors of the backbone, under the network's names.
        ignored: Tensors that their names mark as parts of a head.
        expected: State dict of the network.
        arch: Architecture, for error messages.
        source: Model name or path of the weights, for error messages.

    Returns:
        One tensor for each name of `expected`, with its shape.

    Raises:
        CheckpointError: If tensors are missing, unexpected, of a wrong shape or type, or not finite. The message lists them.
    """
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(BATCH_NORM_COUNTER)}
    expected = {name: tensor for name, tensor in expected.items() if name not in counters}
    state = {**{name: tensor for name, tensor in ignored.items() if name in expected}, **state}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(expected[name].shape)} in the network"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"missing in the file ({len(missing)} of {len(expected)}): {join_names(missing)}")
    if unexpected:
        parts.append(f"unexpected in the file ({len(unexpected)}): {join_names(unexpected)}")
    if shapes:
        parts.append(f"wrong shape ({len(shapes)}): {join_names(shapes, 2)}")
    if parts:
        likely = describe_shapes(state)
        hint = f" The shapes in the file are those of {likely}." if likely and (shapes or missing) and not unexpected else ""
        raise CheckpointError(f"{source} does not fit {arch}; {'; '.join(parts)}.{hint} Pass a matching --arch, or another checkpoint.")
    wrong_types = [name for name in expected if state[name].is_floating_point() != expected[name].is_floating_point()]
    if wrong_types:
        raise CheckpointError(f"{source} contains tensors that are not dense floating-point numbers: {join_names(wrong_types)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} contains NaN or infinite values in {join_names(broken)}: choose another checkpoint")
    return {**state, **{name: torch.zeros((), dtype=tensor.dtype) for name, tensor in counters.items()}}


def describe_shapes(state: Mapping[str, Tensor]) -> str | None:
    """Describe the vision transformer that tensors of these shapes fit.

    Args:
        state: Tensors under the released names.

    Returns:
        A phrase with width, depth, patch size and number of positions, or None if these are not tensors of a ViT.

    Examples:
        >>> import torch
        >>> describe_shapes({"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "pos_embed": torch.zeros(1, 197, 384)})
        'a ViT of 384 dims, 0 blocks, patch 16 and 197 positions'
    """
    try:
        dim, _, patch, _ = state["patch_embed.proj.weight"].shape
        _, entries, _ = state["pos_embed"].shape
    except (KeyError, ValueError):
        return None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return f"a ViT of {dim} dims, {depth} blocks, patch {patch} and {entries} positions"
