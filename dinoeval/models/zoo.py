"""The table of released weights: the address of each file, and what is known about it.

Sources: README and hubconf.py of facebookresearch/dino at 7c446df, and its issues 139 and 148. The official host
publishes no checksums; `sha256` is given only if independent third parties agree on the file at that address.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from dinoeval.errors import ConfigError, unknown

HOST = "https://dl.fbaipublicfiles.com/dino/"
BUNDLED = "vit_digits"
"""Name of the demonstration weights that the package contains."""
FULL = "_full"
"""Suffix of the names of full checkpoints: the same backbone as the file without it."""
Kind = Literal["backbone", "full checkpoint", "linear head"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A released file of weights."""

    name: str
    """The model name."""
    arch: str
    """An architecture that `models.build` builds."""
    url: str | None
    """None for the file that the package contains."""
    kind: Kind = "backbone"
    """What the file contains."""
    license: str = "Apache-2.0"
    """SPDX identifier."""
    sha256: str | None = None
    """SHA-256 of the file, if known; 64 hexadecimal digits."""
    size: int | None = None
    """Size of the file in bytes, if known."""
    tensor_digest: str | None = None
    """Digest of the backbone's tensors (`models.checkpoints.tensor_digest`), if known."""
    source: str = "README of facebookresearch/dino"
    """Where the address was published."""
    note: str = ""
    """Notes for users of the file."""

    @property
    def filename(self) -> str:
        """Name of the file in the weights directory."""
        return self.url.rsplit("/", 1)[1] if self.url else f"{self.name}.safetensors"


def _released() -> list[Weights]:
    rows = []
    families = {  # architecture, which is also the model name -> stem of the file names
        "vit_s16": "dino_deitsmall16",
        "vit_s8": "dino_deitsmall8",
        "vit_b16": "dino_vitbase16",
        "vit_b8": "dino_vitbase8",
        "resnet50": "dino_resnet50",
        "xcit_small_12_p16": "dino_xcit_small_12_p16",
        "xcit_small_12_p8": "dino_xcit_small_12_p8",
        "xcit_medium_24_p16": "dino_xcit_medium_24_p16",
        "xcit_medium_24_p8": "dino_xcit_medium_24_p8",
    }
    known = {  # SHA-256 and bytes on which third-party mirrors of the address agree
        "vit_b16": ("bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e", 343_242_485),
    }
    for name, stem in families.items():
        sha256, size = known.get(name, (None, None))
        address = f"{HOST}{stem}_pretrain/{stem}"
        rows += [
            Weights(name=name, arch=name, url=f"{address}_pretrain.pth", sha256=sha256, size=size),
            Weights(
                name=f"{name}{FULL}",
                arch=name,
                url=f"{address}_pretrain_full_checkpoint.pth",
                kind="full checkpoint",
                note="student, teacher, optimizer",
            ),
            Weights(name=f"{name}_linear", arch=name, url=f"{address}_linearweights.pth", kind="linear head"),
        ]
    return rows


_OTHERS = [
    Weights(
        name="vit_s8_300ep",
        arch="vit_s8",
        url=f"{HOST}dino_deitsmall8_300ep_pretrain/dino_deitsmall8_300ep_pretrain.pth",
        source="visualize_attention.py",
        note="used for the figures of the paper; no published score",
    ),
    Weights(
        name="vit_s16_landmarks",
        arch="vit_s16",
        url=f"{HOST}dino_vitsmall16_googlelandmark_pretrain/dino_vitsmall16_googlelandmark_pretrain.pth",
        source="README and eval_image_retrieval.py",
        note="trained on Google Landmarks v2: retrieval only",
    ),
    Weights(
        name="vit_s16_vanilla_100ep",
        arch="vit_s16",
        kind="full checkpoint",
        url=f"{HOST}example_runs_logs/dino_vanilla_vitsmall16_checkpoint.pth",
        source="README; issue 148",
    ),
    Weights(
        name="vit_s16_boosted_300ep",
        arch="vit_s16",
        kind="full checkpoint",
        url=f"{HOST}example_runs_logs/dino_boost_vitsmall16_checkpoint.pth",
        source="README; issue 148",
    ),
    Weights(
        name="resnet50_100ep",
        arch="resnet50",
        kind="full checkpoint",
        url=f"{HOST}example_runs_logs/dino_rn50_checkpoint.pth",
        source="README; issue 148",
    ),
    Weights(
        name="vit_s16_k4096",
        arch="vit_s16",
        kind="full checkpoint",
        url=f"{HOST}dino_k4096.pth",
        source="issue 139",
        note="ablation with 4,096 prototypes",
    ),
    Weights(
        name=BUNDLED,
        arch="vit_xs8_16",
        url=None,
        source="weights/vit_digits.md",
        sha256="6b17084b6e55b350942c57e4b085db7160124c2883b6139b697a724c39d559eb",
        tensor_digest="dff1957d514b8af2b1b3935b11f98db24325d2eec57f1218be9e790e51690fd5",
        note="demonstration: trained on the digits of scikit-learn, part of the package",
    ),
]

ZOO: dict[str, Weights] = {row.name: row for row in (*_OTHERS[-1:], *_released(), *_OTHERS[:-1])}
"""Released weights by model name."""


def get_weights(name: str) -> Weights:
    """Return the released weights of a name.

    Args:
        name: A model name, as `dinoeval models` lists it.

    Returns:
        The row of the table.

    Raises:
        ConfigError: If the name is unknown, with the nearest known name.
    """
    if name not in ZOO:
        raise ConfigError(unknown("model name", name, ZOO))
    return ZOO[name]


def identify(source: str, digest: str) -> str | None:
    """Return the model name of a network, decided once for all protocols.

    A network is known by the digest of its tensors, or by the name under which its weights were obtained and verified. A
    file of unknown tensors has no model name, even if the file is named like released weights.

    Args:
        source: Where the weights came from, as `Provenance.name`: a model name, `timm/NAME`, a path or `random`.
        digest: Digest of the tensors.

    Returns:
        The model name without the suffix of full checkpoints or the tag of timm; None if the tensors are unknown.

    Examples:
        >>> identify("vit_s16_full", "0" * 64), identify("vit_s16.pth", "0" * 64)
        ('vit_s16', None)
    """
    for weights in ZOO.values():
        if weights.tensor_digest == digest:
            return weights.name.removesuffix(FULL)
    if source in ZOO:
        return source.removesuffix(FULL)
    return source.split(".")[0] if source.startswith("timm/") else None
