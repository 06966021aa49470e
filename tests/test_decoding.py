"""Decoding of our own JSON: every deviation is one error that names the file and the field."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from dinoeval.decoding import MAX_DEPTH, Record, convert, decode, decode_file
from dinoeval.errors import DinoevalError
from dinoeval.files import read_bytes


class Part(Record, kw_only=True):
    rows: int
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.shape, default=1) < 1:
            raise ValueError(f"shape {self.shape} is not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    scores: dict[str, float]
    parts: list[Part] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_values_have_their_types():
    decoded = decode(b'{"scores": {"top1": 74}, "parts": [{"rows": 3, "shape": [2, 5]}], "config": {"k": [1]}}', Whole, "w")
    assert decoded == Whole(scores={"top1": 74.0}, parts=[Part(rows=3, shape=(2, 5))], config={"k": [1]})
    assert isinstance(decoded.scores["top1"], float)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "truncated"),
        (b"\xff\xfe{}", "byte 0"),
        (b"\xef\xbb\xbf{}", "byte 0"),
        (b'{"scores": {"a\xff": 1}}', "utf-8"),
        (b'{"scores": {"top1": NaN}}', "NaN"),
        (b'{"scores": {"top1": -Infinity}}', "infinite"),
        (b'{"scores": {"top1": 1e999}}', r"range.* scores"),
        (b'{"scores": {"top1": 1' + b"0" * 400 + b"}}", r"64 bits.* scores\.top1"),
        (b'{"scores": {"top1": 1' + b"0" * 5000 + b"}}", "digits"),
        (b'{"scores": {}, "config": {"seed": 9223372036854775808}}', r"64 bits.* config\.seed"),
        (b'{"scores": {"top1": null}}', r"`null`.* scores"),
        (b'{"scores": {"top1": true}}', r"`bool`.* scores"),
        (b'{"scores": {}, "config": {"name": ["\\ud800"]}}', r"surrogate.* config\.name\[0\]"),
        (b'{"scores": {}, "config": {"\\ud800": 1}}', "surrogate.* config"),
        (b'{"scores": {}, "config": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nesting"),
        (b'{"scores": {}, "config": {"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}}", "nesting.* config.a"),
        (b'{"scores": {}, "config": {"a": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}}", "nesting"),
        (b'{"scores": {}, "parts": [{"rows": 1}, {"rows": 1.5}]}', r"`float`.* parts\[1\]\.rows"),
        (b'{"scores": {}, "parts": [{"rows": 1, "shape": [2, 0]}]}', r"positive.* parts\[0\]"),
        (b'{"scores": {}, "parts": [{"rows": 1, "row": 1}]}', r"`row`.* parts\[0\]"),
        (b'{"scores": {}, "score": {}}', "'score'"),
        (b'{"parts": []}', "`scores`"),
        (b'{"' + b'\\"' * 10**6, "truncated"),
        (b"[]", "`array`"),
        (b"null", "`null`"),
    ],
)
def test_deviation_names_the_file_and_the_field(content, named):
    with pytest.raises(DinoevalError, match=f"(?s)file.json.*{named}") as error:
        decode(content, Whole, "file.json")
    str(error.value).encode()  # every terminal can print it
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["gr\udcfcn.png", "山.png", "😀.png", "a[[{{.png"])
def test_file_names_of_any_bytes_are_kept(name):
    content = json.dumps([name] * (MAX_DEPTH + 1)).encode()
    assert decode(content, list[str], "names") == [name] * (MAX_DEPTH + 1)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0.00012345678901234567, 1e308])
def test_largest_numbers_are_kept(value):
    assert decode(json.dumps([value, "1" * 40]).encode(), list[Any], "numbers")[0] == value


def test_convert_checks_like_decode():
    assert convert({"rows": 2}, Part, "part") == Part(rows=2)
    with pytest.raises(DinoevalError, match=r"part.*`str`.*rows"):
        convert({"rows": "2"}, Part, "part")


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "huge", ".", "absent", "/dev/zero"):
        with pytest.raises(DinoevalError, match=str(tmp_path / name)):
            decode_file(tmp_path / name, Part)
    (tmp_path / "part").write_bytes(b'{"rows": 1}')
    assert decode_file(tmp_path / "part", Part) == Part(rows=1)
    with pytest.raises(DinoevalError, match="part"):
        read_bytes(tmp_path / "part", limit=10)
