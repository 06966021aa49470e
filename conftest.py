"""Fixtures of all tests, the examples in docstrings included."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Keep tests away from the cache, weights and datasets of the user, and from the network."""
    monkeypatch.setenv("DINOEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DINOEVAL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("DINOEVAL_OFFLINE", "1")
    monkeypatch.delenv("DINOEVAL_DATA", raising=False)
