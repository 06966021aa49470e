"""Checkpoints that can be read in more than one way, and what is taken from a name."""

from __future__ import annotations

import sys

import pytest
import torch
from factories import TINY, class_folders, synthetic_images, synthetic_state
from safetensors.torch import save_file

import dinoeval
import dinoeval.search
from dinoeval.cli.options import parse
from dinoeval.errors import CheckpointError, ConfigError, DataError
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.session import SessionConfig

STATE = synthetic_state(TINY)
OTHER = synthetic_state(TINY, seed=1)

EMA_FILES = {
    "timm": {"state_dict": STATE, "state_dict_ema": OTHER, "arch": "vit", "epoch": 3},
    "DeiT": {"model": STATE, "model_ema": {f"module.{name}": tensor for name, tensor in OTHER.items()}},
    "nested": {"model": STATE, "ema": {"decay": 0.99, "state_dict": OTHER}},
    "prefixes": {**{f"model.{n}": t for n, t in STATE.items()}, **{f"ema_model.{n}": t for n, t in OTHER.items()}},
}


@pytest.mark.parametrize("layout", EMA_FILES)
def test_file_with_average_and_raw_weights_requires_choice(tmp_path, layout):
    path = tmp_path / "last.pth"
    torch.save(EMA_FILES[layout], path)
    with pytest.raises(CheckpointError, match=r"last\.pth.*(state_dict_ema|model_ema|ema|ema_model).*--ema.*--no-ema"):
        dinoeval.load(TINY, weights=path)
    average, raw = (dinoeval.load(TINY, weights=path, ema=ema) for ema in (True, False))
    assert (average.digest, raw.digest) == (tensor_digest(OTHER), tensor_digest(STATE))
    assert average.provenance.ema
    assert average.provenance.layout != raw.provenance.layout


def test_ema_option_is_an_error_where_it_does_not_apply(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "raw.pth")
    torch.save({"state_dict_ema": OTHER, "state_dict": {}}, tmp_path / "average.pth")
    with pytest.raises(CheckpointError, match=r"raw\.pth.*--ema"):
        open_checkpoint(tmp_path / "raw.pth", ema=True)
    with pytest.raises(CheckpointError, match=r"average\.pth.*--no-ema"):
        open_checkpoint(tmp_path / "average.pth", ema=False)
    assert tensor_digest(open_checkpoint(tmp_path / "average.pth").state) == tensor_digest(OTHER)
    assert tensor_digest(open_checkpoint(tmp_path / "raw.pth", ema=False).state) == tensor_digest(STATE)


def test_two_state_dicts_are_refused_unless_they_are_one(tmp_path):
    torch.save({"state_dict": STATE, "model": OTHER}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"two\.pth.*state_dict, model"):
        open_checkpoint(tmp_path / "two.pth")
    torch.save({"state_dict": STATE, "model": STATE}, tmp_path / "one.pth")
    assert tensor_digest(open_checkpoint(tmp_path / "one.pth").state) == tensor_digest(STATE)


@pytest.mark.parametrize(
    "arch",
    [
        "timm/hf-hub:someone/model",
        "timm/hf_hub:a/b",
        "timm/local-dir:{folder}",
        "timm/../x",
        "timm/no_such_model",
        "vit_s16_99999",
        "x",
        5,
        ["a"],
    ],
)
def test_architecture_in_a_file_must_be_on_the_list(tmp_path, arch):
    arch = arch.format(folder=tmp_path) if isinstance(arch, str) else arch
    torch.save({"teacher": STATE, "args": {"arch": arch, "recipe": {}}}, tmp_path / "trained.pth")
    save_file(STATE, tmp_path / "header.safetensors", {"arch": str(arch)})
    connected = []
    sys.addaudithook(lambda event, args: connected.append(args) if event in ("socket.getaddrinfo", "socket.connect") else None)
    for name in ("trained.pth", "header.safetensors"):
        with pytest.raises(ConfigError, match=rf"{name}.*--arch"):
            dinoeval.load(weights=tmp_path / name)
        assert dinoeval.load(TINY, weights=tmp_path / name).digest == tensor_digest(STATE)
    assert not connected


def test_file_cannot_ask_for_a_large_network(tmp_path):
    """The network of 1.1 billion parameters would take 4.5 GB."""
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "small.safetensors", {"arch": "timm/vit_giant_patch14_dinov2"})
    with pytest.raises(CheckpointError, match="missing in the file"):
        dinoeval.load(weights=tmp_path / "small.safetensors")


@pytest.mark.parametrize("place", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp", "../x"])
def test_arch_option_takes_names_only(place):
    with pytest.raises(ConfigError, match="--weights"):
        dinoeval.load(f"timm/{place}", weights="random")


def test_positions_of_another_grid_are_resampled_as_in_the_paper(tmp_path, caplog):
    """The released network resamples a 7 x 7 table for images of 16 pixels; the loaded one has the resampled table."""
    state = {**synthetic_state("vit_xs4_28"), **{n: t for n, t in STATE.items() if n != "pos_embed"}}
    torch.save(state, tmp_path / "weights.pth")
    whole, resampled = (dinoeval.load(arch, weights=tmp_path / "weights.pth", device="cpu") for arch in ("vit_xs4_28", TINY))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(images).patches, resampled(images).patches)
    assert "positions resampled from 7 x 7 to 4 x 4" in resampled.provenance.layout
    assert "7 x 7" in caplog.text
    assert "resampled" not in whole.provenance.layout


def test_positions_of_a_timm_model_are_resampled(tmp_path):
    import timm

    state = timm.create_model("test_vit", num_classes=0, img_size=96).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    backbone = dinoeval.load("timm/test_vit", weights=tmp_path / "weights.pth", device="cpu")
    grid = state["pos_embed"][:, 1:].reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, scale_factor=10.1 / 6, mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(backbone.network.pos_embed[:, 1:], expected)
    assert "positions resampled from 6 x 6 to 10 x 10" in backbone.provenance.layout


def test_layout_states_heads_that_the_file_does_not(tmp_path, tiny_weights):
    torch.save(STATE, tmp_path / "weights.pth")
    assert "6 heads of vit_xs4_16_h6" in dinoeval.load("vit_xs4_16_h6", weights=tmp_path / "weights.pth").provenance.layout
    assert "heads" not in dinoeval.load(weights=tiny_weights).provenance.layout  # the file names its architecture


def test_features_too_large_for_a_norm_are_refused(tmp_path):
    """Weights are finite and so are features, but cosines of such features would be 0."""
    torch.save({name: tensor * 1e30 if name == "norm.weight" else tensor for name, tensor in STATE.items()}, tmp_path / "huge.pth")
    backbone = dinoeval.load(TINY, weights=tmp_path / "huge.pth", device="cpu")
    with pytest.raises(DataError, match=r"huge\.pth"):
        dinoeval.embed(backbone, synthetic_images(1), cache=False)


def test_ema_is_a_pair_of_flags_without_default():
    parsed = [parse([SessionConfig()], words, "dinoeval knn", "")[0].ema for words in (["--ema"], ["--no-ema"], [])]
    assert parsed == [True, False, None]


def test_index_of_averaged_weights_is_queried_with_them(tmp_path):
    torch.save(EMA_FILES["timm"], tmp_path / "last.pth")
    images = class_folders(tmp_path / "images")
    session = SessionConfig(arch=TINY, weights=str(tmp_path / "last.pth"), ema=True, device="cpu", cache=str(tmp_path / "cache"))
    dinoeval.search.build(images, tmp_path / "index", session=session)
    index = dinoeval.search.open(tmp_path / "index", session=SessionConfig(device="cpu", cache=str(tmp_path / "cache")))
    assert index.session.backbone.digest == tensor_digest(OTHER)
