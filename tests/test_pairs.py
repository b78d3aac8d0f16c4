"""The table of pairs says what conversions do: its cells against what ``convert`` reports."""

from __future__ import annotations

from pathlib import Path

import pytest

import lstmconvert as lc
from lstmconvert import registry
from lstmconvert.canonical import RnnEquations
from lstmconvert.model import Model
from lstmconvert.pairs import Kind, Verdict, outcome, sample
from tests.loading import script

SOURCES = ("chainer", "flax", "haiku", "mlx", "mxnet", "paddle", "pytorch", "sonnet")
ONLY_READ = {("chainer", Kind.GRU_AFTER), ("pytorch", Kind.GRU_BEFORE)}
TARGETS = (
    "dynet",
    "equinox",
    "flax_nnx",
    "haiku",
    "keras",
    "matlab",
    "onnx",
    "paddle",
    "pytorch",
    "tinygrad",
)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_said_of_a_pair_is_what_a_conversion_does(tmp_path: Path, source: str) -> None:
    seen = set()
    for kind in Kind:
        layer = sample(registry.mapping_of(source), kind)
        if layer is None or (source, kind) in ONLY_READ:
            continue
        path = tmp_path / f"{kind.name}{registry.suffix_of(source)}"
        lc.write(Model({layer.name: layer}), path, to=source)
        told = (
            {"activation": layer.equations.hidden_activation.kind}
            if isinstance(layer.equations, RnnEquations)
            else {}
        )
        for target in TARGETS:
            if target == source:
                continue
            said = outcome(registry.mapping_of(source), registry.mapping_of(target), kind)
            assert said is not None
            out = tmp_path / f"{kind.name}-{target}{registry.suffix_of(target)}"
            place = f"{source} to {target}, {kind}"
            seen.add(said.verdict)
            if said.verdict is Verdict.REFUSED:
                with pytest.raises(lc.NotRepresentable) as error:
                    lc.convert(path, out, framework=source, to=target, **told)
                assert said.reasons == tuple(error.value.reasons), place
                continue
            result = lc.convert(path, out, framework=source, to=target, **told)
            assert result.proof is not None
            rounded = tuple(dict.fromkeys(step.description for step in result.rewrites if not step.exact))
            assert said.reasons == rounded, place
            error_found = max(layer.max_abs_error for layer in result.proof.layers)  # in float64
            assert error_found < 1e-12 if said.verdict is Verdict.EXACT else 1e-10 < error_found < 1e-5, place
    assert len(seen) >= 2


def test_known_cells_of_the_table() -> None:
    """What the mathematics says, whatever the files say."""

    def verdict(source: str, target: str, kind: Kind) -> Verdict:
        found = outcome(registry.mapping_of(source), registry.mapping_of(target), kind)
        assert found is not None
        return found.verdict

    assert verdict("pytorch", "onnx", Kind.LSTM) is Verdict.EXACT
    assert verdict("keras", "pytorch", Kind.LSTM) is Verdict.EXACT
    assert verdict("pytorch", "keras", Kind.LSTM) is Verdict.ROUNDS  # two biases become one
    assert verdict("pytorch", "haiku", Kind.GRU_AFTER) is Verdict.REFUSED
    assert verdict("sonnet", "haiku", Kind.GRU_BEFORE) is Verdict.EXACT
    assert verdict("flax", "flax_nnx", Kind.GRU_AFTER) is Verdict.REFUSED
    assert outcome(registry.mapping_of("tinygrad"), registry.mapping_of("onnx"), Kind.RNN) is None


def test_the_page_has_a_sign_for_every_kind_of_every_pair() -> None:
    tables = script("tables")
    lines = tables.pairs().splitlines()
    (head,) = [line for line in lines if line.startswith("| From, to |")]
    names = head.strip("| ").split(" | ")[1:]
    (row,) = [line for line in lines if line.startswith("| pytorch |")]
    signs = dict(zip(names, (cell.strip(" `") for cell in row.split("|")[2:-1]), strict=True))
    assert signs["onnx"] == "===="
    assert signs["keras"] == "~=~~"
    assert signs["pytorch"] == ""
    assert all(
        len(text) == 4 and set(text) <= set("=~x.") for name, text in signs.items() if name != "pytorch"
    )
