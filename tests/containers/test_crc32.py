"""CRC-32 in parts against that of the whole by Python's zlib."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import parallel, pieces
from lstmconvert.containers import crc32
from lstmconvert.tensors import Lazy


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
