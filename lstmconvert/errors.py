"""The errors that a conversion can end in, each with what a person needs to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ConversionError(Exception):
    """Base of every error that lstmconvert raises on purpose.

    The message is built here, once, from its pieces, so that every error reads alike:
    ``file: place: message; found ..., expected ...`` and then what to do.

    Attributes:
        message: what is wrong, in one sentence without a full stop.
        file: the file concerned, if there is one.
        place: the layer, tensor, key or line inside the file.
        found: what was met.
        expected: what should have been there.
        remedy: what the user can do.
    """

    exit_status: ClassVar[int] = 4

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        place: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.place = place
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        where = [part for part in (self.file, self.place) if part]
        text = ": ".join([*where, self.message])
        details = []
        if self.found is not None:
            details.append(f"found {self.found}")
        if self.expected is not None:
            details.append(f"expected {self.expected}")
        if details:
            text += "; " + ", ".join(details)
        if self.remedy:
            text += f"\n  {self.remedy}"
        return text

    def located(self, *, file: object = None, place: str | None = None) -> ConversionError:
        """Fill in the file or place where the raiser could not know it; returns ``self``."""
        if self.file is None and file is not None:
            self.file = str(file)
        if self.place is None:
            self.place = place
        return self


class BadFile(ConversionError):
    """The source is missing, truncated, unsafe, or not what it says it is."""


class UnsupportedSource(ConversionError):
    """The source is well formed, but holds something that this version cannot read."""


class AmbiguousSource(ConversionError):
    """The source does not say what its numbers mean; an option has to.

    ``remedy`` names the option and lists the choices.
    """

    exit_status = 2


class Usage(ConversionError):
    """The call or command line is wrong."""

    exit_status = 2


class NotRepresentable(ConversionError):
    """The target cannot express the source.

    Attributes:
        reasons: one sentence for every option that does not fit.
        alternatives: the frameworks that can hold it.
    """

    exit_status = 3

    def __init__(
        self,
        message: str,
        *,
        reasons: Sequence[str] = (),
        alternatives: Sequence[str] = (),
        file: object = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reasons = tuple(reasons)
        self.alternatives = tuple(alternatives)
        text = message
        if self.reasons:
            text += ": " + "; ".join(self.reasons)
        if remedy is None and self.alternatives:
            remedy = "Targets that can hold it: " + ", ".join(self.alternatives) + "."
        super().__init__(text, file=file, place=place, remedy=remedy)


class VerificationFailed(ConversionError):
    """The written file does not compute what the source computes; nothing was left behind."""

    exit_status = 1
