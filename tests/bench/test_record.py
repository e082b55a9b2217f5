"""Every number says where it comes from, and nobody else's place is put over it."""

import ast
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import FIELDS, ROOT, SOURCES, ages, code_text, described, files_of, provenance, write_section

KINDS = sorted(SOURCES)
NOT_MEASURED = {
    *("tptt.assets", "tptt.fields", "tptt.lazy", "tptt.processes", "tptt.progress", "tptt.version"),
    "tptt.evaluation.tables",
    *("benchmarks.record", "benchmarks.plots", "benchmarks.runs", "benchmarks.conversion.arms"),
}
"""Modules that nothing measured depends on, or, as an arm, by what stands in the key."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_provenance_has_all_fields(kind):
    found = provenance(kind)
    assert tuple(found) == FIELDS
    assert all(found.values()) and found["threads"] >= 1
    assert len(found["code"]) == 12 and found["utc"].count(":") == 1
    text = described(kind, found)
    assert all(str(value) in text for value in found.values()) and "changed" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_sources_cover_what_they_import(kind):
    """What a benchmark's sources import of the package and of benchmarks is among its sources."""
    files, missing = set(files_of(kind)), set()
    for file in (f for f in files if f.suffix == ".py" and f.name != "setup.py"):
        for module in _imported(file):
            path = ROOT / ("src" if module.startswith("tptt") else "") / module.replace(".", "/")
            there = [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()]
            if there and there[0] not in files:
                missing.add(module)
    assert {name for name in missing if name != "tptt" and name not in NOT_MEASURED} == set()


def _imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            above = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            found.add(".".join([*(p for p in above if p != "src"), node.module]))
    return {name for name in found if name.split(".")[0] in ("tptt", "benchmarks")}


def test_words_are_no_code():
    one = 'def f(x):\n    """Say."""\n    return x + "#1"  # why\n\n\nX = 1\n"""Of X."""\n'
    other = 'def f(x):\n    """Say it\n    in two lines."""\n    # first\n    return x + "#1"\nX = 1\n'
    assert code_text(one) == code_text(other) == 'def f(x):\n    return x + "#1"\nX = 1'
    assert code_text(one.replace("#1", "#2")) != code_text(one)
    assert code_text("def f(): 'all'\n") == "def f(): 'all'"


@pytest.fixture
def small_repository(tmp_path, monkeypatch):
    """A repository of two files, with a benchmark that depends on one of them."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setitem(SOURCES, "small", ("one.py",))
    yield tmp_path
    record.measured_text.cache_clear()
    record.code_version.cache_clear()


def _version() -> str:
    record.measured_text.cache_clear()
    record.code_version.cache_clear()
    return record.code_version("small")


def test_the_code_version_follows_the_sources_alone(small_repository):
    before = _version()
    (small_repository / "two.py").write_text("x = 2\n")
    (small_repository / "one.py").write_text("# now\nx = 1\n")
    assert _version() == before
    (small_repository / "one.py").write_text("x = 2\n")
    assert _version() != before
    (small_repository / "one.py").unlink()
    with pytest.raises(FileNotFoundError, match="one.py"):
        _version()


def test_older_code_is_marked_and_the_unknown_stays_unknown():
    found = provenance("ops") | {"code": "0123456789ab", "commit": "abc", "machine": "another"}
    text = described("ops", found)
    assert "commit abc (code 0123456789ab" in text and "another" in text and text.endswith("the code has changed since")
    old = described("ops", {"commit": "unknown", "recorded_in": "f00", "threads": 2})
    assert old == (
        "commit unknown, in the repository since f00, machine not recorded, 2 threads, all else not recorded; "
        "the code has changed since"
    )


def test_results_of_one_place_share_a_line_with_their_dates():
    found = [provenance("ops") | {"utc": x} for x in ("2025-01-02 03:04", "2025-01-01 00:00", "2025-01-03 00:00")]
    assert "2025-01-01 00:00 to 2025-01-03 00:00 UTC" in described("ops", *found)
    assert len({record.place(x) for x in found}) == 1


def test_a_section_replaces_its_own_only(tmp_path):
    file = tmp_path / "RESULTS.md"
    write_section(file, "One", "first")
    write_section(file, "Two", "second\n\n### Inside")
    write_section(file, "One", "again")
    text = file.read_text()
    assert text.startswith("# Results\n") and text.count("## One") == 1
    assert "first" not in text and "second\n\n### Inside" in text
    assert text.index("again") < text.index("second")  # in its place


def test_sections_of_older_code_are_told():
    now = record.section("ops", "python -m benchmarks.ops", ["a table"])
    old = now.replace(record.code_version("ops"), "0123456789ab")
    text = f"# Results\n\n## Now\n\n{now}\n\n## Old\n\n{old}\n\n## Older\n\n`python -m benchmarks.ops`, commit 1\n"
    assert ages(text) == [
        ("Now", "measured with today's code"),
        ("Old", "older: the code of ops has changed since"),
        ("Older", "older: its code was not recorded"),
    ]


def test_every_section_of_the_results_names_its_command():
    sections = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(sections) >= 7
    for section in sections:
        title, _, body = section.partition("\n")
        assert body.strip().startswith("`python -m benchmarks."), title
        assert "python -c" not in body, title
