"""Zip archives: what Python's zipfile writes is read; what lies or points elsewhere is refused."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lstmconvert.containers import zip_reader
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import same_bits


def archive(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in contents.items():
            target.writestr(name, data)
    return path


CONTENTS = {"a/data.pkl": b"x" * 500, "ü/empty": b"", "b": bytes(range(256)) * 40}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_those_of_zipfile(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "a.zip", CONTENTS, method)
    found = zip_reader.members(path)
    assert list(found) == list(CONTENTS)
    for name, data in CONTENTS.items():
        member = found[name]
        assert (member.size, member.compressed) == (len(data), method == zipfile.ZIP_DEFLATED)
        assert zip_reader.read_member(member, limit=1 << 20) == data
        assert zip_reader.read_head(member, 300) == data[:300]
        if not member.compressed:
            assert path.read_bytes()[member.offset :][: member.size] == data


def test_streamed_and_zip64_members_are_read(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """A file that cannot seek, so that sizes come behind the data."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    pipe = Pipe()
    with (
        zipfile.ZipFile(pipe, "w") as target,  # type: ignore[arg-type]
        target.open("m", "w", force_zip64=True) as member,
    ):
        member.write(b"hello" * 10)
    path = tmp_path / "streamed.zip"
    path.write_bytes(pipe.data)
    assert zip_reader.read_member(zip_reader.members(path)["m"], limit=100) == b"hello" * 10


def test_folders_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.mkdir("folder")
        target.writestr("folder/file", b"1")
    assert list(zip_reader.members(path)) == ["folder/file"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("strides", [None, (1, 5)])
def test_arrays_in_members(tmp_path: Path, compressed: bool, strides: tuple[int, int] | None) -> None:
    values = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    stored = values if strides is None else np.asfortranarray(values)
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    path = archive(tmp_path / "a.zip", {"w": b"head" + stored.tobytes("A")}, method)
    member = zip_reader.members(path)["w"]
    assert same_bits(zip_reader.lazy(member, 4, (5, 4), np.float32, strides=strides).read(), values)
    with pytest.raises(BadFile, match="outside the member"):
        zip_reader.lazy(member, 8, (5, 4), np.float32)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_is_noticed(tmp_path: Path, method: int) -> None:
    values = np.random.default_rng(1).normal(size=4000).astype(np.float32)
    path = archive(tmp_path / "a.zip", {"w": values.tobytes()}, method)
    member = zip_reader.members(path)["w"]
    lazy = zip_reader.lazy(member, 0, (4000,), np.float32)
    data = bytearray(path.read_bytes())
    data[member.offset + 5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadFile, match=r"checksum|compressed member"):
        zip_reader.read_member(member, limit=1 << 20)
    with pytest.raises(BadFile, match=r"checksum|compressed member"):
        lazy.read()


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "/absolute", "a//b", "./a", "C:/x", "C:x", "a\\..\\b", "nul\0inside", ".."],
)
def test_names_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    placeholder = "x" * len(name)
    path = archive(tmp_path / "a.zip", {placeholder: b"1"})
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name.encode()))
    with pytest.raises(BadFile, match="outside the archive"):
        zip_reader.members(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("w", b"1")
        target.writestr("w", b"2")
    with pytest.raises(BadFile, match="one name"):
        zip_reader.members(path)


def table_entry(data: bytes, number: int = 0) -> int:
    """Where an entry of the member table begins."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    return at


def changed(path: Path, offset: int, form: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, value)
    path.write_bytes(data)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    # A quine of members: the second one's header lies inside the first one's bytes.
    inner = archive(tmp_path / "inner.zip", {"w2": b"2" * 50}).read_bytes()
    local = inner[: inner.index(b"PK\x01\x02")]
    path = archive(tmp_path / "a.zip", {"w1": local, "w2": b"2" * 50})
    data = path.read_bytes()
    changed(path, table_entry(data, 1) + 42, "<L", data.index(b"PK\x03\x04", 4))
    with pytest.raises(BadFile, match="share bytes"):
        zip_reader.members(path)


@pytest.mark.parametrize(
    ("field", "form", "value"),
    [
        (42, "<L", 1 << 31),  # header offset
        (20, "<L", 1 << 30),  # stored size
        (24, "<L", 1 << 30),  # size
        (28, "<H", 9),  # length of the name
    ],
)
def test_a_table_that_lies_is_refused(tmp_path: Path, field: int, form: str, value: int) -> None:
    path = archive(tmp_path / "a.zip", {"weights": b"1" * 100})
    changed(path, table_entry(path.read_bytes()) + field, form, value)
    with pytest.raises(BadFile):
        zip_reader.members(path)


def test_a_member_that_calls_itself_otherwise_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"weights": b"1" * 100})
    path.write_bytes(path.read_bytes().replace(b"weights", b"Weights", 1))
    with pytest.raises(BadFile, match="not what the member table says"):
        zip_reader.members(path)


def test_a_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"w": bytes(80 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BadFile, match="far beyond"):
        zip_reader.members(path)


def test_a_compressed_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    for stated in (99_999, 100_001):
        path = archive(tmp_path / "a.zip", {"w": os.urandom(1000) * 100}, zipfile.ZIP_DEFLATED)
        changed(path, table_entry(path.read_bytes()) + 24, "<L", stated)
        member = zip_reader.members(path)["w"]
        with pytest.raises(BadFile, match="size that the archive states"):
            zip_reader.read_member(member, limit=1 << 20)


def test_a_member_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"w": b"1" * 100})
    with pytest.raises(BadFile, match="larger than"):
        zip_reader.read_member(zip_reader.members(path)["w"], limit=99)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_by_name(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "a.zip", {"w": b"1" * 100}, method)
    with pytest.raises(UnsupportedSource, match="other than deflate"):
        zip_reader.members(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"w": b"1"})
    changed(path, table_entry(path.read_bytes()) + 8, "<H", 1)
    with pytest.raises(UnsupportedSource, match="encrypted"):
        zip_reader.members(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"w": b"1" * 30, "v": b"2" * 30})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            zip_reader.members(path)
