"""identify on the layers of the open corpus, stripped of their names, and on a dump with home-made names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import layout, mapping, opening
from lstmconvert.options import ReadOptions
from tests.corpus import corpus_file
from tests.test_acceptance import beatnet, chars2vec_layer, silero_cell

pytestmark = pytest.mark.corpus
Array = np.ndarray[Any, Any]

G2P = Path(__file__).parent.parent / "data" / "g2p_en.toml"
TOLD = {"chars2vec_eng50": ReadOptions(keras_version="2.2"), "g2p_en": ReadOptions(mapping=G2P)}
NAMED = {"keras": "keras", "pytorch": "pytorch", "onnx": "onnx", "g2p_en": "pytorch"}
LAYERS = {
    "shakkala_simple_gru": 1, "dgaintel": 1, "chars2vec_eng50": 2, "beatnet": 2, "silero_vad_jit": 2,
    "silero_vad_onnx": 2, "silero_vad_safetensors": 1, "silero_vad_sequence": 1, "silero_vad_op15": 1,
    "silero_vad_half": 1, "silero_vad_ifless": 2, "nsnet2_gru": 2, "g2p_en": 2,
}  # fmt: skip


def stripped(source: opening.Source, name: str) -> list[Array]:
    """A layer's arrays as its file has them, or, where that computes them, as its framework lays them out."""
    layer = source.model.recurrent[name]
    if all(tensor in source.archive.tensors for tensor in layer.origin):
        return [source.archive.tensors[tensor].read() for tensor in layer.origin]
    (direction,) = layer.directions
    described = mapping.load(source.framework).layouts[str(layer.cell)]
    return [t.read() for t in layout.pack(described, {direction.direction: direction.weights}).values()]


@pytest.mark.parametrize(("file", "number"), [(f, n) for f, count in LAYERS.items() for n in range(count)])
def test_every_layer_of_the_corpus_is_found(file: str, number: int) -> None:
    source = opening.open_source(corpus_file(file), TOLD.get(file, ReadOptions()))
    name = list(source.model.recurrent)[number]
    layer = source.model.recurrent[name]
    x = np.random.default_rng(number).standard_normal((2, 6, layer.input_size)).astype(np.float32)
    arrays = stripped(source, name)
    found = lc.identify(arrays, x, layer.run(x)[0])
    assert found.certain, found.doubts
    assert found.gates == tuple(map(str, layer.stored_gates))
    assert found.layers[0].layer.equations == layer.equations
    # An ONNX file may compute a node's tensors from such as torch has.
    as_torch = file == "silero_vad_ifless"
    assert found.mapping == ("pytorch" if as_torch else NAMED[source.framework])
    alone = lc.identify(arrays)
    assert alone.cell == layer.cell
    assert alone.gates == found.gates
    assert not alone.certain


def test_samples_of_the_runtimes_themselves() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 7, 59)).astype(np.float32)
    source = opening.open_source(corpus_file("chars2vec_eng50"), TOLD["chars2vec_eng50"])
    found = lc.identify(stripped(source, "lstm_1"), x, chars2vec_layer("lstm_1", x))
    assert found.certain
    assert found.as_json()["layers"][0]["activations"]["gate"] == "hard_sigmoid(0.2, 0.5)"

    x = rng.standard_normal((2, 6, 150)).astype(np.float32)
    source = opening.open_source(corpus_file("beatnet"), ReadOptions())
    arrays = [array for name in source.model.recurrent for array in stripped(source, name)]
    both = lc.identify(arrays, x, beatnet(x))
    assert both.certain
    assert [own.layer.origin[0] for own in both.layers] == ["arr_0", "arr_4"]

    x = rng.standard_normal((2, 6, 128)).astype(np.float32)
    source = opening.open_source(corpus_file("silero_vad_jit"), ReadOptions())
    found = lc.identify(stripped(source, next(iter(source.model.recurrent))), x, silero_cell(x))
    assert found.certain
    assert found.mapping == "pytorch"


@pytest.mark.parametrize("part", ["enc", "dec"])
def test_a_dump_of_a_whole_network_and_a_sample_of_one_layer(part: str, tmp_path: Path) -> None:
    import torch

    held = np.load(corpus_file("g2p_en"))
    gru = torch.nn.GRU(256, 256, batch_first=True)
    own = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    gru.load_state_dict({theirs: torch.from_numpy(held[f"{part}_{ours}"]) for theirs, ours in own.items()})
    x = np.random.default_rng(11).normal(size=(2, 5, 256)).astype(np.float32)
    with torch.no_grad():
        y = gru(torch.from_numpy(x))[0].numpy()
    described = tmp_path / "found.toml"
    found = lc.identify(corpus_file("g2p_en"), x, y, write_mapping=described)
    assert found.certain, found.doubts
    assert found.gates == ("reset", "update", "candidate")
    assert found.layers[0].layer.origin == tuple(
        f"{part}_{name}" for name in ("w_ih", "w_hh", "b_ih", "b_hh")
    )
    (layer,) = lc.read(corpus_file("g2p_en"), mapping=described).recurrent.values()
    np.testing.assert_allclose(layer.run(x)[0], y, rtol=0, atol=1e-5)
