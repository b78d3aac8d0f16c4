"""Lines of Python as ``ruff format`` would leave them, for the statements that are generated here.

These are calls, assignments of calls, and signatures; other statements are kept short enough to need no care.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

WIDTH = 88
"""ruff's line length."""
_INDENT = "    "
_OPENING, _CLOSING = "([{", ")]}"
_NAMED = re.compile(r"\w+=|for |\*")
"""What begins an argument that is no arithmetic."""


def number(value: float) -> str:
    """A number as Python source."""
    if math.isfinite(value):
        return repr(float(value))
    return f'float("{value}")'


def call(function: str, *arguments: str, **named: str) -> str:
    """A call as source."""
    return f"{function}({', '.join([*arguments, *(f'{name}={value}' for name, value in named.items())])})"


def pair(values: Sequence[int]) -> str:
    """Sizes as torch's layers take them: one number where all are equal, else a tuple."""
    if len(set(values)) == 1:
        return str(values[0])
    return f"({', '.join(map(str, values))})"


def text(value: str, *, longest: int = 60) -> str:
    """A text from a file, for comments and docstrings: printable ASCII without quotes or backslashes."""
    plain = re.sub(r"[^ !#-\[\]-~]", "?", value)
    return plain if len(plain) <= longest else plain[: longest - 3] + "..."


def indented(lines: Iterable[str]) -> list[str]:
    """Lines moved to the right; empty ones stay empty."""
    return [_INDENT + line if line else "" for line in lines]


def rendered(lines: Iterable[str]) -> list[str]:
    """Lines with those broken at their last brackets that are too long."""
    return [part for line in lines for part in _broken(line.lstrip(" "), _depth(line), "")]


def _depth(line: str) -> int:
    return (len(line) - len(line.lstrip(" "))) // len(_INDENT)


def is_sum(code: str) -> bool:
    """Whether an expression is arithmetic that needs brackets to be an operand."""
    depth = 0
    for _, character in _outside_strings(code):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == " " and depth == 0:
            return True
    return False


def bracketed(code: str) -> str:
    """An expression as an operand."""
    return f"({code})" if is_sum(code) else code


def without_brackets(code: str) -> str:
    """An expression without the brackets around all of it."""
    return code[1:-1] if code.startswith("(") and _last_brackets(code) == (0, len(code) - 1) else code


def too_long(code: str, depth: int) -> tuple[int, int] | None:
    """Which part of an assignment should get a name of its own, so that no line is too long; or none.

    That is what a method is called on, or the longest operand, where it is more than a name.
    """
    if len(_INDENT) * depth + len(code) <= WIDTH or " = " not in code:
        return None
    start = code.index(" = ") + 3
    expression = code[start:]
    if is_sum(expression):
        operands = [
            span
            for span in _operands(expression)
            if not expression[slice(*span)].replace(".", "").isidentifier()
        ]
        found = max(operands, key=lambda span: span[1] - span[0], default=None)
    else:
        bounds = _last_brackets(expression)
        method = -1 if bounds is None else expression[: bounds[0]].rfind(".")
        found = (0, method) if expression[: max(method, 0)].endswith(")") else None
    return None if found is None else (start + found[0], start + found[1])


def _operands(code: str) -> list[tuple[int, int]]:
    """Where the operands of arithmetic begin and end."""
    spans, depth, start = [], 0, 0
    for place, character in _outside_strings(code):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == " " and depth == 0:
            spans.append((start, place))
            start = place + 1
    spans.append((start, len(code)))
    return [span for span in spans if any(c.isalnum() for c in code[slice(*span)])]


def _broken(code: str, depth: int, tail: str) -> list[str]:
    line = f"{_INDENT * depth}{code}{tail}"
    if len(line) <= WIDTH:
        return [line]
    values = code.removeprefix("return ")
    several = values != code and len(_items(values)) > 1
    if several:
        code = f"return ({values})"
    target, equals, expression = code.partition(" = ")
    if equals and "(" not in target and is_sum(expression):
        inner = f"{_INDENT * (depth + 1)}{expression}"
        operands = [inner] if len(inner) <= WIDTH else _one_each(expression, depth + 1)
        return [f"{_INDENT * depth}{target} = (", *operands, f"{_INDENT * depth})"]
    bounds = _last_brackets(code)
    if bounds is None:
        return [line]
    opening, closing = bounds
    head, body, rest = code[: opening + 1], code[opening + 1 : closing], code[closing:]
    inner = f"{_INDENT * (depth + 1)}{body}"
    items = _items(body)
    if len(inner) <= WIDTH and not several:
        lines = [inner]
    elif len(items) == 1 and is_sum(body) and not _NAMED.match(body):
        lines = [part for one in _one_each(body, 0) for part in _broken(one, depth + 1, "")]
    elif len(items) == 1:
        lines = _broken(body, depth + 1, "")
    else:
        lines = [broken for item in items for broken in _broken(item, depth + 1, ",")]
    return [f"{_INDENT * depth}{head}", *lines, f"{_INDENT * depth}{rest}{tail}"]


def _one_each(expression: str, depth: int) -> list[str]:
    """Arithmetic of one kind with each operand on a line of its own."""
    spans = _operands(expression)
    starts = [0, *(end + 1 for _, end in spans[:-1])]
    return [f"{_INDENT * depth}{expression[a:b]}" for a, (_, b) in zip(starts, spans, strict=True)]


def _last_brackets(code: str) -> tuple[int, int] | None:
    """Where the last outermost brackets with something inside open and close; of a ``def`` the first."""
    found, stack = None, []
    for place, character in _outside_strings(code):
        if character in _OPENING:
            stack.append(place)
        elif character in _CLOSING:
            opening = stack.pop()
            if not stack and code[opening + 1 : place].strip():
                found = opening, place
                if code.startswith("def "):
                    break
    return found


def _items(body: str) -> list[str]:
    """What the commas separate that are inside no further brackets."""
    items, depth, start = [], 0, 0
    for place, character in _outside_strings(body):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            items.append(body[start:place].strip())
            start = place + 1
    return [*items, body[start:].strip()]


def _outside_strings(code: str) -> Iterable[tuple[int, str]]:
    inside = False
    for place, character in enumerate(code):
        if character == '"':
            inside = not inside
        elif not inside:
            yield place, character
