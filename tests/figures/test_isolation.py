"""Figures do not depend on the matplotlib settings of the user, and do not change them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from figure_factories import class_map, synthetic_maps
from PIL import Image

import dinoeval
from dinoeval.figures.overlay import draw_video

# Each setting changes a figure that is drawn with it.
SETTINGS = """
text.usetex: True
font.size: 40
font.family: serif
savefig.transparent: True
savefig.bbox: tight
savefig.facecolor: black
figure.dpi: 30
figure.facecolor: black
axes.facecolor: black
axes.grid: True
axes.prop_cycle: cycler('color', ['r'])
image.origin: lower
image.interpolation: bilinear
lines.linewidth: 20
path.sketch: 1, 100, 2
svg.fonttype: none
pdf.compression: 0
"""
DRAW = """
import os, sys
sys.path[:0] = {tests!r}
from test_isolation import draw_all
print(draw_all({folder!r}))
assert os.environ.get("MPLBACKEND") == {backend!r}
"""


def draw_all(folder: str) -> str:
    """Draw figures of every kind and return the hash of all files."""
    digest = hashlib.sha256()
    for name, figure in (("a.png", synthetic_maps(2).figure()), ("b.pdf", class_map(10).figure()), ("c.svg", class_map(10).figure())):
        dinoeval.figures.save(figure, f"{folder}/{name}")
        digest.update(Path(folder, name).read_bytes())
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8) // 16
    for path in draw_video(Path(folder), "x", ["0", "1"], [Image.new("RGB", (8, 6))] * 2, lambda: [mask] * 2):
        digest.update(path.read_bytes())
    digest.update(synthetic_maps(2)._repr_png_())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aggg", "module://no_such.backend"])
def test_figures_do_not_depend_on_backend_and_settings(backend, tmp_path):
    (tmp_path / "matplotlibrc").write_text(SETTINGS)
    environment = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLCONFIGDIR": "/dev/null"}
    environment.pop("DISPLAY", None)
    code = DRAW.format(tests=[str(folder) for folder in Path(__file__).parents[:2]], folder=str(tmp_path), backend=backend)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == draw_all(str(tmp_path))


def test_settings_and_backend_of_the_caller_are_kept(tmp_path):
    import matplotlib
    from matplotlib import pyplot as plt

    backend = matplotlib.get_backend()
    with matplotlib.rc_context({"font.size": 33.0, "savefig.transparent": True}):
        before = dict(matplotlib.rcParams)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_all(str(tmp_path))
        assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
    assert plt.get_fignums() == []


@pytest.mark.slow
def test_figures_are_drawn_in_threads(tmp_path):
    """Settings are restored although the threads overlap."""
    import matplotlib

    before, expected = dict(matplotlib.rcParams), draw_all(str(tmp_path))
    found: list[str] = []

    def work(folder) -> None:
        folder.mkdir()
        found.append(draw_all(str(folder)))

    threads = [threading.Thread(target=work, args=(tmp_path / str(number),)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 2
    assert dict(matplotlib.rcParams) == before
