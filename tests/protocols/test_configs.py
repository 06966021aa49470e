"""The options of the built-in protocols: their defaults, which the numbers depend on, and that they cannot be changed."""

from __future__ import annotations

import dataclasses

import pytest

from dinoeval import protocols
from dinoeval.protocols import _linear_probe, logistic

DEFAULTS = {
    "copydays": {
        "data": None,
        "distractors": None,
        "whitening": None,
        "center_whitening": False,
        "image_size": None,
        "gem_p": 4.0,
        "ap_cutoff": 20,
    },
    "davis": {
        "context_frames": 7,
        "radius": 12,
        "top_k": 5,
        "temperature": 0.1,
        "edge_cases": "released",
        "image_size": 480,
        "resize_backend": "opencv",
        "data": None,
        "sequences": (),
        "out": None,
        "masks": None,
        "overlay": None,
    },
    "finetune": {
        "data": None,
        "preset": "auto",
        "epochs": None,
        "lr": None,
        "train_batch_size": None,
        "warmup_epochs": None,
        "weight_decay": None,
        "drop_path": None,
        "out": None,
        "save_every": 0,
        "seed": 0,
    },
    "knn": {"data": None, "k": (10, 20, 100, 200), "temperature": 0.07, "train_subset": None, "subset_seeds": 3},
    "linear": {
        "data": None,
        "readouts": ("auto",),
        "lrs": (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
        "weight_decays": (0.0,),
        "epochs": 100,
        "train_batch_size": 1024,
        "features": "augmented",
        "held_out": 0.1,
        "head": None,
        "train_subset": None,
        "subset_seeds": 3,
        "out": None,
    },
    "logistic": {
        "data": None,
        "lambdas": (0.1,),
        "solver": "cyanure",
        "tolerance": 0.001,
        "max_iter": 2000,
        "train_subset": None,
        "subset_seeds": 3,
    },
    "retrieval": {
        "dataset": "roxford5k",
        "data": None,
        "image_size": None,
        "multiscale": False,
        "query_crop": False,
        "distractors": None,
        "whitening": None,
        "center_whitening": False,
    },
    "segment": {"data": None, "mass": 0.6, "image_size": 480, "objects": "instance", "void": "ignored"},
}


def test_defaults_are_listed_for_every_builtin_protocol():
    assert sorted(DEFAULTS) == protocols.builtin_names()


VERSIONS = {"davis": 2}
"""Versions after the first."""


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_config_defaults_and_version_equal_the_list(name):
    """If a default changes, so do numbers: raise VERSION, and say so in the changelog."""
    module = protocols.get_protocol(name)
    assert dataclasses.asdict(module.Config()) == DEFAULTS[name]
    assert VERSIONS.get(name, 1) == module.VERSION


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_config_is_frozen_and_takes_keywords_only(name):
    config = protocols.get_protocol(name).Config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().data = "other"
    with pytest.raises(TypeError):
        config("data")


def test_held_out_images_are_drawn_with_fixed_numbers():
    assert (_linear_probe.SEED, _linear_probe.MAX_HELD_OUT, logistic.HELD_OUT) == (0, 10_000, 0.1)
