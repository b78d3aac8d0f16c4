"""What a written file says about where it came from: a small JSON text in its metadata.

Nothing in it decides what a file's numbers mean where the file itself says so; it lets a later reader
ask less (the activation of a state_dict's RNN) and undo a rounding rewrite (two biases that were
summed, kept with a digest of the sum).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

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
from lstmconvert.parallel import ahead
from lstmconvert.pieces import cuts, opened, ranged
from lstmconvert.tensors import Array, Lazy, Ranges, little_endian, row_major
from lstmconvert.values import dataclass

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
        proof: digest of what the conversion that wrote the file proved (see ``Seal``); ``None`` where it was
            not proved.
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

    A tensor's digest is that of the digests of its ``pieces``, which are worked out where these are made.
    It is XXH3 of 128 bits, ten times as fast as SHA-256: it tells whether a file is still what was proved,
    and no digest that stands in the file itself could hold off somebody who changes both.

    Attributes:
        tensors: the same tensors; reading one puts it under the seal.
    """

    def __init__(self, provenance: Provenance, tensors: Mapping[str, Lazy]) -> None:
        from xxhash import xxh3_128  # only for a proof

        self._new = xxh3_128
        self._open = replace(provenance, proof=xxh3_128().hexdigest(), sealed=tuple(sorted(tensors)))
        self._digests: dict[int, dict[tuple[int, int], bytes]] = {}
        self._sealed = tensors
        watched = {id(tensor): self._watched(tensor) for tensor in tensors.values()}
        self.tensors = MappingProxyType({name: watched[id(tensor)] for name, tensor in tensors.items()})

    def _watched(self, tensor: Lazy) -> Lazy:
        digests = self._digests.setdefault(id(tensor), {})

        def load() -> Array:
            array = tensor.read()
            self._add(digests, tensor, partial(ranged, row_major(array)))
            return array

        def ranges() -> Ranges | None:
            give = tensor.ranges()
            if give is None:
                return None
            ends = set(cuts(tensor))

            def sealed(start: int, stop: int) -> Array:
                elements = give(start, stop)
                if (start, stop) in ends:
                    digests[start, stop] = self._digest(elements)
                return elements

            return sealed

        return Lazy(tensor.shape, tensor.dtype, load, ranges)

    def _add(self, digests: dict[tuple[int, int], bytes], tensor: Lazy, give: Ranges) -> None:
        """Digest the pieces that were not digested yet."""
        missing = [ends for ends in cuts(tensor) if ends not in digests]
        found = ahead(lambda n: self._digest(give(*missing[n])), len(missing))
        digests.update(zip(missing, found, strict=True))

    def _digest(self, elements: Array) -> bytes:
        return self._new(little_endian(elements).data).digest()

    @property
    def open(self) -> Provenance:
        """What holds the place of ``closed`` in a file that is being written, in as many characters."""
        return self._open

    def closed(self) -> Provenance:
        """The provenance with its seal; what nobody has read of the tensors is read now."""
        digest = self._new()
        for record in self._open.layers:
            digest.update(
                json.dumps([equations_to_json(e) for e in record.equations], sort_keys=True).encode()
            )
        for name, tensor in sorted(self._sealed.items()):
            digests, ends = self._digests[id(tensor)], cuts(tensor)
            if any(each not in digests for each in ends):
                self._add(digests, tensor, opened(tensor))
            digest.update(f"{name}|{tensor.dtype}|{tensor.shape}".encode())
            digest.update(self._new(b"".join(digests[each] for each in ends)).digest())
        return replace(self._open, proof=digest.hexdigest())


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
