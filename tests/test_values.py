"""The values' ``dataclass`` behaves as that of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Ours:
    KIND: ClassVar[str] = "kind"
    a: int
    b: tuple[int, ...] = ()
    c: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    KIND: ClassVar[str] = "kind"
    a: int
    b: tuple[int, ...] = ()
    c: list[int] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Child(Ours):
    d: str = "d"


@dataclass(frozen=True, slots=True, eq=False)
class Identical:
    a: int


@dataclass(slots=True)
class Changing:
    a: int = 1


def test_values_are_those_of_the_standard_library() -> None:
    ours, theirs = Ours(1, (2,)), Theirs(1, (2,))
    assert repr(ours).replace("Ours", "Theirs") == repr(theirs)
    assert [f.name for f in dataclasses.fields(Ours)] == [f.name for f in dataclasses.fields(Theirs)]
    assert Ours.__slots__ == Theirs.__slots__  # type: ignore[attr-defined]
    assert ours == Ours(1, (2,)) != Ours(1, (3,))
    assert ours != theirs
    assert Child(1) != Ours(1)
    assert Child(1, d="e") == Child(1, (), [], "e")
    assert hash(Ours(1, (), ())) == hash(Theirs(1, (), ()))  # type: ignore[arg-type]
    assert dataclasses.replace(ours, a=5) == Ours(5, (2,))
    assert Ours(1).c is not Ours(1).c
    for again in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert again == ours
    match Child(3, (4,)):
        case Child(a, (b,)):
            assert (a, b) == (3, 4)


@pytest.mark.parametrize("value", [Ours(1), Child(1), Identical(1)])
def test_a_frozen_value_stays_what_it_is(value: Any) -> None:
    for name in ("a", "other"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(value, name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.a
    assert value.a == 1


def test_identity_and_change_where_they_are_asked_for() -> None:
    one = Identical(1)
    assert one == one
    assert one != Identical(1)
    assert len({one, Identical(1)}) == 2
    changing = Changing()
    changing.a = 2
    assert changing == Changing(2)
    with pytest.raises(TypeError):
        hash(changing)
    with pytest.raises(TypeError, match="slots"):
        dataclass(frozen=True)(Changing)
