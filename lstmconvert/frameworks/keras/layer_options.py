"""The options of one layer, read so that none that matters is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.keras.config import LayerSpec

_MISSING = object()

# Options that change training, speed or the shape of the input, and never what is computed.
_WITHOUT_EFFECT = frozenset(
    {
        "autocast", "batch_input_shape", "batch_shape", "build_config", "cell_dropout", "consume_less",
        "flash_attention", "fused", "implementation", "input_dim", "input_dtype", "input_length",
        "input_shape", "key_shape", "lora_alpha", "momentum", "name", "noise_shape", "optional",
        "query_shape", "ragged", "registered_name", "renorm_clipping", "renorm_momentum", "seed",
        "shared_object_id", "synchronized", "trainable", "dtype", "unit_forget_bias", "unroll", "use_cudnn",
        "value_shape", "weights", "experimental_autocast", "init", "inner_init", "supports_masking",
        "batch_size",
    }
)  # fmt: skip
_ENDINGS_WITHOUT_EFFECT = ("_initializer", "_regularizer", "_constraint", "_init")


class LayerOptions:
    """Takes options one by one; ``finish`` refuses what was not taken and could change a result.

    Args:
        spec: the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self.place = f"layer {spec.name!r} ({spec.class_name})"
        self._left = dict(spec.config)

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The value of an option, or ``default`` where it is absent.

        Raises:
            BadFile: when it is absent and has no default.
        """
        value = self._left.pop(name, default)
        if value is _MISSING:
            raise BadFile(f"the option {name!r} is missing", place=self.place)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A yes or no."""
        value = self.take(name, default)
        return default if value is None else bool(value)

    def whole(self, name: str, default: Any = _MISSING) -> int:
        """A whole number, also where it is written as a list of one."""
        return self.wholes(name, 1, default)[0]

    def wholes(self, name: str, count: int, default: Any = _MISSING) -> tuple[int, ...]:
        """``count`` whole numbers; a single one counts for all."""
        value = self.take(name, default)
        if value is None and default is not _MISSING:
            value = default
        items = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if len(items) != count or not all(isinstance(n, (int, float)) and int(n) == n for n in items):
            raise BadFile(
                f"the option {name!r} is not what Keras writes",
                place=self.place,
                found=repr(value),
                expected=f"{count} whole number{'s' if count > 1 else ''}",
            )
        return tuple(int(n) for n in items)

    def pairs(self, name: str, count: int, default: Any = _MISSING) -> tuple[tuple[int, int], ...]:
        """(before, after) for each of ``count`` axes; a number stands for both."""
        value = self.take(name, default)
        items = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if count == 1 and len(items) == 2:
            items = [items]
        pairs = [tuple(i) if isinstance(i, (list, tuple)) else (i, i) for i in items]
        if len(pairs) != count or not all(len(p) == 2 and all(isinstance(n, int) for n in p) for p in pairs):
            raise BadFile(
                f"the option {name!r} is not what Keras writes", place=self.place, found=repr(value)
            )
        return tuple((int(a), int(b)) for a, b in pairs)

    def refuse_unless(self, name: str, *allowed: Any, why: str = "") -> None:
        """Take an option of which only some values can be read.

        Raises:
            UnsupportedSource: naming it.
        """
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise UnsupportedSource(
                f"{name}={value!r} is not supported{': ' + why if why else ''}",
                place=self.place,
                expected=" or ".join(map(repr, allowed)),
            )

    def channels_last(self) -> None:
        """Refuse channels_first: no target here and few runtimes have it."""
        self.refuse_unless("data_format", "channels_last", None, why="only channels_last is")

    def finish(self) -> None:
        """Refuse what was not taken, unless it is empty or has no effect.

        Raises:
            UnsupportedSource: naming the option.
        """
        for name, value in self._left.items():
            if name in _WITHOUT_EFFECT or name.endswith(_ENDINGS_WITHOUT_EFFECT):
                continue
            if value is None or value is False or value in ([], {}, ""):
                continue
            raise UnsupportedSource(
                f"the option {name}={_short(value)} of this layer is not known to this version",
                place=self.place,
                remedy="It might change what the layer computes, so it is not ignored.",
            )


def _short(value: Any) -> str:
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else text[:57] + "..."
