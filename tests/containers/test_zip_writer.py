"""Written zip archives, judged by Python's zipfile."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert.containers import zip_reader, zip_writer
from lstmconvert.containers.zip_writer import ZipWriter
from lstmconvert.tensors import Lazy, same_bits

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\\/:."), min_size=1, max_size=40)
"""Such as no reader takes for a path to elsewhere."""


@given(
    contents=st.dictionaries(NAMES, st.binary(max_size=100), max_size=8),
    alignment=st.sampled_from([1, 2, 8, 64]),
    limit=st.sampled_from([0xFFFFFFFF, 150, 5]),
    most_members=st.sampled_from([0xFFFF, 3]),
)
def test_any_contents_arrive(
    tmp_path_factory: pytest.TempPathFactory,
    contents: dict[str, bytes],
    alignment: int,
    limit: int,
    most_members: int,
) -> None:
    """With sizes and offsets beyond what the plain fields hold, too, as they are from 4 GiB on."""
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zip_writer, "_MOST_MEMBERS", most_members)
        patch.setattr(zip_writer, "_LIMIT", limit)
        with ZipWriter(path, alignment=alignment) as target:
            for number, (name, data) in enumerate(contents.items()):
                if number % 2:
                    target.add(name, data)
                else:
                    with target.open(name) as sink:
                        sink(data[:7])
                        sink(np.frombuffer(data[7:], np.uint8))
    with zipfile.ZipFile(path) as judge:
        assert judge.testzip() is None
        assert {info.orig_filename: judge.read(info) for info in judge.infolist()} == contents
        stated = {info.orig_filename: sizes_before(path, info) for info in judge.infolist()}
    for name, sizes in stated.items():
        assert sizes == (len(contents[name]),) * 2, "readers of streams believe the local header"
    found = zip_reader.members(path)
    assert all(member.offset % alignment == 0 for member in found.values())
    assert {name: zip_reader.read_member(found[name], limit=100) for name in contents} == contents


def sizes_before(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """The sizes that the header before a member states, which zipfile does not read."""
    data = path.read_bytes()[info.header_offset :]
    packed, size, name, extra = struct.unpack_from("<LLHH", data, 18)
    if (packed, size) != (0xFFFFFFFF, 0xFFFFFFFF):
        return packed, size
    tag, length, size, packed = struct.unpack_from("<HHQQ", data, 30 + name)
    assert (tag, length) == (1, 16)
    assert extra >= 20
    return packed, size


def test_what_could_not_be_finished_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.raises(RuntimeError, match="halfway"), ZipWriter(path) as target:
        target.add("one", b"1")
        with target.open("two") as sink:
            sink(b"2")
            raise RuntimeError("halfway")
    assert not zipfile.is_zipfile(path)


def test_written_archives_are_aligned_and_read_back(tmp_path: Path) -> None:
    arrays = {f"m{i}": np.random.default_rng(i).normal(size=(i, 3)).astype(np.float32) for i in range(1, 9)}
    path = tmp_path / "a.zip"
    with ZipWriter(path, alignment=64) as target:
        target.add("text", b"hello")
        for name, values in arrays.items():
            target.add_array(name, Lazy.of(np.asfortranarray(values)), head=b"")
    found = zip_reader.members(path)
    assert zip_reader.read_member(found["text"], limit=10) == b"hello"
    for name, values in arrays.items():
        assert found[name].offset % 64 == 0
        assert same_bits(zip_reader.lazy(found[name], 0, values.shape, np.float32).read(), values)
    with zipfile.ZipFile(path) as judge:
        assert judge.testzip() is None
        assert judge.read("m3") == arrays["m3"].tobytes()


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        with ZipWriter(tmp_path / name, alignment=64) as target:
            target.add_array("w", Lazy.of(np.arange(5.0)))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
