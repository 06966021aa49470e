"""Checkpoint files: read them safely, map their layouts to the released names, compare and save state dicts.

`torch_files`, `safetensors_files` and `shards` read containers, `layouts` maps tensor names, `open` joins both, `state_dict`
compares tensors with a network, `save` writes.
"""

from dinoeval.models.checkpoints.layouts import Choice
from dinoeval.models.checkpoints.open import Checkpoint, check_zip, open_checkpoint, read_file, read_pickle
from dinoeval.models.checkpoints.safetensors_files import write_safetensors
from dinoeval.models.checkpoints.save import save_backbone
from dinoeval.models.checkpoints.state_dict import describe_shapes, match_state_dict, tensor_digest

__all__ = [
    "Checkpoint",
    "Choice",
    "check_zip",
    "describe_shapes",
    "match_state_dict",
    "open_checkpoint",
    "read_file",
    "read_pickle",
    "save_backbone",
    "tensor_digest",
    "write_safetensors",
]
