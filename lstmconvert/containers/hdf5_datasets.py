"""One HDF5 dataset as a ``Lazy``: by byte range where its numbers lie plainly, by h5py where not."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.containers.hdf5_bytes import Source, damage_is_bad_file
from lstmconvert.containers.hdf5_objects import dataset_at, text
from lstmconvert.errors import BadFile
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import h5py

# What a few stored bytes may grow to: trained weights hardly compress, a file of zeros does so a
# thousandfold, and a bomb is a file that states far more than it has.
ALWAYS_ALLOWED = 64 * 2**20
LARGEST_GROWTH = 100

# The filters that h5py itself offers, in the one order in which it applies them.
_FILTERS = {2: "shuffle", 1: "gzip", 32000: "lzf", 3: "fletcher32"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A dataset and where its bytes are.

    Attributes:
        tensor: its numbers.
        place: its path, for errors.
        address: identity of the object; two names of one dataset share it.
        start: offset of its bytes where they lie plainly, else ``None``.
    """

    tensor: Lazy
    place: str
    address: int
    start: int | None


def stored(source: Source, dataset: h5py.Dataset, path: str) -> Stored:
    """Check one dataset's header and say how its numbers are read.

    Args:
        source: the file that it belongs to.
        dataset: the open dataset; not kept.
        path: its path from the root of the file.

    Raises:
        BadFile: virtual, external or oversized data, an unknown number format or filter, or bytes
            outside the file.
    """
    import h5py

    dtype, is_bool = _number_format(dataset, path)
    shape = _shape(dataset, dtype, path)
    plan = dataset.id.get_create_plist()
    layout = plan.get_layout()
    if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise BadFile(
            "the dataset keeps its numbers in other files, which are not opened",
            place=path,
            remedy="Save the model again with the framework that wrote it.",
        )
    declared = math.prod(shape) * dtype.itemsize
    held = dataset.id.get_storage_size()
    start = dataset.id.get_offset()
    address = h5py.h5o.get_info(dataset.id).addr
    if declared == 0:
        tensor = Lazy.of(np.empty(shape, dtype))
        start = None
    elif layout == h5py.h5d.CONTIGUOUS and start is not None and plan.get_nfilters() == 0:
        if held != declared or start + declared > source.length:
            raise BadFile(
                "the dataset does not fit into the file",
                place=path,
                found=f"{declared} bytes at {start} in a file of {source.length} bytes",
            )
        tensor = source.tensor(start, shape, dtype, path)
    else:
        _check_growth(dataset, plan, declared, held, source.length, path)
        tensor = _through_h5py(source, path, shape, dtype)
        start = None
    return Stored(_native(tensor, is_bool=is_bool), path, address, start)


def check_together(tensors: Iterable[Stored], file_size: int) -> None:
    """Refuse datasets that overlap in the file, or that together state far more than it has."""
    total = 0
    ranges: dict[int, tuple[int, int, str]] = {}
    for each in tensors:
        total += each.tensor.nbytes
        if each.start is not None:
            ranges[each.address] = each.start, each.start + each.tensor.nbytes, each.place
    if total > max(ALWAYS_ALLOWED, LARGEST_GROWTH * file_size):
        raise BadFile(
            "the datasets together are far larger than the file",
            found=f"{total} bytes in a file of {file_size} bytes",
        )
    end = 0
    for begin, stop, place in sorted(ranges.values()):
        if begin < end:
            raise BadFile("two datasets share bytes of the file", place=place)
        end = stop


def _number_format(dataset: h5py.Dataset, path: str) -> tuple[np.dtype[Any], bool]:
    """The dtype in which the bytes lie in the file, and whether they are truth values."""
    import h5py

    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeOpaqueID):
        # Keras writes bfloat16 as two opaque bytes and says so beside them.
        if kind.get_size() == 2 and text(dataset, "dtype") == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16), False
        raise BadFile(
            "the dataset holds bytes of an unnamed format",
            place=path,
            found=f"{kind.get_size()} opaque bytes each",
            expected="numbers",
            remedy="If it was bfloat16 in a legacy .h5 file: save it as .keras, which says so.",
        )
    if isinstance(kind, h5py.h5t.TypeEnumID) and kind.dtype == np.bool_:
        return np.dtype(np.uint8), True
    if isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID):
        dtype = kind.dtype
        if dtype.itemsize <= 8 and kind == h5py.h5t.py_create(dtype):
            return dtype, False
    raise BadFile(
        "the dataset does not hold numbers that can be weights",
        place=path,
        found=str(kind.dtype),
        expected="integers, or floats of 16, 32 or 64 bits",
    )


def _shape(dataset: h5py.Dataset, dtype: np.dtype[Any], path: str) -> tuple[int, ...]:
    shape = dataset.shape
    if shape is None:
        raise BadFile("the dataset has no shape", place=path)
    extent = math.prod(max(n, 1) for n in shape) * dtype.itemsize
    if len(shape) > 32 or extent > sys.maxsize:
        raise BadFile("the dataset states an impossible shape", place=path, found=shape)
    return tuple(int(n) for n in shape)


def _check_growth(
    dataset: h5py.Dataset, plan: Any, declared: int, held: int, file_size: int, path: str
) -> None:
    """Refuse a dataset whose stated size is out of proportion to its stored bytes."""
    filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
    if filters != [known for known in _FILTERS if known in filters] or {1, 32000} <= set(filters):
        raise BadFile(
            "the dataset is compressed in a way that is not read",
            place=path,
            found=", ".join(_FILTERS.get(number, f"HDF5 filter {number}") for number in filters),
            expected="gzip or lzf, with or without shuffle and fletcher32",
            remedy="Repack the file: h5repack -f NONE IN.h5 OUT.h5",
        )
    chunk = math.prod(dataset.chunks) * dataset.id.get_type().get_size() if dataset.chunks else 0
    if held > file_size or max(declared, chunk) > max(ALWAYS_ALLOWED, LARGEST_GROWTH * held):
        raise BadFile(
            "the dataset states far more than the file stores of it",
            place=path,
            found=f"{max(declared, chunk)} bytes out of {held} stored bytes",
            expected=f"at most {LARGEST_GROWTH} times as much",
            remedy="If the file is genuine, repack it: h5repack -f NONE IN.h5 OUT.h5",
        )


def _through_h5py(source: Source, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Lazy:
    def load() -> Array:
        import h5py

        with damage_is_bad_file(source.name, path), source.opened(None) as file:
            dataset = dataset_at(file, path)
            if dataset.shape != shape or dataset.id.get_type().get_size() != dtype.itemsize:
                raise BadFile("the file was changed while it was being read", file=source.name, place=path)
            _check_chunks(source, dataset, path)
            array = np.empty(shape, dtype)
            # In the type of the file: the bytes come as they are, nothing is converted.
            dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, _as_bytes(array), dataset.id.get_type())
            return array

    return Lazy(shape, dtype, load)


def _as_bytes(array: Array) -> Array:
    """The same memory under a plain dtype, which h5py accepts whatever the numbers are."""
    return array.view(f"V{array.dtype.itemsize}")


def _check_chunks(source: Source, dataset: h5py.Dataset, path: str) -> None:
    """Refuse a gzip chunk that unpacks to more than a chunk: HDF5 itself would unpack it all."""
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
    if 1 not in filters:
        return
    bit = 1 << filters.index(1)
    # fletcher32 lies outside of gzip here and adds four bytes at the end, which zlib leaves alone.
    size = math.prod(dataset.chunks) * dataset.id.get_type().get_size()
    places: list[tuple[int, int]] = []

    def note(chunk: Any) -> None:
        if not chunk.filter_mask & bit:
            places.append((chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    for offset, packed in places:
        if offset + packed > source.length:
            raise BadFile("a chunk of the dataset lies outside the file", file=source.name, place=path)
        unpacker = zlib.decompressobj()
        rest = source.read(offset, packed)
        count = 0
        while rest and not unpacker.eof and count <= size:
            try:
                count += len(unpacker.decompress(rest, 2**20))
            except zlib.error as error:
                raise BadFile(
                    "a compressed chunk is damaged", file=source.name, place=path, found=error
                ) from error
            rest = unpacker.unconsumed_tail
        if count > size:
            raise BadFile("a compressed chunk holds more than its chunk", file=source.name, place=path)


def _native(tensor: Lazy, *, is_bool: bool) -> Lazy:
    """In the byte order of this machine, and as truth values where they are."""
    if is_bool:
        return tensor.map(lambda array: np.asarray(array != 0), tensor.shape, np.bool_)
    if tensor.dtype.isnative:
        return tensor
    dtype = tensor.dtype.newbyteorder("=")
    return tensor.map(lambda array: array.byteswap().view(dtype), tensor.shape, dtype)
