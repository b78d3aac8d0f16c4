"""A small layer in the place of a large one, for a run that shows how a model is wired.

Where two layers are known to have the same bits in the same equations, running them shows nothing more,
and takes longer than a conversion. What is left to show is what stands around them: which values go in,
in which order of time, under which mask, from which states, and where the results go. For that both
layers are replaced by one and the same small layer of the same cell and equations, between random matrices
from and to the large sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert import equations
from lstmconvert.canonical import RecurrentDirection, RecurrentLayer, Weights
from lstmconvert.equations import State
from lstmconvert.gates import PART_AXES, Cell
from lstmconvert.sampling import Sampler
from lstmconvert.tensors import Array, Lazy

_SIZE, _PROJECTED = 12, 7


class Sketch:
    """What takes the place of a layer, here and in the other model.

    Args:
        layer: the layer in one of the two models.
        seed: of the random numbers; another one for every layer.
    """

    def __init__(self, layer: RecurrentLayer, seed: int) -> None:
        random = Sampler(seed)
        recurrent = _SIZE if layer.projected_size is None else _PROJECTED
        sizes = {"input": _SIZE, "hidden": _SIZE, "recurrent": recurrent, "projected": recurrent}

        def block(axes: tuple[str, ...]) -> Lazy:
            return Lazy.of(random.normal([sizes[axis] for axis in axes]).astype(np.float32))

        def shrunk(direction: RecurrentDirection) -> RecurrentDirection:
            blocks = {key: block(PART_AXES[key[0]]) for key in direction.weights}
            return replace(direction, weights=Weights(layer.cell, blocks))

        def matrix(rows: int, columns: int) -> Array:
            values: Array = random.normal((rows, columns)) / np.sqrt(rows)
            return values

        self._small = layer.mapped(shrunk)
        self._input = matrix(layer.input_size, _SIZE)
        states = [(layer.recurrent_size, recurrent)]
        if layer.cell is Cell.LSTM:
            states.append((layer.hidden_size, _SIZE))
        self._into = [matrix(large, small) for large, small in states]
        self._out_of = [[matrix(small, large) for large, small in states] for _ in layer.directions]

    def run_directions(
        self, layer: RecurrentLayer, x: Array, *, mask: Any = None, initial_state: Any = None
    ) -> tuple[list[Array], list[State]]:
        """In the place of ``equations.run_directions``; of ``layer`` only its behaviour over time counts."""
        small = replace(self._small, sequence=layer.sequence)
        if initial_state is not None:
            initial_state = tuple(s @ into for s, into in zip(initial_state, self._into, strict=True))
        outputs, states = equations.run_directions(
            small, x @ self._input, mask=mask, initial_state=initial_state
        )
        wide = [(o @ m[0]).astype(x.dtype) for o, m in zip(outputs, self._out_of, strict=True)]
        finals = [
            tuple((part @ m).astype(x.dtype) for part, m in zip(state, matrices, strict=True))
            for state, matrices in zip(states, self._out_of, strict=True)
        ]
        return wide, finals
