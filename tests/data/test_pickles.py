from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dinoeval.data.pickles import open_pickle
from dinoeval.errors import DataError
from dinoeval.pickles import program

CONTENT = {
    "plain": [1, 2.5, "name", b"bytes", b"", None, True, (1, {3, 4})],
    "matrix": np.arange(6).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "names": np.array(["a", "bcd"]),
    "empty": np.zeros(0),
    "scalar": np.int64(4),
    "nothing-dimensional": np.array(2.5, np.float32),
}


class Shell:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_open_pickle_returns_plain_data_unchanged(tmp_path, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    found = open_pickle(path)
    assert found["plain"] == CONTENT["plain"]
    for name, value in list(CONTENT.items())[1:]:
        assert type(found[name]) is type(value)
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_open_pickle_reads_files_of_python_2(tmp_path):
    # pickle.dumps({'imlist': ['a'], 'rows': numpy.array([1, 258])}, 2) of Python 2, where strings and bytes are one type.
    dtype = b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02t" + dtype
    content = np.array([1, 258], "<i8").tobytes()
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}(U\x06imlist](U\x01aeU\x04rows" + array + b"\x89U" + bytes([len(content)]) + content + b"tbu.")
    found = open_pickle(path)
    assert found["imlist"] == ["a"]
    assert found["rows"].tolist() == [1, 258]


@pytest.mark.parametrize("hide", [lambda x: x, lambda x: {"gnd": [x]}, lambda x: np.array([x], object)])
def test_pickles_with_code_are_rejected_and_not_run(tmp_path, hide):
    path, trace = tmp_path / "bad.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps(hide(Shell(trace))))
    with pytest.raises(DataError, match=r"system.*Nothing in it was run|array of O"):
        open_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (b"", "not a pickle"),
        (b"<html>", "not a pickle"),
        (pickle.dumps(CONTENT)[:-30], "not a pickle"),
        (pickle.dumps(np.ndarray), "a class"),
        (pickle.dumps(Path("x")), "refers to pathlib"),
        (b"c__builtin__\neval\n(V1+1\ntR.", "__builtin__.eval"),
        (b"c__builtin__\nbytes\n(I100000000000\ntR.", "bytes"),
        (b"Pid\n.", "object stored elsewhere"),
        (b"(" * 100_000, "not a pickle"),
        (b"]" + b"](" * 500 + b"a" * 500 + b".", "not a pickle"),
        (pickle.dumps(np.arange(4), 2).replace(b"K\x04\x85", b"K\x09\x85"), "shape"),
    ],
)
def test_files_that_are_not_plain_data_raise(tmp_path, content, mentioned):
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.pkl.*{mentioned}"):
        open_pickle(path)


def test_pickles_cannot_change_the_classes_that_read_them(tmp_path):
    """GLOBAL, then BUILD with a slot state, which sets attributes of the object on the stack: here of a class."""
    path = tmp_path / "set.pkl"
    path.write_bytes(b"c_codecs\nencode\n(N}X\x07\x00\x00\x00__new__cbuiltins\nset\nstb0}.")
    with pytest.raises(DataError):
        open_pickle(path)
    path.write_bytes(pickle.dumps({"a": b"bytes"}, protocol=2))
    assert open_pickle(path) == {"a": b"bytes"}


def test_shared_lists_stay_shared_unless_they_expand_without_end(tmp_path):
    path = tmp_path / "set.pkl"
    for depth in (10, 60):
        shared = [1]
        for _ in range(depth):
            shared = [shared, shared]
        path.write_bytes(pickle.dumps({"a": shared}))
        if depth == 10:
            opened = open_pickle(path)["a"]
            assert opened[0] is opened[1]
        else:  # 2**60 values, if one walks through them
            with pytest.raises(DataError, match=r"set\.pkl.*expand"):
                open_pickle(path)


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def numbered(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little")


HASH_BOMB = b"K\x01\x85q\x00" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(40))
DOUBLED = b"".join(b"c_codecs\nencode\nh" + bytes([n]) + text("hex" if n else "latin1") + b"\x86Rq" + bytes([n + 1]) for n in range(27))
ENCODED = b"".join(b"c_codecs\nencode\nh\x00\x85R" for _ in range(3000))
REBUILD = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
BYTE = b"cnumpy\ndtype\n" + text("b") + b"\x85R"
HOSTILE = {
    "hash bomb": b"\x80\x02}(" + HASH_BOMB + b"tNs.",
    "deep tuple as key": b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.",
    "deep list": b"]" * 200_000 + b"a" * 199_999 + b".",
    "list in itself": b"]q\x00h\x00a.",
    "dict in itself": b"}q\x00K\x01h\x00s.",
    "memo slot": b"\x80\x02}r\xff\xff\xff\x0f0c__builtin__\neval\n.",
    "doubling codec": b"\x80\x02}K\x01(" + text("A" * 16) + b"q\x00" + DOUBLED + b"ts.",
    "repeated encoding": b"(" + text("A" * 100_000) + b"q\x00" + ENCODED + b"t.",
    "bytearray of a size": b"cbuiltins\nbytearray\n" + numbered(10**11) + b"\x85R.",
    "array whose content is a number": REBUILD + b"(K\x01" + numbered(10**9) + b"\x85" + BYTE + b"\x89" + numbered(10**9) + b"tb.",
    "array of a huge shape": REBUILD + b"(K\x01" + numbered(10**12) + b"\x85" + BYTE + b"\x89C\x01atb.",
    "integer of 100,000 bits": b"\x8b" + (12_500).to_bytes(4, "little") + b"\x7f" * 12_500 + b".",
    "text without end": b"\x8d" + b"\xff" * 7 + b"\x7fabc.",
    "lone surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "attribute of a function": b"c_codecs\nencode\n}" + text("x") + b"K\x01sb.",
    "unfinished array": b"]" + REBUILD + b"a.",
    "nothing on the stack": b"\x87.",
    "extension": b"\x82\x01.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_little_memory(tmp_path, name):
    path = tmp_path / "bad.pkl"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bad\.pkl"):
        open_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize("kind", ["integers", "tuples", "a set"])
def test_keys_with_one_hash_are_refused(tmp_path, kind):
    """Each of them would be compared with all others: minutes for a file of 2 MB."""
    path = tmp_path / "collisions.pkl"
    numbers = [(number << 9) * (2**61 - 1) for number in range(1, 60_001)]  # Each has hash 0.
    keys = [b"\x8a\x0b" + number.to_bytes(11, "little") for number in numbers]
    match kind:
        case "integers":
            content = b"}(" + b"N".join(keys) + b"Nu."
        case "tuples":
            content = b"}(" + b"".join(key + b"\x85N" for key in keys) + b"u."
        case _:
            content = b"\x8f(" + b"".join(keys) + b"\x90."
    path.write_bytes(content)
    with pytest.raises(DataError, match="keys"):
        open_pickle(path)


def test_a_distant_memo_slot_takes_no_memory(tmp_path):
    path = tmp_path / "slot.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")  # slot 268,435,455
    assert open_pickle(path) == {}


def test_too_many_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "MAX_OPCODES", 1000)
    path = tmp_path / "long.pkl"
    path.write_bytes(b"(" + b"]" * 1100 + b"t.")
    with pytest.raises(DataError, match="1,000 operations"):
        open_pickle(path)
