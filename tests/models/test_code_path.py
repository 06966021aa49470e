"""A network that was changed is never mistaken for the network of its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dinoeval
from dinoeval.models.backbone import Backbone, Provenance
from dinoeval.models.build import build_network
from dinoeval.models.vit import Attention
from dinoeval.testing import tiny_backbone, tiny_image_folder, tiny_state

CHANGES = {
    "forward hook": lambda network: network.register_forward_hook(lambda module, inputs, output: output * 0 + 1),
    "pre-hook of a block": lambda network: network.blocks[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2, *inputs[1:])),
    "backward hook": lambda network: network.norm.register_full_backward_hook(lambda *arguments: None),
    "forward": lambda network: setattr(network, "forward", lambda images: images.flatten(1)[:, :96]),
    "tokens": lambda network: setattr(network, "tokens", lambda *arguments: None),
    "norm.eps": lambda network: setattr(network.norm, "eps", 0.1),
    "num_heads": lambda network: setattr(network.blocks[0].attn, "num_heads", 1),
    "training mode": lambda network: network.blocks[2].drop_path.train(),
    "module": lambda network: setattr(network.blocks[0], "drop_path", torch.nn.Dropout(0.5).eval()),
    "tensors": lambda network: network.norm.bias.add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_rejected_by_name(change, tmp_path):
    images = tiny_image_folder(tmp_path / "images")
    changed = tiny_backbone()
    CHANGES[change](changed.network)
    with pytest.raises(dinoeval.DinoevalError, match="changed"):
        dinoeval.embed(changed, images)
    with pytest.raises(dinoeval.DinoevalError, match="changed"):
        dinoeval.evaluate("knn", changed, data=images, k=3)


def test_hooks_neither_fill_nor_read_the_cache(tmp_path):
    images = tiny_image_folder(tmp_path / "images")
    backbone = tiny_backbone()
    plain = dinoeval.embed(backbone, images, cache=False)
    hook = backbone.network.register_forward_hook(lambda module, inputs, output: output + 1)
    np.testing.assert_array_equal(dinoeval.embed(backbone, images, cache=False), plain + 1)
    hook.remove()
    np.testing.assert_array_equal(dinoeval.embed(backbone, images), plain)


def test_global_hooks_and_replaced_classes_are_found(tmp_path, monkeypatch):
    images = tiny_image_folder(tmp_path / "images")
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        with pytest.raises(dinoeval.DinoevalError, match="global hook"):
            dinoeval.embed(tiny_backbone(), images)
    finally:
        hook.remove()
    monkeypatch.setattr(Attention, "forward", lambda self, x, queries=None: x)
    with pytest.raises(dinoeval.DinoevalError, match=r"Attention\.forward"):
        dinoeval.embed(tiny_backbone(), images)


def test_a_network_changed_before_it_became_a_backbone(tmp_path):
    network = build_network("vit_xs4_16")
    network.load_state_dict(tiny_state())
    network.norm.eps = 0.1
    backbone = Backbone(network, arch="vit_xs4_16", provenance=Provenance("mine", ""), device=torch.device("cpu"))
    with pytest.raises(dinoeval.DinoevalError, match=r"norm\.eps"):
        dinoeval.embed(backbone, tiny_image_folder(tmp_path / "images"))
