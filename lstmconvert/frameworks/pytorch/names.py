"""Names in generated source: whatever a file calls its layers, they become plain identifiers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

LONGEST = 32
"""Most characters that are kept of a name."""

_ATTRIBUTES = """
T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double
dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
load load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters
register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
to_empty train training type xpu zero_grad
"""
RESERVED_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
"""What a ``torch.nn.Module`` or the generated class has already."""

_VARIABLES = """
self cls torch nn F Tensor len range int float tuple list isinstance str super path model zip reversed
load_file pack_padded_sequence pad_packed_sequence Model
"""
RESERVED_VARIABLES = frozenset(_VARIABLES.split())
"""What the generated functions use."""


def identifier(text: str, *, otherwise: str = "layer") -> str:
    """``text`` as an identifier of ASCII letters, digits and underscores, at most ``LONGEST`` long."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", text[: 4 * LONGEST]).strip("_")[:LONGEST].rstrip("_")
    if not plain:
        return otherwise
    if plain[0].isdigit():
        plain = f"{otherwise}_{plain}"[:LONGEST]
    return f"{plain}_" if keyword.iskeyword(plain) or keyword.issoftkeyword(plain) else plain


class Names:
    """Identifiers that are given out once each."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """``wanted``, an identifier, with a number behind it where it is taken."""
        if wanted in self._taken:
            number = self._numbers.get(wanted, 1) + 1  # all smaller ones are taken
            while f"{wanted}_{number}" in self._taken:
                number += 1
            self._numbers[wanted] = number
            wanted = f"{wanted}_{number}"
        self._taken.add(wanted)
        return wanted

    def give_back(self, name: str) -> None:
        """Let ``name`` be given out again."""
        self._taken.discard(name)
        self._numbers.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._taken
