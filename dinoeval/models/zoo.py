"""The table of released weights: where each file lies on the network, what is known of it, what it scores.

Sources: README and hubconf.py of facebookresearch/dino at 7c446df, and its issues 139 and 148. The official host
publishes no checksums; `sha256` is filled only where independent third parties agree on a file of that address.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from dinoeval.errors import ConfigError, unknown

HOST = "https://dl.fbaipublicfiles.com/dino/"
BUNDLED = "vit_digits"
Kind = Literal["backbone", "full checkpoint", "linear head"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """One file of weights that has a name."""

    name: str
    arch: str
    """An architecture that `models.networks` builds."""
    url: str | None
    """None for the checkpoint that travels inside the package."""
    kind: Kind = "backbone"
    licence: str = "Apache-2.0"
    sha256: str | None = None
    size: int | None = None
    """Bytes, where known."""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Top-1 in percent on ImageNet-1k val: `knn` at k = 20, `linear`."""
    source: str = "README of facebookresearch/dino"
    note: str = ""

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1] if self.url else f"{self.name}.safetensors"


def _released() -> list[Weights]:
    rows = []
    families = [  # name, architecture, folder, file stem, k-NN, linear, kinds of file that were released
        ("vit_s16", "vit_s16", "dino_deitsmall16_pretrain", "dino_deitsmall16", 74.5, 77.0),
        ("vit_s8", "vit_s8", "dino_deitsmall8_pretrain", "dino_deitsmall8", 78.3, 79.7),
        ("vit_b16", "vit_b16", "dino_vitbase16_pretrain", "dino_vitbase16", 76.1, 78.2),
        ("vit_b8", "vit_b8", "dino_vitbase8_pretrain", "dino_vitbase8", 77.4, 80.1),
        ("resnet50", "resnet50", "dino_resnet50_pretrain", "dino_resnet50", 67.5, 75.3),
        ("xcit_small_12_p16", "xcit_small_12_p16", "dino_xcit_small_12_p16_pretrain", "dino_xcit_small_12_p16", 76.0, 77.8),
        ("xcit_small_12_p8", "xcit_small_12_p8", "dino_xcit_small_12_p8_pretrain", "dino_xcit_small_12_p8", 77.1, 79.2),
        ("xcit_medium_24_p16", "xcit_medium_24_p16", "dino_xcit_medium_24_p16_pretrain", "dino_xcit_medium_24_p16", 76.4, 78.8),
        ("xcit_medium_24_p8", "xcit_medium_24_p8", "dino_xcit_medium_24_p8_pretrain", "dino_xcit_medium_24_p8", 77.9, 80.3),
    ]  # fmt: skip
    known = {  # users' mirrors that name this address agree on it
        "vit_b16": ("bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e", 343_242_485),
    }
    for name, arch, folder, stem, knn, linear in families:
        sha256, size = known.get(name, (None, None))
        published = {"knn": knn, "linear": linear}
        rows.append(Weights(name=name, arch=arch, url=f"{HOST}{folder}/{stem}_pretrain.pth", published=published, sha256=sha256, size=size))
        rows.append(
            Weights(
                name=f"{name}_full", arch=arch, url=f"{HOST}{folder}/{stem}_pretrain_full_checkpoint.pth", kind="full checkpoint",
                published=published, note="student, teacher, optimizer",
            )
        )  # fmt: skip
        rows.append(
            Weights(
                name=f"{name}_linear", arch=arch, url=f"{HOST}{folder}/{stem}_linearweights.pth", kind="linear head",
                published={"linear": linear},
            )
        )  # fmt: skip
    return rows


_OTHERS = [
    Weights(
        name="vit_s8_300ep", arch="vit_s8", url=f"{HOST}dino_deitsmall8_300ep_pretrain/dino_deitsmall8_300ep_pretrain.pth",
        source="visualize_attention.py", note="draws the paper's figures; no published score",
    ),
    Weights(
        name="vit_s16_landmarks", arch="vit_s16",
        url=f"{HOST}dino_vitsmall16_googlelandmark_pretrain/dino_vitsmall16_googlelandmark_pretrain.pth",
        source="README and eval_image_retrieval.py", note="trained on Google Landmarks v2: retrieval only",
    ),
    Weights(
        name="vit_s16_vanilla_100ep", arch="vit_s16", kind="full checkpoint", published={"knn": 69.3, "linear": 74.0},
        url=f"{HOST}example_runs_logs/dino_vanilla_vitsmall16_checkpoint.pth", source="README; issue 148",
    ),
    Weights(
        name="vit_s16_boosted_300ep", arch="vit_s16", kind="full checkpoint", published={"knn": 73.3, "linear": 76.0},
        url=f"{HOST}example_runs_logs/dino_boost_vitsmall16_checkpoint.pth", source="README; issue 148",
    ),
    Weights(
        name="resnet50_100ep", arch="resnet50", kind="full checkpoint",
        url=f"{HOST}example_runs_logs/dino_rn50_checkpoint.pth", source="README; issue 148",
    ),
    Weights(
        name="vit_s16_k4096", arch="vit_s16", kind="full checkpoint", url=f"{HOST}dino_k4096.pth",
        source="issue 139", note="ablation with 4,096 prototypes",
    ),
    Weights(
        name=BUNDLED, arch="vit_xs8_16", url=None, source="weights/vit_digits.md",
        sha256="6b17084b6e55b350942c57e4b085db7160124c2883b6139b697a724c39d559eb",
        note="demonstration: trained on scikit-learn's digits, travels with the package",
    ),
]  # fmt: skip

ZOO: dict[str, Weights] = {row.name: row for row in (*_OTHERS[-1:], *_released(), *_OTHERS[:-1])}


def get_weights(name: str) -> Weights:
    """Look a name up; raises ConfigError with a suggestion."""
    if name not in ZOO:
        raise ConfigError(unknown("weights", name, ZOO))
    return ZOO[name]
