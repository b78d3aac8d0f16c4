"""Outputs appear whole or not at all, and nothing is left behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lstmconvert import atomic
from lstmconvert.errors import Usage


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_outputs_appear_when_the_block_ends(tmp_path: Path) -> None:
    target, module = tmp_path / "model.safetensors", tmp_path / "model.py"
    with atomic.replacing(target, module, overwrite=False) as places:
        assert [place.name for place in places] == ["model.safetensors", "model.py"]
        for place in places:
            place.write_text(place.name)
        assert not target.exists()
        assert not module.exists()
    assert names(tmp_path) == ["model.py", "model.safetensors"]
    assert target.read_text() == "model.safetensors"


def test_what_is_written_beside_moves_along(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "model.onnx", overwrite=False) as (place,):
        place.write_text("graph")
        place.with_name("model.onnx.data").write_text("numbers")
    assert names(tmp_path) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "old"
    target.write_text("old")

    def convert() -> None:
        with atomic.replacing(target, tmp_path / "new", overwrite=True) as places:
            for place in places:
                place.write_text("half")
            raise error

    with pytest.raises(error):
        convert()
    assert names(tmp_path) == ["old"]
    assert target.read_text() == "old"


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("old")
    with (
        pytest.raises(Usage, match="exists already"),
        atomic.replacing(tmp_path / "other", target, overwrite=False),
    ):
        pytest.fail("the block must not begin")
    assert names(tmp_path) == ["model.pt"]
    with atomic.replacing(target, overwrite=True) as (place,):
        place.write_text("new")
    assert target.read_text() == "new"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "model.pt", tmp_path / "model.py"

    def convert() -> None:
        with atomic.replacing(first, second, overwrite=False) as places:
            for place in places:
                place.write_text("mine")
            first.write_text("somebody else's")

    with pytest.raises(Usage, match="exists already"):
        convert()
    assert names(tmp_path) == ["model.pt"]
    assert first.read_text() == "somebody else's"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stop_at", [0, 1])
@pytest.mark.parametrize("after", [False, True])
def test_an_interruption_between_two_moves_undoes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, stop_at: int, after: bool
) -> None:
    first, second = tmp_path / "model.pt", tmp_path / "model.py"
    if overwrite:
        second.write_text("old")
    before = names(tmp_path)
    real, count = atomic._move, iter(range(2))

    def stopping(written: Path, final: Path, *, overwrite: bool) -> None:
        stop = next(count) == stop_at
        if stop and not after:
            raise KeyboardInterrupt
        real(written, final, overwrite=overwrite)
        if stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_move", stopping)

    def convert() -> None:
        with atomic.replacing(first, second, overwrite=overwrite) as places:
            for place in places:
                place.write_text("new")

    with pytest.raises(KeyboardInterrupt):
        convert()
    assert names(tmp_path) == before
    if overwrite:
        assert second.read_text() == "old"


def test_the_first_target_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = atomic._move

    def noting(written: Path, final: Path, *, overwrite: bool) -> None:
        order.append(final.name)
        real(written, final, overwrite=overwrite)

    monkeypatch.setattr(atomic, "_move", noting)
    with atomic.replacing(tmp_path / "b.pt", tmp_path / "a.py", tmp_path / "c", overwrite=False) as places:
        for place in places:
            place.write_text("")
        places[0].with_name("d.data").write_text("")
    assert order[-1] == "b.pt"
    assert set(order) == {"a.py", "b.pt", "c", "d.data"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_source_is_not_overwritten(tmp_path: Path, overwrite: bool) -> None:
    source = tmp_path / "model.pt"
    source.write_text("weights")
    link = tmp_path / "link.pt"
    link.symlink_to(source)
    hard = tmp_path / "hard.pt"
    hard.hardlink_to(source)
    for target in (source, link, hard, tmp_path / "." / "model.pt"):
        with (
            pytest.raises(Usage, match="source itself"),
            atomic.replacing(target, overwrite=overwrite, sources=(source,)),
        ):
            pytest.fail("the block must not begin")
    assert source.read_text() == "weights"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.pt"
    real.write_text("old")
    link = tmp_path / "link.pt"
    link.symlink_to(real)
    with atomic.replacing(link, overwrite=True) as (place,):
        place.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target, message in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "missing" / "a.pt", "does not exist"),
        (tmp_path / "pipe", "not a plain file"),
    ):
        with pytest.raises(Usage, match=message), atomic.replacing(target, overwrite=True):
            pytest.fail("the block must not begin")
    with (
        pytest.raises(Usage, match="one name"),
        atomic.replacing(tmp_path / "a", tmp_path / "a", overwrite=False),
    ):
        pytest.fail("the block must not begin")


def test_two_runs_to_one_output_do_not_mix(tmp_path: Path) -> None:
    target, module = tmp_path / "model.pt", tmp_path / "model.py"
    meet = threading.Barrier(4, timeout=30)

    def run(text: str) -> None:
        with atomic.replacing(target, module, overwrite=True) as places:
            for place in places:
                place.write_text(text * 10_000)
                meet.wait()

    threads = [threading.Thread(target=run, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["model.pt", "model.py"]
    for path in (target, module):
        text = path.read_text()
        assert len(text) == 10_000
        assert len(set(text)) == 1


def test_outputs_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic.replacing(tmp_path / "model.pt", overwrite=False) as (place,):
        place.write_text("")
    assert (tmp_path / "model.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "model.pt").stat().st_nlink == 1
