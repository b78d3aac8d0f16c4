"""Pickles are data: what Python pickles plainly is read, what a pickle would run is refused or inert."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import os
import pathlib
import pickle
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lstmconvert.containers.pickle_objects import PLAIN, Constructor, Global, Unknown
from lstmconvert.containers.pickled_arrays import ARRAYS
from lstmconvert.containers.restricted_pickle import load, loads
from lstmconvert.errors import BadFile, ConversionError, UnsupportedSource
from lstmconvert.tensors import same_bits

TABLE = {**PLAIN, **ARRAYS}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    255,
    65_536,
    -1,
    1 << 31,
    -(1 << 200),
    1.5,
    float("inf"),
    complex(1, 2),
    "",
    "text with ' and ü and \n and \u20ac \U0001f600",
    "x" * 70_000,
    b"",
    b"bytes \x00\xff",
    b"y" * 70_000,
    (),
    (1,),
    (1, 2, 3, 4),
    [],
    [1, [2, [3]]],
    {},
    {"a": 1, 2: "b", None: [], ("x", "y"): 3, b"k": 4.0},
    set(),
    {1, 2},
    collections.OrderedDict([("b", 1), ("a", 2)]),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN_VALUES, ids=lambda value: repr(value)[:30])
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    read = loads(pickle.dumps(value, protocol), TABLE)
    assert read == value
    assert isinstance(read, type(value)) or isinstance(value, collections.OrderedDict)
    if isinstance(value, dict):
        assert list(read) == list(value)  # type: ignore[call-overload]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_and_cyclic_values_stay_so(protocol: int) -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    read: Any = loads(pickle.dumps({"a": shared, "b": shared}, protocol), TABLE)
    assert read["a"] is read["b"]
    assert read["a"][1] is read["a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "code", ["<f4", ">f4", "f8", "f2", "i1", "u1", "<i2", ">i4", "i8", "u8", "?", "c8", "c16"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_of_numpy(code: str, order: Any, protocol: int) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(code, order=order)
    read: Any = loads(pickle.dumps(values, protocol), TABLE)
    assert same_bits(read.lazy().read(), values.astype(values.dtype.newbyteorder("=")))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_ml_dtypes_scalars_and_other_arrays(protocol: int) -> None:
    values = {
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5),
        "number": np.float32(0.1),
        "text": np.array(["a", "bc"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
    }
    read: Any = loads(pickle.dumps(values, protocol), TABLE)
    for name in ("bfloat16", "empty", "scalar"):
        assert same_bits(read[name].lazy().read(), values[name])
    assert read["number"] == float(np.float32(0.1))
    assert read["text"].lazy() is None
    assert read["objects"].lazy() is None


def test_an_array_that_lies_about_its_shape_is_refused() -> None:
    data = pickle.dumps(np.arange(6, dtype=np.float64), 2)
    assert data.count(b"K\x06") == 1
    for length in (5, 7, 255):
        with pytest.raises(BadFile, match="as many bytes"):
            loads(data.replace(b"K\x06", bytes([ord("K"), length])), TABLE)


def test_long_byte_strings_stay_in_the_file(tmp_path: pathlib.Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"w": values, "after": 5}, 4))
    with path.open("rb") as file:
        read: Any = load(file, path.stat().st_size, TABLE, leave_large_bytes=True)
    assert same_bits(read["w"].lazy(path).read(), values)
    assert read["after"] == 5


class Encoder:
    """Stands for a class that is not known, such as a label encoder."""

    def __init__(self) -> None:
        self.classes = np.arange(3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_objects_are_inert(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        pytest.fail("code of the class was run")

    value = {
        "encoder": Encoder(),
        "options": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("a/b"),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "deque": collections.deque([1, 2]),
        "partial": functools.partial(dict, a=1),
        "class": Encoder,
    }
    data = pickle.dumps(value, protocol)
    monkeypatch.setattr(Encoder, "__new__", run)
    monkeypatch.setattr(Encoder, "__setstate__", run, raising=False)
    read: Any = loads(data, TABLE)
    assert isinstance(read["encoder"], Unknown)
    assert read["encoder"].state["classes"].lazy().read().tolist() == [0, 1, 2]
    assert isinstance(read["options"], Unknown)
    assert read["options"].state == {"lr": 0.1}
    assert isinstance(read["class"], Global)


class Reduced:
    """Pickles as a call of whatever it is given."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: dict[str, Callable[[], Any]] = {
    "os.system": lambda: Reduced(os.system, ("touch hacked",)),
    "subprocess": lambda: Reduced(subprocess.Popen, (["touch", "hacked"],)),
    "eval": lambda: Reduced(eval, ("open('hacked', 'w')",)),
    "exec": lambda: Reduced(exec, ("open('hacked', 'w')",)),
    "open": lambda: Reduced(open, ("hacked", "w")),
    "import": lambda: Reduced(__import__, ("os",)),
    "getattr": lambda: Reduced(getattr, (Reduced(__import__, ("os",)), "system")),
    "getattr chain": lambda: Reduced(getattr, (collections.OrderedDict, "__init__")),
    "nested": lambda: Reduced(collections.OrderedDict, ([("a", Reduced(os.system, ("touch hacked",)))],)),
    "partial": lambda: Reduced(functools.partial(os.system, "touch hacked"), ()),
    "reduce": lambda: Reduced(functools.reduce, (os.system, ["touch hacked"])),
    "map": lambda: Reduced(list, (map(os.system, ["touch hacked"]),)),
    "pickle": lambda: Reduced(pickle.loads, (b"N.",)),
    "numpy.load": lambda: Reduced(np.load, ("hacked",)),
    "bytes": lambda: Reduced(bytes, (1 << 40,)),
    "bytearray": lambda: Reduced(bytearray, (1 << 40,)),
    "items": lambda: Reduced(dict, (), None, None, iter([("a", Reduced(os.system, ("touch hacked",)))])),
    "state": lambda: Reduced(Encoder, (), Reduced(os.system, ("touch hacked",))),
    "setter": lambda: Reduced(Encoder, (), {"a": 1}, None, None, setattr),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("trick", HOSTILE)
def test_a_pickle_that_runs_something_is_refused(
    trick: str, protocol: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"weights": {}, "evil": HOSTILE[trick]()}, protocol)
    with pytest.raises(ConversionError):
        loads(data, TABLE)
    assert list(tmp_path.iterdir()) == []


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


RAW: dict[str, bytes] = {
    # Opcodes that reach outside, or that only an attacker writes.
    "extension 1": b"\x82\x01.",
    "extension 2": b"\x83\x01\x00.",
    "extension 4": b"\x84\x01\x00\x00\x00.",
    "persistent text": b"Pos.system\n.",
    "persistent": text("x") + b"Q.",
    "next buffer": b"\x97.",
    "instance": b"(S'touch hacked'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nX\x02\x00\x00\x00ls o.",
    "class of an instance": b"(iposix\nsystem\n.",
    "new object": b"cos\nsystem\n)\x81.",
    "new object with names": b"cos\nsystem\n)}\x92.",
    "stack global": text("builtins") + text("eval") + b"\x93.",
    "stack global of numbers": b"K\x01K\x02\x93.",
    "dotted": b"cbuiltins\nobject.__subclasses__\n.",
    "dotted in a plain one": b"ccollections\nOrderedDict.__reduce__\n)R.",
    "submodule": b"cos.path\njoin\n.",
    "call of a called": b"cmodel\nNet\n)R)R.",
    "call of text": text("eval") + b")R.",
    "call of a list": b"])R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.",
    "call with nothing": b"ccollections\nOrderedDict\nNR.",
    "unknown function": b"ctorch.hub\nload\n)R.",
    "unknown function of numpy": b"cnumpy.testing._private.utils\nrunstring\n)R.",
    "functools.reduce": b"cfunctools\nreduce\n)R.",
    "state of a list": b"]}b.",
    "state of a dictionary": b"}}b.",
    "state of a constructor": b"ccollections\nOrderedDict\n}b.",
    "state of a global": b"cmodel\nNet\n}b.",
    "state of an array that is none": b"cnumpy._core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\0C\x01b\x87R}b.",
    "append to a dictionary": b"}K\x01a.",
    "append to a constructor": b"ccollections\nOrderedDict\nK\x01a.",
    "items of a list": b"]K\x01K\x02s.",
    "items of a global": b"cmodel\nNet\nK\x01K\x02s.",
    "add to a dictionary": b"}(K\x01\x90.",
    # Stack and memory.
    "empty": b"",
    "nothing left": b".",
    "pop of nothing": b"0.",
    "a mark as a value": b"(.",
    "a mark as an argument": b"(\x85.",
    "no mark": b"K\x01t.",
    "no mark to pop": b"1.",
    "remember nothing": b"q\x00.",
    "remember a mark": b"(q\x00.",
    "remember a negative": b"K\x01p-1\n.",
    "recall nothing": b"h\x07.",
    "recall a negative": b"K\x01q\x00g-1\n.",
    "odd items": b"(K\x01K\x02K\x03d.",
    "two values as keys": b"}]K\x01s.",
    "dictionary as a key": b"}}K\x01s.",
    "list in a tuple as a key": b"}]\x85K\x01s.",
    "list in a set": b"\x8f(]\x90.",
    "list in a frozen set": b"(]\x91.",
    # Sizes.
    "text of 4 GiB": b"X\xff\xff\xff\xffabc.",
    "text of 2^63": b"\x8d" + struct.pack("<Q", 1 << 63) + b"abc.",
    "bytes of 2^63": b"\x8e" + struct.pack("<Q", 1 << 63) + b"abc.",
    "bytearray of 2^40": b"\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "negative text": b"T" + struct.pack("<i", -5) + b"abc.",
    "negative long": b"\x8b" + struct.pack("<i", -5) + b"abc.",
    "frame of 2^63": b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.",
    "long line": b"I" + b"9" * 10_000 + b"\n.",
    "long long line": b"L" + b"9" * 10_000 + b"L\n.",
    "no line end": b"I1",
    # Texts that are none.
    "not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "no number": b"Ix\n.",
    "no float": b"Fx\n.",
    "no quotes": b"Sabc\n.",
    "bad escape": b"S'\\x'\n.",
    "bad unicode escape": b"V\\u12\n.",
    "protocol 6": b"\x80\x06N.",
    "opcode 255": b"\xff.",
    "no end": b"N",
}


@pytest.mark.parametrize("trick", RAW)
def test_a_pickle_that_is_none_is_refused(
    trick: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BadFile, UnsupportedSource)):
        loads(RAW[trick], TABLE)
    assert list(tmp_path.iterdir()) == []


def test_a_high_memory_index_costs_nothing() -> None:
    assert loads(b"K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.", {}) == 5


def test_deep_nesting_is_not_a_recursion() -> None:
    read = loads(b"]" * 200_000 + b"a" * 199_999 + b".", {})
    assert isinstance(read, list)


def colliding_integers(count: int) -> bytes:
    modulus = (1 << 61) - 1
    return b"".join(
        b"\x8a\x0c" + (modulus * (n + 1)).to_bytes(12, "little", signed=True) + b"K\x00" for n in range(count)
    )


GROWING = {
    "shared tuples as a key": b"})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "copied lists": b"(" + b"N" * 100_000 + b"lq\x00" + b"c__builtin__\nlist\nh\x00\x85R" * 50_000 + b".",
    "copied sets": b"(" + b"N" * 100_000 + b"tq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 50_000 + b".",
    "copied texts": text("x" * 500_000)
    + b"q\x000"
    + b"c_codecs\nencode\nh\x00"
    + text("latin1")
    + b"\x86R"
    + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 20_000
    + b".",
    "copied attributes": b"("
    + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(100_000))
    + b"dq\x00"
    + b"ccollections\nOrderedDict\n)Rh\x00b" * 30_000
    + b".",
    "texts in keys": text("x" * 500_000) + b"q\x00}" + b"h\x00K\x01\x86Ns" * 20_000 + b".",
}


@pytest.mark.parametrize("trick", GROWING)
def test_a_pickle_that_grows_is_refused_early(trick: str) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(BadFile):
            loads(GROWING[trick], TABLE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20


def test_numbers_that_hash_alike_do_not_stall() -> None:
    read: Any = loads(b"}(" + colliding_integers(30_000) + b"u.", {})
    assert len(read) == 30_000
    assert len({hash(key) for key in read}) > 29_000


def test_only_the_table_is_called() -> None:
    calls: list[tuple[object, ...]] = []
    table = {"a.Known": Constructor(lambda *arguments: calls.append(arguments)), "a.VALUE": 5}
    assert loads(b"ca\nVALUE\n.", table) == 5
    loads(b"ca\nKnown\nK\x01\x85R.", table)
    assert calls == [(1,)]
    with pytest.raises(BadFile, match="no function"):
        loads(b"ca\nVALUE\n)R.", table)
    with pytest.raises(BadFile, match="wrong arguments"):
        loads(b"ca\nKnown\n)R.", {"a.Known": Constructor(lambda a: a)})


def test_the_stream_stands_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 4) + b"rest")
    size = len(stream.getvalue())
    assert load(stream, size, {}) == 1
    assert load(stream, size, {}) == "two"
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_refused(protocol: int) -> None:
    data = pickle.dumps({"a": [1, 2.5, "text", b"bytes", (None, True)], "w": np.arange(3.0)}, protocol)
    for length in range(len(data)):
        with pytest.raises(BadFile):
            loads(data[:length], TABLE)
