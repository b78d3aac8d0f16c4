"""CRC-32 in parts against zlib's of the whole."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import parallel, pieces
from lstmconvert.containers import crc32
from lstmconvert.tensors import Lazy


@given(first=st.binary(), second=st.binary())
def test_joined(first: bytes, second: bytes) -> None:
    assert crc32.joined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_joined_with_more_bytes_than_a_machine_has() -> None:
    zeros = bytes(6 << 20)
    head = zlib.crc32(b"head")
    assert crc32.joined(head, zlib.crc32(zeros), len(zeros)) == zlib.crc32(zeros, head)
    # Twice 2^40 zeros are 2^41 zeros, whichever way they are counted.
    once = crc32.joined(7, 0, 1 << 40)
    assert crc32.joined(once, 0, 1 << 40) == crc32.joined(7, 0, 1 << 41)


@pytest.mark.parametrize("cores", [1, 3])
@given(data=st.binary(max_size=500), start=st.integers(0, 2**32 - 1))
def test_on_all_cores(cores: int, data: bytes, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_cores", lambda: cores)
        patch.setattr(crc32, "LARGE", 7)
        patch.setattr(pieces, "LARGE", 1)
        patch.setattr(pieces, "PIECE", 64)
        assert crc32.of_bytes(memoryview(data), start) == zlib.crc32(data, start)
        assert crc32.of_tensor(Lazy.of(np.frombuffer(data, np.uint8))) == zlib.crc32(data)
