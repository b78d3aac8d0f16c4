"""What there is: frameworks (one mapping file each) and containers, found by name, content or suffix.

Nothing is imported before it is needed: containers are told apart by their first bytes, frameworks by
the head of their mapping files.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType

from lstmconvert import mapping
from lstmconvert.errors import BadFile, Usage
from lstmconvert.mapping import MappingFile
from lstmconvert.values import dataclass

NAMED_TENSORS = "lstmconvert.frameworks.named_tensors"
"""The module of frameworks whose files are nothing but named tensors."""


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """A container: where its module is, what its files begin with, what they are called.

    ``magic`` is tried in order; ``b""`` means that only the module's ``probe`` can tell.
    """

    name: str
    module: str
    title: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    writes: bool = True


_ZIP = b"PK"
_HDF5 = b"\x89HDF\r\n\x1a\n"

# In the order in which they are tried; the ones that only a probe can tell come last.
_CONTAINERS = (
    ContainerEntry(
        "keras_archive", "lstmconvert.containers.keras_archive", "Keras archive", (".keras",), (_ZIP,)
    ),
    ContainerEntry(
        "torch_archive",
        "lstmconvert.containers.torch_archive",
        "torch archive",
        (".pt", ".pth", ".bin", ".ckpt", ".jit"),
        (_ZIP, b"\x80", b"\x8a"),
    ),
    # Before npz: it begins with an array as well.
    ContainerEntry("eqx", "lstmconvert.containers.eqx", "Equinox leaves", (".eqx",), (b"\x93NUMPY", b"{")),
    ContainerEntry(
        "npz", "lstmconvert.containers.npz", "NumPy archive", (".npz", ".npy"), (_ZIP, b"\x93NUMPY")
    ),
    ContainerEntry("hdf5", "lstmconvert.containers.hdf5", "HDF5", (".h5", ".hdf5"), (_HDF5,)),
    # Another form of HDF5 to write; on reading its content says which form it is.
    ContainerEntry("keras_weights", "lstmconvert.containers.hdf5", "Keras weights", (".weights.h5",), ()),
    ContainerEntry(
        "safetensors", "lstmconvert.containers.safetensors", "safetensors", (".safetensors",), (b"",)
    ),
    ContainerEntry(
        "tensor_bundle", "lstmconvert.containers.tensor_bundle", "TensorFlow checkpoint", (".index",), (b"",)
    ),
    ContainerEntry(
        "pickle",
        "lstmconvert.containers.pickle",
        "pickled arrays",
        (".pkl", ".pickle", ".pdparams"),
        (b"\x80",),
    ),
    ContainerEntry("msgpack", "lstmconvert.containers.msgpack", "MessagePack", (".msgpack",), (b"",)),
    ContainerEntry("orbax", "lstmconvert.containers.orbax", "Orbax checkpoint", (), (b"",), writes=False),
    ContainerEntry("mat", "lstmconvert.containers.mat", "MATLAB file", (".mat",), (b"MATLAB",), writes=False),
    ContainerEntry(
        "npy_folder", "lstmconvert.containers.npy_folder", "folder of .npy files", (), (b"",), writes=False
    ),
    ContainerEntry(
        "openvino_ir",
        "lstmconvert.containers.openvino_ir",
        "OpenVINO IR",
        (".xml",),
        (b"<", b"\xef\xbb\xbf<"),
    ),
    ContainerEntry("ncnn_files", "lstmconvert.containers.ncnn_files", "ncnn", (".param",), (b"7767517",)),
    ContainerEntry("tflite_file", "lstmconvert.containers.tflite_file", "TFLite", (".tflite",), (b"",)),
    ContainerEntry(
        "tensorflowjs",
        "lstmconvert.containers.tensorflowjs",
        "TensorFlow.js",
        (".json",),
        (b"{", b" ", b"\n"),
    ),
    ContainerEntry("coreml", "lstmconvert.containers.coreml", "Core ML", (".mlmodel",), (b"",)),
    # Another form to write; what is read is told by its content.
    ContainerEntry("coreml_package", "lstmconvert.containers.coreml", "Core ML program", (".mlpackage",), ()),
    ContainerEntry("onnx_file", "lstmconvert.containers.onnx_file", "ONNX", (".onnx",), (b"",)),
)


@cache
def containers() -> Mapping[str, ContainerEntry]:
    """Every container by name."""
    return MappingProxyType({entry.name: entry for entry in _CONTAINERS})


def container_module(name: str) -> ModuleType:
    """The module of a container."""
    return importlib.import_module(containers()[name].module)


def container_of(path: Path) -> ContainerEntry:
    """The container of an existing file, by its content.

    Raises:
        BadFile: when it is missing, empty, or nothing that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        # TensorFlow calls what stands before ".index" and ".data-..." the path of a checkpoint.
        index = path.with_name(path.name + ".index")
        if index.is_file():
            return container_of(index)
        raise BadFile("there is no such file", file=path, remedy="Check the path.") from error
    except IsADirectoryError:
        head = b""
    except OSError as error:
        raise BadFile(f"the file cannot be opened: {error.strerror}", file=path) from error
    if not head and not path.is_dir():
        raise BadFile("the file is empty", file=path)
    # The suffix only says what to try first, so that in the ordinary case one module is imported.
    name = path.name.lower()
    for entry in sorted(_CONTAINERS, key=lambda e: not name.endswith(e.suffixes)):
        fits = any(head.startswith(magic) for magic in entry.magic)
        if fits and container_module(entry.name).probe(path):
            return entry
    titles = ", ".join(entry.title for entry in _CONTAINERS if entry.magic)
    raise BadFile(
        "this is not a file that lstmconvert can read",
        file=path,
        found=f"first bytes {head!r}" if head else "a folder",
        expected=titles,
    )


@cache
def _heads() -> Mapping[str, Mapping[str, object]]:
    """The ``[framework]`` tables of all built-in mapping files."""
    return MappingProxyType(
        {path.stem: mapping.framework_head(path) for path in sorted(mapping.folder().glob("*.toml"))}
    )


@cache
def _plugins() -> Mapping[str, Path]:
    """Mapping files that other packages offer by the entry point group ``lstmconvert.frameworks``.

    An entry point names a function or a value that is the path of a mapping file.
    """
    from importlib.metadata import entry_points

    found: dict[str, Path] = {}
    for point in entry_points(group="lstmconvert.frameworks"):
        package = point.dist.name if point.dist is not None else point.value
        try:
            value = point.load()
            path = Path(value() if callable(value) else value)
            said = mapping.load_file(path).name
        except Exception as error:  # whatever a package of others raises
            raise Usage(
                f"the package {package} offers the framework {point.name!r}, which cannot be loaded",
                found=f"{type(error).__name__}: {error}",
                remedy="Update that package, or uninstall it.",
            ) from error
        if said != point.name:
            raise Usage(
                f"the package {package} offers a framework under another name than its mapping file's",
                found=f"entry point {point.name!r}, mapping file {said!r}",
            )
        found[point.name] = path
    return MappingProxyType(found)


def frameworks() -> tuple[str, ...]:
    """The names of all frameworks, built in or offered by other packages."""
    return (*_heads(), *(name for name in _plugins() if name not in _heads()))


def mapping_of(name: str) -> MappingFile:
    """The mapping file of a framework.

    Raises:
        Usage: when there is no framework of that name.
    """
    if name in _heads():
        return mapping.load(name)
    if name in _plugins():
        return mapping.load_file(_plugins()[name])
    raise Usage(f"no framework is called {name!r}", expected=f"one of {', '.join(frameworks())}")


def has_module(name: str) -> bool:
    """Whether a framework has a module of its own; without one it is nothing but named tensors."""
    head = _heads().get(name)
    return bool(mapping_of(name).module if head is None else head.get("module"))


def written_suffixes(framework: MappingFile) -> tuple[str, ...]:
    """The suffixes that a framework's files are given, the usual one first; none where they are only read."""
    if all(layout.cell is None or layout.reads_only for layout in framework.layouts.values()):
        return ()
    known = [containers()[name] for name in framework.containers if name in containers()]
    return framework.suffixes or tuple(c.suffixes[0] for c in known if c.writes and c.suffixes)


def suffix_of(name: str) -> str:
    """The suffix that a framework's files are given where nobody says another."""
    return next(iter(written_suffixes(mapping_of(name))), ".npz")


def module_of(framework: MappingFile) -> ModuleType:
    """The module that reads and writes a framework's names and configuration."""
    return importlib.import_module(framework.module or NAMED_TENSORS)


def frameworks_in(container: str) -> tuple[str, ...]:
    """The built-in frameworks whose files come in this container; NumPy's archive serves them all."""
    return tuple(
        n for n, head in _heads().items() if container == "npz" or container in _list(head, "containers")
    )


def offered_in(container: str) -> tuple[str, ...]:
    """The same of frameworks that other packages offer."""
    offered = (name for name in _plugins() if name not in _heads())
    return tuple(name for name in offered if container == "npz" or container in mapping_of(name).containers)


def _list(head: Mapping[str, object], key: str) -> Sequence[str]:
    value = head.get(key, [])
    return value if isinstance(value, list) else []


def target_of(path: Path, framework: str | None) -> tuple[str, str]:
    """The framework and container that a path to be written stands for.

    Args:
        path: where to write; its suffix names the container.
        framework: the framework, or ``None`` to go by the suffix.

    Raises:
        Usage: when the suffix means nothing, or nothing in this framework.
    """
    name = path.name.lower()
    by_suffix = [(entry, s) for entry in _CONTAINERS for s in entry.suffixes if name.endswith(s)]
    fitting = max(by_suffix, key=lambda found: len(found[1]), default=None)
    if framework is None:
        # Of several frameworks with one suffix it stands for the one that has a module of its own.
        for candidate in sorted(_heads(), key=lambda name: not has_module(name)):
            head = _heads()[candidate]
            if any(name.endswith(suffix) for suffix in _list(head, "suffixes")):
                framework = candidate
                break
        else:
            raise Usage(
                f"the suffix of {path.name!r} does not say what to write",
                remedy="Name the target with --to, or use one of "
                + ", ".join(s for head in _heads().values() for s in _list(head, "suffixes"))
                + ".",
            )
    known = mapping_of(framework).containers
    if fitting is not None and fitting[0].name in known:
        return framework, fitting[0].name
    if fitting is not None and fitting[0].name == "npz":
        return framework, "npz"
    suffixes = written_suffixes(mapping_of(framework))
    raise Usage(
        f"{framework} is not written to files like {path.name!r}",
        expected=f"a suffix of {', '.join(suffixes)}",
    )
