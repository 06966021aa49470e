from __future__ import annotations

from pathlib import Path

import pytest
from factories import class_folders

import dinoeval


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with 24 images in class0/, class1/ and class2/."""
    return class_folders(tmp_path / "photos") / "train"


@pytest.fixture
def backbone(tiny_weights) -> dinoeval.Backbone:
    return dinoeval.load(weights=tiny_weights)
