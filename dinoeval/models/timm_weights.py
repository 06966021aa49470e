"""The weights that timm publishes for its models."""

from __future__ import annotations

import logging
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoeval.environment import offline
from dinoeval.errors import CheckpointError

_log = logging.getLogger(__name__)


def published_weights(network: Any) -> tuple[dict[str, Tensor], str]:
    """Fetch the weights that timm publishes for a model.

    Args:
        network: A timm model from `build`.

    Returns:
        The state dict, and the address of its source.

    Raises:
        CheckpointError: If timm publishes no weights for it, or they cannot be fetched.
    """
    import timm

    name = network.config.name
    published = timm.get_pretrained_cfg(name)
    source = ""
    if published:
        source = f"https://huggingface.co/{published.hf_hub_id}" if published.hf_hub_id else str(published.url or "")
    if not source:
        raise CheckpointError(f"timm publishes no weights for '{name}'. Pass --weights FILE or --weights random.")
    if (path := _stored_file(published)) is not None:
        _log.info("reading the weights of timm/%s from %s", name, path)
        try:
            stored = {"file": str(path)}
            return timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=stored).state_dict(), source
        except Exception as error:  # A corrupted file can make its reader raise any exception.
            raise CheckpointError(
                f"the weights of 'timm/{name}' in {path} cannot be read ({_first_line(error)}). If the file is corrupted, delete it "
                f"(rm {shlex.quote(str(path))}) and rerun the command with network access, which fetches it again."
            ) from error
    by_hand = f"Download the file from {source} on a machine with network access and pass it with --weights"
    if variable := offline():
        raise CheckpointError(
            f"the weights of 'timm/{name}' are fetched from {source}, but {variable} is set, and they are not in the cache of "
            f"huggingface_hub or torch. {by_hand}."
        )
    _log.info("fetching the weights of timm/%s from %s", name, source)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict(), source
    except Exception as error:  # of the network, of huggingface_hub, or of the reader of the file
        reason = _first_line(error)
        raise CheckpointError(f"the weights of 'timm/{name}' could not be fetched from {source}: {reason}. {by_hand}.") from error


def _stored_file(published: Any) -> Path | None:
    """Return the file of published weights that huggingface_hub or torch has stored, or None."""
    from huggingface_hub import try_to_load_from_cache

    if published.hf_hub_id:
        for filename in (published.hf_hub_filename or "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(published.hf_hub_id.split("@")[0], filename)
            if isinstance(found, str):
                return Path(found)
    if published.url:
        stored = Path(torch.hub.get_dir(), "checkpoints", urllib.parse.urlparse(str(published.url)).path.rsplit("/", 1)[-1])
        return stored if stored.is_file() else None
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
