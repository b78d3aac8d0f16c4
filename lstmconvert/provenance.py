"""What a written file says about where it came from: a small JSON text in its metadata.

Nothing in it decides what a file's numbers mean where the file itself says so; it lets a later reader
ask less (the activation of a state_dict's RNN) and undo a rounding rewrite (two biases that were
summed, kept with a digest of the sum).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, fields, replace
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    UpdateKeeps,
)
from lstmconvert.gates import Cell, Gate
from lstmconvert.model import Model
from lstmconvert.pairing import spelled
from lstmconvert.tensors import Array, Lazy, little_endian
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import hashlib

KEY = "lstmconvert"
"""The metadata key under which every container keeps the text."""

_KINDS: Mapping[Cell, type[LstmEquations | GruEquations | RnnEquations]] = MappingProxyType(
    {Cell.LSTM: LstmEquations, Cell.GRU: GruEquations, Cell.RNN: RnnEquations}
)
_ENUMS = {"coupling": Coupling, "reset": ResetPlace, "update_keeps": UpdateKeeps}


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What is remembered of one recurrent layer.

    Attributes:
        name: its name in the first source.
        equations: of each direction.
        notes: the layer's notes.
    """

    name: str
    equations: tuple[Equations, ...]
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a file says about itself.

    Attributes:
        layers: the recurrent layers in order.
        proof: SHA-256 of what the conversion that wrote the file proved: the tensors' bytes and the
            equations; ``None`` where it was not proved.
        sealed: the names of those tensors.
    """

    layers: tuple[LayerRecord, ...] = ()
    proof: str | None = None
    sealed: tuple[str, ...] = ()

    def dumps(self) -> str:
        """As JSON text."""
        return json.dumps(
            {
                "schema": 1,
                "proof": self.proof,
                "sealed": list(self.sealed),
                "layers": [
                    {
                        "name": record.name,
                        "equations": [equations_to_json(e) for e in record.equations],
                        "notes": dict(record.notes),
                    }
                    for record in self.layers
                ],
            },
            sort_keys=True,
        )


def of_model(model: Model) -> Provenance:
    """What is worth remembering of a model."""
    return Provenance(
        tuple(
            LayerRecord(layer.name, tuple(d.equations for d in layer.directions), layer.notes)
            for layer in model.recurrent.values()
        )
    )


class Seal:
    """The digest of tensors and of the equations that run on them, taken while the tensors are written.

    A large tensor is digested beside what is done with it and with the next; it stays in memory until then.

    Attributes:
        tensors: the same tensors; reading one puts it under the seal.
    """

    def __init__(self, provenance: Provenance, tensors: Mapping[str, Lazy]) -> None:
        from hashlib import sha256  # only for a proof: its start-up is felt

        self._new = sha256
        self._open = replace(provenance, proof="0" * 64, sealed=tuple(sorted(tensors)))
        self._digests: dict[int, hashlib._Hash] = {}
        self._running: Thread | None = None
        self._sealed = tensors
        watched = {id(tensor): self._watched(tensor) for tensor in tensors.values()}
        self.tensors = MappingProxyType({name: watched[id(tensor)] for name, tensor in tensors.items()})

    def _watched(self, tensor: Lazy) -> Lazy:
        def load() -> Array:
            if tensor.nbytes > _TWO_AT_ONCE:
                self._finish()
            array = tensor.read()
            self._finish()
            digest = self._digests[id(tensor)] = self._new()
            data = little_endian(array).data
            if array.nbytes < _LARGE:
                digest.update(data)
            else:
                self._running = Thread(target=digest.update, args=(data,))
                self._running.start()
            return array

        return Lazy(tensor.shape, tensor.dtype, load)

    def _finish(self) -> None:
        if self._running is not None:
            self._running.join()
            self._running = None

    @property
    def open(self) -> Provenance:
        """What holds the place of ``closed`` in a file that is being written, in as many characters."""
        return self._open

    def closed(self) -> Provenance:
        """The provenance with its seal; tensors that nobody has read are read now."""
        digest = self._new()
        for record in self._open.layers:
            digest.update(
                json.dumps([equations_to_json(e) for e in record.equations], sort_keys=True).encode()
            )
        for name, tensor in sorted(self._sealed.items()):
            if id(tensor) not in self._digests:
                self.tensors[name].read()
            self._finish()
            digest.update(f"{name}|{tensor.dtype}|{tensor.shape}".encode())
            digest.update(self._digests[id(tensor)].digest())
        return replace(self._open, proof=digest.hexdigest())


_LARGE = 1 << 20
_TWO_AT_ONCE = 1 << 26
"""Bytes of a tensor from which on the one before it must be gone before it is read."""


def loads(text: object) -> Provenance | None:
    """The provenance in a metadata text; ``None`` where there is none or it cannot be made sense of."""
    if not isinstance(text, str):
        return None
    try:
        data = json.loads(text)
        if data.get("schema") != 1:
            return None
        return Provenance(
            tuple(
                LayerRecord(
                    str(record["name"]),
                    tuple(equations_from_json(e) for e in record["equations"]),
                    MappingProxyType({str(k): str(v) for k, v in record["notes"].items()}),
                )
                for record in data["layers"]
            ),
            data.get("proof"),
            tuple(str(name) for name in data.get("sealed", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def fitting(provenance: Provenance | None, layers: Mapping[str, RecurrentLayer]) -> Provenance | None:
    """The provenance in the order of the layers, if it speaks of as many of the same cells, else ``None``."""
    if provenance is None or len(provenance.layers) != len(layers):
        return None
    named = {spelled(record.name): record for record in provenance.layers}
    if set(named) == {spelled(name) for name in layers}:
        provenance = replace(provenance, layers=tuple(named[spelled(name)] for name in layers))
    for record, layer in zip(provenance.layers, layers.values(), strict=True):
        if len(record.equations) != len(layer.directions) or record.equations[0].cell is not layer.cell:
            return None
    return provenance


def equations_to_json(equations: Equations) -> dict[str, Any]:
    """Equations as plain JSON values."""
    result: dict[str, Any] = {"cell": str(equations.cell)}
    for option in fields(equations):
        value = getattr(equations, option.name)
        if isinstance(value, Activation):
            result[option.name] = [value.kind, value.alpha, value.beta]
        elif isinstance(value, Mapping):
            result[option.name] = {str(gate): number for gate, number in value.items()}
        else:
            result[option.name] = value
    return result


def equations_from_json(data: Mapping[str, Any]) -> Equations:
    """The inverse of ``equations_to_json``.

    Raises:
        ValueError, KeyError, TypeError: when the data are not such values.
    """
    kind = _KINDS[Cell(data["cell"])]
    values: dict[str, Any] = {}
    for option in fields(kind):
        value = data[option.name]
        if option.name.endswith("_activation"):
            values[option.name] = Activation(*value)
        elif option.name == "constant":
            values[option.name] = MappingProxyType({Gate(gate): float(n) for gate, n in value.items()})
        elif option.name in _ENUMS:
            values[option.name] = _ENUMS[option.name](value)
        else:
            values[option.name] = None if value is None else float(value)
    return kind(**values)
