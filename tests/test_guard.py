"""Called from a program: its global state neither changes results nor is changed."""

from __future__ import annotations

import asyncio
import contextlib
import locale
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import sklearn
import torch
from PIL import Image, ImageFile

import dinoeval
from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.figures.class_map import TsneConfig
from dinoeval.guard import Guard, entry_point
from dinoeval.maths.neighbors import load_faiss
from dinoeval.testing import tiny_backbone, tiny_image_folder, tiny_images
from dinoeval.video import Propagation
from dinoeval.video_config import PropagationConfig

faiss = load_faiss()
BACKENDS = torch.backends
BATCH = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)


def _load(arch):
    return dinoeval.load(arch, weights="random", device="cpu")


def _masks():
    first = np.zeros((16, 16), np.uint8)
    first[4:8, 4:8] = 1
    propagation = Propagation(tiny_backbone(), first, FrameTransform(side=64, patch=4), PropagationConfig())
    return np.stack(list(propagation.masks("012", tiny_images(3, (16, 16)))))


def _search(folder):
    index = dinoeval.search.build(folder / "val", folder / "index", tiny_backbone())
    return np.concatenate([index.vectors().ravel(), *(match.cosines for match in index.query(folder / "val" / "class0"))])


CALLS = {
    "load": lambda folder: _load("vit_xs4_16").network.blocks[0].attn.qkv.weight.numpy(),
    "tokens": lambda folder: tiny_backbone()(torch.from_numpy(BATCH), layers=2).layers[0].numpy(),
    "backbone.attention": lambda folder: tiny_backbone().attention(torch.from_numpy(BATCH)).numpy(),
    "embed": lambda folder: dinoeval.embed(tiny_backbone(), folder, readout="gem"),
    "embed images": lambda folder: dinoeval.embed(tiny_backbone(), tiny_images(3), cache=False),
    "embed timm": lambda folder: dinoeval.embed(
        dinoeval.load("timm/test_vit", weights="random", device="cpu"), tiny_images(2), cache=False
    ),
    "evaluate": lambda folder: list(dinoeval.evaluate("knn", tiny_backbone(), data=folder, k=3).metrics.values()),
    "attention": lambda folder: dinoeval.figures.attention(tiny_backbone(), tiny_images(1)[0], image_size=16).maps,
    "pca": lambda folder: dinoeval.figures.pca(tiny_backbone(), tiny_images(2), image_size=16).components,
    "tsne": lambda folder: dinoeval.figures.tsne(BATCH.reshape(12, -1), list("abcdefghijkl"), TsneConfig(iterations=250)).points,
    "search": _search,
    "masks": lambda folder: _masks(),
}


class _Odd:
    """Values of global state that the functions of this module would not choose."""

    @staticmethod
    def sigchld(signum, frame):
        """A handler of the calling program."""


def _snapshot():
    """All state that a caller could see changed."""
    return {
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precision": [
            getattr(part, "fp32_precision", None) for part in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv)
        ],
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),
        "python random": random.getstate(),
        "warnings": list(warnings.filters),
        "numpy errors": np.geterr(),
        "threads": (torch.get_num_threads(), faiss.omp_get_max_threads()),
        "sklearn": sklearn.get_config(),
        "pillow": (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
        "signals": [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)],
        "matplotlib": dict.copy(mpl.rcParams),
        "sharing": (torch.multiprocessing.get_sharing_strategy(), multiprocessing.get_start_method(allow_none=True)),
        "logging": (logging.root.level, list(logging.root.handlers), logging.getLogger("dinoeval").level),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),  # noqa: PTH109
    }


def _set_precision(stack):
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("medium")


def _set(setter, old, new):
    def apply(stack):
        stack.callback(setter, old)
        setter(new)

    return apply


def _warnings_as_errors(stack):
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)  # An open index keeps its file open.


def _draw(stack):
    torch.rand(3), np.random.rand(3), random.random()


ODD = {
    "nothing": lambda stack: None,
    "autocast": lambda stack: stack.enter_context(torch.autocast("cpu", torch.bfloat16)),
    "no grad": lambda stack: stack.enter_context(torch.no_grad()),
    "inference mode": lambda stack: stack.enter_context(torch.inference_mode()),
    "float64": _set(torch.set_default_dtype, torch.float32, torch.float64),
    "bfloat16": _set(torch.set_default_dtype, torch.float32, torch.bfloat16),
    "device context": lambda stack: stack.enter_context(torch.device("meta")),
    "default device": _set(torch.set_default_device, None, "meta"),
    "matmul precision": _set_precision,
    "deterministic": _set(torch.use_deterministic_algorithms, False, True),
    "no flash attention": _set(torch.backends.cuda.enable_flash_sdp, True, False),
    "no mkldnn": lambda stack: stack.enter_context(torch.backends.mkldnn.flags(enabled=False)),
    "random states": _draw,
    "warnings as errors": lambda stack: _warnings_as_errors(stack),
    "numpy errors": lambda stack: stack.enter_context(np.errstate(all="raise")),
    "sklearn": lambda stack: stack.enter_context(sklearn.config_context(transform_output="pandas")),
    "pillow": lambda stack: stack.enter_context(pytest.MonkeyPatch.context()).setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "signal handler": _set(lambda handler: signal.signal(signal.SIGCHLD, handler), signal.SIG_DFL, _Odd.sigchld),
    "rcParams": lambda stack: stack.enter_context(mpl.rc_context({"figure.dpi": 7, "image.cmap": "gray"})),
    "sharing": _set(torch.multiprocessing.set_sharing_strategy, "file_descriptor", "file_system"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOEVAL_CACHE", str(folder / "cache"))
        images = tiny_image_folder(folder / "images")
        return {name: np.array(call(images)) for name, call in CALLS.items()}


@pytest.mark.parametrize("odd", ODD)
def test_state_of_the_caller_neither_acts_nor_changes(odd, expected, tmp_path):
    images = tiny_image_folder(tmp_path / "images")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "half.png").write_bytes((images / "val" / "class0" / "0.png").read_bytes()[:300])
    with contextlib.ExitStack() as stack:
        ODD[odd](stack)
        before = _snapshot()
        for name, call in CALLS.items():
            np.testing.assert_array_equal(np.array(call(images)), expected[name], err_msg=name)
            assert _snapshot() == before, name
        with pytest.raises(dinoeval.DinoevalError, match=r"half\.png"):
            dinoeval.embed(tiny_backbone(), tmp_path / "bad")
        assert _snapshot() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_thread_counts_are_obeyed_and_kept(threads, expected, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        np.testing.assert_allclose(CALLS["embed"](tiny_image_folder(tmp_path / "images")), expected["embed"], atol=1e-5)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_import_changes_nothing():
    code = f"""
import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import test_guard
before = test_guard._snapshot()
import dinoeval, dinoeval.cli, dinoeval.session, dinoeval.testing, dinoeval.video
for name in dinoeval.__all__:
    getattr(dinoeval, name)
for name in dinoeval.figures.__all__:
    getattr(dinoeval.figures, name)
assert test_guard._snapshot() == before
"""  # noqa: PTH120
    subprocess.run([sys.executable, "-c", code], check=True)


def test_overlapping_calls_of_threads_restore_once():
    """The last call that ends restores what the first one found, also if the first one ends earlier."""
    torch.set_default_dtype(torch.float64)
    try:
        first, second = Guard(), Guard()
        first.__enter__()
        thread = threading.Thread(target=second.__enter__)
        thread.start()
        thread.join()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32
        thread = threading.Thread(target=second.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_generators_are_guarded_only_while_they_run():
    @entry_point
    def steps():
        for _ in range(2):
            yield torch.get_default_dtype()

    torch.set_default_dtype(torch.float64)
    try:
        for inside in steps():
            assert (inside, torch.get_default_dtype()) == (torch.float32, torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_head_learns_from_tokens():
    backbone = tiny_backbone()
    images = torch.from_numpy(BATCH).requires_grad_()
    tokens = backbone(images, layers=2)
    for tensor in (tokens.cls, tokens.patches, *tokens.layers, backbone.attention(images)):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        head = torch.nn.Linear(tensor.shape[-1], 3)
        head(tensor).square().sum().backward()
        assert head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


def _embed_in_child(images, queue=None):
    features = dinoeval.embed(tiny_backbone(), images, cache=False)
    queue.put(features) if queue is not None else None
    return features


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.slow
def test_embed_works_in_a_pool_after_threads_were_used(method):
    """A forked process has no threads of OpenMP: waiting for them would never end."""
    script = f"""
import multiprocessing, sys, torch, faiss, numpy as np, dinoeval
from dinoeval.testing import tiny_backbone, tiny_images
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_guard import _embed_in_child
if __name__ == "__main__":
    torch.set_num_threads(2), faiss.omp_set_num_threads(2)
    (torch.randn(600, 600) @ torch.randn(600, 600)).sum(), torch.nn.functional.gelu(torch.randn(4000, 1000)).sum()
    index = faiss.IndexFlatIP(64); index.add(np.ones((5000, 64), "f4")); index.search(np.ones((500, 64), "f4"), 5)
    images = tiny_images(80, (64, 64))
    expected = dinoeval.embed(tiny_backbone(), images, cache=False)
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for features in pool.map_async(_embed_in_child, [images, images]).get(timeout=100):
            np.testing.assert_allclose(features, expected, atol=1e-5)
"""  # noqa: PTH120
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200, env=environment)


def test_embed_works_in_threads_and_under_asyncio(expected):
    async def run():
        return await asyncio.gather(*(asyncio.to_thread(_embed_in_child, tiny_images(3)) for _ in range(3)))

    for features in (*asyncio.run(run()), asyncio.run(_in_loop())):
        np.testing.assert_array_equal(features, expected["embed images"])


async def _in_loop():
    return _embed_in_child(tiny_images(3))
