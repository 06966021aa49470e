"""Checkpoints: zip files, legacy pickles and safetensors that are damaged, lie about sizes, or hold odd tensors or hostile pickles."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from dinoeval.cli.weights import convert
from dinoeval.models.checkpoints import save_backbone
from dinoeval.models.loading import load
from dinoeval.testing import TINY_ARCH, tiny_state
from hostile.changes import changed, choose
from hostile.programs import PROGRAMS, code, edited

STATE = tiny_state(TINY_ARCH)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
ARCHITECTURES = (
    *("timm/hf-hub:someone/model", "timm/local-dir:/etc", "hf-hub:a/b", "timm/../x", "timm/", "vit_ti1_9999", "vit_s16_99999999999"),
    *("vit_s0", "random", "vit_digits", "resnet50", "", "x" * 9999, "vit_٣16", 5, None, ["a"], {"a": 1}, 1e300),
)
DTYPES = ("F4", "F64", "F16", "BF16", "F8_E5M2", "C64", "I32", "BOOL", "", None, 7, "U64")
SHAPES = ([], [-1], [0], [2**62, 4], ["1"], [1.5], None, [1] * 1000, [10**400])
OFFSETS = ([0, 4], [4, 0], [0, 2**64], [0], [], None, [-4, 0], [0, 10**40])


def saved(content: object, legacy: bool = False) -> bytes:
    """Return what torch.save writes."""
    target = io.BytesIO()
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def full() -> dict[str, object]:
    """Return a checkpoint of a training run."""
    student, teacher = ({f"module.backbone.{name}": tensor + shift for name, tensor in STATE.items()} for shift in (1, 0))
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(0.1), "params": [0]}]}
    return {"student": student, "teacher": teacher, "optimizer": optimizer, "epoch": 3}


ZIP, LEGACY = saved(full()), saved(STATE, legacy=True)


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(generator: np.random.Generator, files: list[tuple[str, bytes]]) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", choose(generator, METHODS)) as archive:
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in files:
            archive.writestr(name, content)
    return target.getvalue()


def _storage_sizes(generator: np.random.Generator) -> bytes:
    files = _members(ZIP)
    for name, content in files.items():
        if "/data/" in name and generator.random() < 0.2:
            files[name] = choose(generator, (content[: -int(generator.integers(1, 9))], content + b"\0" * 4, b"", content * 2))
    return _zipped(generator, list(files.items()))


def _other_members(generator: np.random.Generator) -> bytes:
    files = list(_members(ZIP).items())
    place = int(generator.integers(len(files)))
    name, content = files[place]
    match generator.integers(6):
        case 0:
            del files[place]
        case 1:
            files.append((name, b"\0" * len(content)))
        case 2:
            files[place] = (f"{name}x", content)
        case 3:
            files.append(("other/data.pkl", b"\x80\x02}."))
        case 4:
            files = [(inner, choose(generator, (b"middle", b"", b"big")) if inner.endswith("byteorder") else data) for inner, data in files]
        case _:
            files[place] = (name, bytes(7 * 10**7))
    return _zipped(generator, files)


def _program_in_zip(generator: np.random.Generator) -> bytes:
    files = _members(ZIP)
    name = next(name for name in files if name.endswith("data.pkl"))
    program = edited(generator, files[name]) if generator.random() < 0.3 else PROGRAMS[choose(generator, list(PROGRAMS))](generator)
    return _zipped(generator, list({**files, name: program}.items()))


def _program_in_legacy(generator: np.random.Generator) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    program = PROGRAMS[choose(generator, list(PROGRAMS))](generator)
    keys = pickle.dumps(choose(generator, (["0"], [], ["0", "0"], [0], "0")), 2)
    return head + program + keys + struct.pack("<q", choose(generator, (96, 95, -1, 2**62))) + bytes(384)


def _odd_tensor(generator: np.random.Generator) -> bytes:
    name = choose(generator, list(STATE))
    tensor = STATE[name]
    make = choose(
        generator,
        (
            *(tensor.to_sparse, tensor.bool, tensor.half, lambda: tensor.to(torch.complex64), lambda: tensor.to(torch.int32)),
            *(lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), lambda: torch.empty(tensor.shape, device="meta")),
            *(lambda: tensor * float("nan"), lambda: tensor * 1e38, lambda: torch.zeros(1).expand(10**7, 10**6), lambda: tensor[..., None]),
            *(lambda: torch.as_strided(torch.zeros(100), (50, 50), (1, 1)), lambda: torch.tensor(1.0), lambda: np.zeros(3), lambda: None),
            *(lambda: [tensor] * 3, lambda: {"x": tensor}, lambda: torch.nn.Parameter(tensor), lambda: code(generator)),
        ),
    )
    return saved({**STATE, name: make()}, legacy=bool(generator.integers(2)))


def _odd_layout(generator: np.random.Generator) -> bytes:
    keys = ("state_dict", "model", "teacher", "student", "model_ema", "state_dict_ema", "ema", "module", "args", "epoch", 5, None, (1, 2))

    def part(depth: int) -> object:
        if depth == 0 or generator.random() < 0.4:
            prefix = choose(generator, ("", "module.", "backbone.", "model.", "teacher.", "encoder.layer.0."))
            state = {prefix + name: tensor for name, tensor in STATE.items() if generator.random() < 0.99}
            return choose(generator, (state, state, {}, [1], None, 3.5))
        return {choose(generator, keys): part(depth - 1) for _ in range(generator.integers(1, 4))}

    return saved(part(3), legacy=bool(generator.integers(2)))


def _safetensors(generator: np.random.Generator) -> bytes:
    content = safetensors.torch.save(STATE, {"format": "pt"})
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = choose(generator, [entry for entry in header if entry != "__metadata__"])
    match generator.integers(7):
        case 0:
            header[name]["dtype"] = choose(generator, DTYPES)
        case 1:
            header[name]["shape"] = choose(generator, SHAPES)
        case 2:
            header[name]["data_offsets"] = choose(generator, OFFSETS)
        case 3:
            header["__metadata__"] = choose(
                generator, ({"arch": choose(generator, ARCHITECTURES)}, [], None, "x", {"tensor_digest": "0" * 64})
            )
        case 4:
            header[name] = choose(generator, ([], None, 5, {}, {"dtype": "F32"}))
        case 5:
            header[choose(generator, ("extra", "a" * 10_000, "\x1b[31m", "é"))] = header.pop(name)
        case _:
            return changed(generator, content)
    encoded = json.dumps(header).encode()
    size = choose(generator, (len(encoded),) * 6 + (0, 2**63, len(encoded) + 1))
    return struct.pack("<Q", size) + encoded + content[8 + length :]


FILES: dict[str, tuple[str, Callable[[np.random.Generator], bytes]]] = {
    "changed zip": ("pth", lambda generator: changed(generator, ZIP)),
    "changed legacy": ("pth", lambda generator: changed(generator, LEGACY[:7000]) + LEGACY[7000:]),
    "storage sizes": ("pth", _storage_sizes),
    "members": ("pth", _other_members),
    "program in zip": ("pth", _program_in_zip),
    "program in legacy": ("pth", _program_in_legacy),
    "odd tensor": ("pth", _odd_tensor),
    "odd layout": ("pth", _odd_layout),
    "architecture": ("pth", lambda generator: saved({"teacher": STATE, "args": {"arch": choose(generator, ARCHITECTURES)}})),
    "safetensors": ("safetensors", _safetensors),
}


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write one checkpoint."""
    kind = choose(generator, (*FILES, "own file", "special"))
    if kind == "own file":
        path = folder / "weights.safetensors"
        save_backbone(path, STATE, arch=TINY_ARCH)
        path.write_bytes(changed(generator, path.read_bytes()))
        return kind, path
    if kind == "special":
        path = folder / "weights.pth"
        makers = (
            lambda: os.mkfifo(path),
            path.mkdir,
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(path),
            lambda: path.write_bytes(b""),
        )
        choose(generator, makers)()
        return kind, path
    suffix, make = FILES[kind]
    path = folder / f"weights.{suffix}"
    path.write_bytes(make(generator))
    return kind, path


def readers(home: Path) -> dict[str, Callable[[Path], str]]:
    """Return the two ways to read a checkpoint: the digest of the tensors of a given architecture."""

    def knn(path: Path) -> str:
        return load(TINY_ARCH, weights=path, ema=False, device="cpu").digest

    def convert_and_read(path: Path) -> str:
        target = home / "converted.safetensors"
        convert(str(path), str(target), arch=TINY_ARCH, ema=False)
        return load(TINY_ARCH, weights=target, device="cpu").digest

    return {"knn": knn, "models convert": convert_and_read}
