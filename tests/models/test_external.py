"""torchvision and timm models behind the same Backbone: equal outputs, released files, errors."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import dinoeval
from dinoeval.errors import CheckpointError, ConfigError
from dinoeval.features.readout import parse_readout
from dinoeval.models.checkpoints import save_backbone
from dinoeval.models.zoo import ZOO

DEIT = "timm/deit_tiny_patch16_224"


def synthetic_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Draw weights for any network: positive variances of BatchNorm, everything else small."""
    random = np.random.default_rng(0)
    state = {}
    for name, tensor in sorted(network.state_dict().items()):
        values = torch.from_numpy(random.standard_normal(tuple(tensor.shape), dtype=np.float32)) * 0.05
        if name.endswith(("running_var", "norm1.weight", "norm2.weight", "norm.weight", "bn1.weight", "bn2.weight", "bn3.weight")):
            values = 1 + values.abs()
        state[name] = values if tensor.is_floating_point() else tensor
    return state


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 96, 96), dtype=np.float32))


@pytest.mark.slow
def test_resnet50_from_full_checkpoint_equals_torchvision(tmp_path, images):
    """DDP wraps the teacher of the released file, because the network has BatchNorm. Its head differs from that of the ViTs."""
    network = torchvision.models.resnet50()
    network.fc = torch.nn.Identity()
    state = synthetic_weights(network)
    network.load_state_dict(state)
    head = {"module.head.mlp.0.weight": torch.zeros(4096, 2048), "module.head.last_layer.weight": torch.zeros(8, 256)}
    teacher = {f"module.backbone.{name}": tensor for name, tensor in state.items()} | head
    torch.save({"teacher": teacher, "student": teacher, "epoch": 3}, tmp_path / "full.pth")
    torch.save(state, tmp_path / "plain.pth")
    with torch.inference_mode():
        expected = network.eval()(images)
    digests = set()
    for name in ("full.pth", "plain.pth"):
        backbone = dinoeval.load("resnet50", weights=tmp_path / name, device="cpu")
        digests.add(backbone.digest)
        tokens = backbone(images)
        assert tokens.patches is None
        assert torch.equal(tokens.cls, expected)
    assert len(digests) == 1
    assert (backbone.dim, backbone.patch_size) == (2048, None)


@pytest.mark.slow
def test_xcit_from_released_layout_equals_timm(tmp_path, images):
    """The released files name the positions `pos_embeder` and store query, key and value of class attention in one matrix."""
    network = timm.create_model("xcit_small_12_p16_224", num_classes=0)
    state = synthetic_weights(network)
    network.load_state_dict(state)
    released = {}
    for name, tensor in state.items():
        if name.startswith("cls_attn_blocks.") and ".attn.q." in name:
            parts = [state[name.replace(".q.", f".{part}.")] for part in "qkv"]
            released[name.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif not (name.startswith("cls_attn_blocks.") and (".attn.k." in name or ".attn.v." in name)):
            released[name.replace("pos_embed.", "pos_embeder.")] = tensor
    torch.save({"teacher": {f"module.backbone.{name}": tensor for name, tensor in released.items()}}, tmp_path / "xcit.pth")
    backbone = dinoeval.load("xcit_small_12_p16", weights=tmp_path / "xcit.pth", device="cpu")
    with torch.inference_mode():
        expected = network.eval().forward_features(images)
    tokens = backbone(images)
    assert torch.equal(tokens.cls, expected[:, 0])
    assert torch.equal(tokens.patches, expected[:, 1:].reshape(2, 6, 6, 384))
    assert torch.equal(backbone(images, patches=False).cls, expected[:, 0])


def test_load_finds_file_in_weights_directory(tmp_path, monkeypatch, images):
    network = torchvision.models.resnet50()
    network.fc = torch.nn.Identity()
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(synthetic_weights(network), folder / ZOO["resnet50"].filename)
    monkeypatch.setenv("DINOEVAL_WEIGHTS", str(folder))
    assert dinoeval.load("resnet50", device="cpu").provenance.name == "resnet50"


def test_timm_backbone_equals_timm_model(images):
    backbone = dinoeval.load(DEIT, weights="random", device="cpu")
    tokens = backbone(images, layers=3)
    network = backbone.network
    with torch.inference_mode():
        assert torch.equal(tokens.cls, network(images))
        final = network.forward_features(images)
    assert [layer.shape for layer in tokens.layers] == [(2, 37, 192)] * 3
    assert torch.equal(tokens.layers[-1], final)
    assert torch.equal(tokens.patches.flatten(1, 2), final[:, 1:])
    features = dinoeval.embed(backbone, [Image.new("RGB", (300, 260), (90, 120, 30))], readout="last4")
    assert features.shape == (1, 4 * 192)
    assert backbone.config.preprocessing.resize == 248  # DeiT crops 0.9, DINO 0.875


def test_distillation_token_is_not_a_patch():
    backbone = dinoeval.load("timm/deit_tiny_distilled_patch16_224", weights="random", device="cpu")
    tokens = backbone(torch.zeros(1, 3, 64, 64), layers=2)
    assert tokens.patches.shape == (1, 4, 4, 192)
    assert tokens.layers[0].shape == (1, 17, 192)


def test_timm_file_keeps_parts_named_like_a_head(tmp_path):
    """An average-pooled ViT normalizes the pooled feature by `fc_norm`. In files of DINO that name would belong to a head."""
    name = "timm/vit_tiny_patch16_224"
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg")
    assert any(key.startswith("fc_norm") for key in network.state_dict())
    backbone = dinoeval.load(name, weights="random", device="cpu")
    save_backbone(tmp_path / "w.safetensors", backbone.network.state_dict(), arch=name)
    again = dinoeval.load(weights=tmp_path / "w.safetensors", device="cpu")
    assert (again.arch, again.digest) == (name, backbone.digest)
    from dinoeval.models.checkpoints import match_state_dict, open_checkpoint

    torch.save(network.state_dict(), tmp_path / "avg.pth")
    opened = open_checkpoint(tmp_path / "avg.pth")
    fitted = match_state_dict(opened.state, opened.ignored, network.state_dict(), arch="a", source="b")
    assert fitted.keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("arch", "readout"), [("resnet50", "clsavg"), ("resnet50", "last4"), ("xcit_small_12_p16", "last4"), ("timm/resnet18", "patches")]
)
def test_missing_readout_error_lists_readouts(arch, readout, image_folder):
    backbone = dinoeval.load(arch, weights="random", device="cpu")
    with pytest.raises(ConfigError, match=rf"{arch} .*readouts: cls"):
        dinoeval.embed(backbone, image_folder / "val", readout=readout)
    assert parse_readout(readout).id == readout


def test_unsupported_image_size_is_named():
    backbone = dinoeval.load("timm/cait_xxs24_224", weights="random", device="cpu")
    with pytest.raises(ConfigError, match=r"cait_xxs24_224 .*96 x 100"):
        backbone(torch.zeros(1, 3, 96, 100))


def test_xcit_patch_tokens_require_whole_patches():
    """The patches of XCiT overlap, and an image of 40 x 32 pixels has 3 x 2 of 16 pixels."""
    backbone = dinoeval.load("timm/xcit_nano_12_p16_224", weights="random", device="cpu")
    with pytest.raises(ConfigError, match=r"xcit_nano_12_p16_224 .* 16 pixels, got 40 x 32 pixels"):
        backbone(torch.zeros(1, 3, 32, 40))
    assert backbone(torch.zeros(1, 3, 32, 40), patches=False).cls.shape == (1, 128)
    patches = backbone(torch.zeros(1, 3, 32, 48)).patches
    assert patches is not None
    assert patches.shape == (1, 2, 3, 128)


@pytest.mark.parametrize("arch", ["timm/deit_tiny_patch16_224", "timm/eva02_tiny_patch14_224"])
def test_remainder_of_a_patch_is_cut_off(arch):
    backbone = dinoeval.load(arch, weights="random", device="cpu")
    patch = backbone.patch_size
    images = torch.randn(1, 3, 5 * patch + 3, 4 * patch + patch - 1, generator=torch.Generator().manual_seed(0))
    whole, cut = backbone(images), backbone(images[..., : 5 * patch, : 4 * patch])
    assert whole.patches.shape[1:3] == backbone.grid(*images.shape[-2:]) == (5, 4)
    assert torch.equal(whole.patches, cut.patches)
    assert torch.equal(backbone(images, patches=False).cls, cut.cls)


def test_unknown_timm_model_and_offline_weights_raise(tmp_path):
    with pytest.raises(ConfigError, match=r"'deit_tiny_patch16_22'.*deit_tiny_patch16_224"):
        dinoeval.load("timm/deit_tiny_patch16_22", weights="random")
    with pytest.raises(CheckpointError, match=r"DINOEVAL_OFFLINE.*https://huggingface.co/timm/deit_tiny.*--weights"):
        dinoeval.load(DEIT)
    with pytest.raises(ConfigError, match="attention of resnet50 cannot be read"):
        dinoeval.load("resnet50", weights="random", device="cpu").attention(torch.zeros(1, 3, 64, 64))


def test_bf16_of_timm_model_is_close_to_fp32(images):
    full, reduced = (dinoeval.load(DEIT, weights="random", device="cpu", precision=p)(images).cls for p in ("fp32", "bf16"))
    assert torch.nn.functional.cosine_similarity(full, reduced).min() > 0.999
    assert not torch.equal(full, reduced)
