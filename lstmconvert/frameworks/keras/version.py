"""Which Keras wrote a file, and what its defaults and equal-named functions meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lstmconvert.errors import Usage
from lstmconvert.options import ReadOptions
from lstmconvert.values import dataclass

_HARD_SIGMOID_UNTIL = (2, 3)


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Keras.

    Attributes:
        text: as the file or the user spells it (``"2.2.4-tf"``).
        number: its numbers.
        generation: 1, 2 or 3: Keras 1, Keras 2 (also tf.keras and tf_keras), Keras 3.
        backend: ``tensorflow``, ``torch``, ``jax``, ``theano``, ``cntk``, or ``""``.
    """

    text: str
    number: tuple[int, ...]
    generation: int
    backend: str = ""

    @property
    def is_tensorflow_keras(self) -> bool:
        """Whether this is the Keras inside TensorFlow (or tf_keras), not the multi-backend one."""
        return self.generation == 2 and ("tf" in self.text or self.number[:2] >= (2, 5))

    @property
    def default_recurrent_activation(self) -> str:
        """What LSTM and GRU take for their gates when nothing is said.

        Multi-backend Keras before 2.3 took hard_sigmoid, everything since (and tf.keras 2) sigmoid.
        """
        old = self.generation < 3 and not self.is_tensorflow_keras and self.number[:2] < _HARD_SIGMOID_UNTIL
        return "hard_sigmoid" if old else "sigmoid"


def parse(text: str, backend: str = "") -> Release | None:
    """A release from its text, or ``None`` where that is no version number."""
    match = re.match(r"\s*v?(\d+)((?:\.\d+)*)", text)
    if match is None:
        return None
    number = tuple(int(part) for part in (match[1] + match[2]).split("."))
    generation = number[0] if number[0] in (1, 2) else 3
    if number[0] < 1:
        generation = 1
    if len(number) == 1:
        number = (*number, 99)  # "2" means the last of them
    return Release(text.strip(), number, generation, backend)


def release_of(metadata: Mapping[str, Any], options: ReadOptions) -> Release | None:
    """The release that decides how a file is read; ``None`` where neither file nor option says it.

    Raises:
        Usage: when the option contradicts the file, or is no version.
    """
    backend = str(metadata.get("backend") or "")
    stated = metadata.get("keras_version")
    from_file = parse(str(stated), backend) if stated else None
    given = None
    if options.keras_version is not None:
        given = parse(options.keras_version, backend)
        if given is None:
            raise Usage(
                "--keras-version is not a version",
                found=repr(options.keras_version),
                expected="such as 2.2.4 or 3",
            )
    if from_file is None and given is None and metadata.get("form") == "whole_model":
        # Keras 1 did not write its version until late; every later whole-model file has one.
        return parse(_version_by_config(metadata), backend)
    if from_file is not None and given is not None and not _agree(from_file, given):
        raise Usage(
            "--keras-version contradicts the file",
            found=given.text,
            expected=f"{from_file.text}, as the file says",
            remedy="Leave --keras-version out.",
        )
    return from_file if from_file is not None else given


def _agree(stated: Release, given: Release) -> bool:
    if stated.generation != given.generation:
        return False
    return stated.default_recurrent_activation == given.default_recurrent_activation


def _version_by_config(metadata: Mapping[str, Any]) -> str:
    text = str(metadata.get("model_config"))
    if "'registered_name'" in text or "'keras_history'" in text:
        return "3"
    return "2.0" if "'recurrent_activation'" in text or "'kernel_initializer'" in text else "1.0"
