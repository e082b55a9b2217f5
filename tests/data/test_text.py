import itertools
import json
import os
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from tests.data.files import jsonl, texts, write
from tptt.data import TextWarning, load_text
from tptt.data.text import _in_reading_order, _is_read


def both(split):
    return [*split.train, *split.held_out]


# ---- one file ------------------------------------------------------------------------------------------------------


def test_the_end_of_a_file_is_held_out_and_no_line_is_on_both_sides(tmp_path):
    """A file is one document: what is held out is one piece of it, behind all that is trained on."""
    lines = [f"line {i}\n" for i in range(200_000)]
    split = load_text(str(write(tmp_path / "a.txt", "".join(lines))))
    train, held_out = ("".join(part).splitlines(keepends=True) for part in (split.train, split.held_out))
    assert train == lines[: len(train)] and held_out == lines[-len(held_out) :]
    assert len(held_out) == pytest.approx(20_000, rel=0.05)
    left_out = len(lines) - len(train) - len(held_out)
    assert 0.005 < left_out / len(lines) < 0.02


def test_a_file_is_read_in_an_order_that_the_seed_decides(tmp_path):
    lines = [f"line {i}\n" for i in range(200_000)]
    train = load_text(str(write(tmp_path / "a.txt", "".join(lines)))).train
    orders = ["".join(train.shuffled(seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0].splitlines()) == sorted("".join(train).splitlines()), "something is read twice or never"


def test_a_short_text_is_still_split(tmp_path):
    split = load_text(str(write(tmp_path / "a.txt", "x" * 100)))
    assert (list(split.train), list(split.held_out)) == (["x" * 89], ["x" * 10])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_changes_nothing(tmp_path, encoding):
    text = "".join(f"Wörter in Zeile {i} 語\n" for i in range(9000))
    split = load_text(str(write(tmp_path / "a.txt", text.encode(encoding))))
    train, held_out = "".join(split.train), "".join(split.held_out)
    assert text.startswith(train) and text.endswith(held_out) and len(held_out) > len(text) / 11


# ---- folders and patterns ------------------------------------------------------------------------------------------


def test_a_folder_holds_whole_files_out(tmp_path):
    for i, text in enumerate(texts(30, words=20_000)):
        write(tmp_path / str(i % 3) / f"{i}.md", text)
    split = load_text(str(tmp_path))
    train, held_out = ({word for part in side for word in part.split()} for side in (split.train, split.held_out))
    assert not train & held_out and len(train | held_out) == 30 * 20_000
    assert 0.05 <= len(held_out) / len(train | held_out) <= 0.1


def test_a_folder_reads_text_and_tables_also_in_folders_within(tmp_path):
    rows = texts(50)
    write(tmp_path / "sub" / "b.jsonl", jsonl(rows[:40]))
    write(tmp_path / "c.TXT", rows[40])
    write(tmp_path / "sub" / "er" / "d.md", rows[41])
    for name in (".venv/a.py", ".b.md", "e.bin"):
        write(tmp_path / name, "passed over")
    assert sorted(both(load_text(str(tmp_path)))) == sorted(rows[:42])


def test_a_pattern_of_file_names(tmp_path):
    rows = texts(9)
    for i, row in enumerate(rows):
        write(tmp_path / f"sub{i % 2}" / f"{i}.log", row)
    assert sorted(both(load_text(str(tmp_path / "sub1" / "*.log")))) == sorted(rows[1::2])
    assert sorted(both(load_text(str(tmp_path / "**" / "*.log")))) == sorted(rows)
    with pytest.raises(FileNotFoundError, match=r"no file is named like '.*none\*'"):
        load_text(str(tmp_path / "none*"))


def test_what_is_no_text_is_passed_over_and_what_is_damaged_refused(tmp_path):
    write(tmp_path / "a.md", "words\n" * 900)
    write(tmp_path / "b.txt", bytes(range(256)))
    write(tmp_path / "c.csv", "")
    write(tmp_path / "config.json", json.dumps({"size": 3}))
    with pytest.warns(TextWarning) as told:
        split = load_text(str(tmp_path))
        assert {word for part in both(split) for word in part.split()} == {"words"}
    messages = [str(w.message) for w in told]
    assert len(messages) == 3, "told again when it was read again"
    assert all(m.startswith("passed over: ") for m in messages)
    assert "b.txt is no text" in messages[0] and "c.csv is empty" in messages[1]
    assert "config.json has no column 'text'; it has size" in messages[2]
    write(tmp_path / "d.jsonl", '{"text": "a"}\n{"te')
    with pytest.raises(ValueError, match="d.jsonl line 2"), pytest.warns(TextWarning):
        load_text(str(tmp_path))


# ---- the held-out part is the same wherever it is chosen -----------------------------------------------------------


def test_copies_of_a_document_are_on_the_same_side(tmp_path):
    rows = texts(40)
    for i, row in enumerate(rows):
        for copy, place in enumerate(("a", "b/c", "d")):
            write(tmp_path / place / f"{(i * 7 + copy * 13) % 40}.txt", row)
    split = load_text(str(tmp_path))
    assert not set(split.train) & set(split.held_out)
    assert sorted(both(split)) == sorted(rows * 3)
    table = load_text(str(write(tmp_path / "table.jsonl", jsonl(rows * 40))))
    assert not set(table.train) & set(table.held_out) and set(table.held_out) == set(split.held_out)


def test_line_ends_and_names_do_not_matter(tmp_path):
    """As a checkout on Windows has it."""
    rows = [text.replace(" ", "\n") for text in texts(60)]
    for i, row in enumerate(rows):
        write(tmp_path / "posix" / "sub" / f"{i:02}.txt", row)
        write(tmp_path / "windows" / f"sub\\{i:02}.txt", row.replace("\n", "\r\n"))
    posix, windows = (load_text(str(tmp_path / name)) for name in ("posix", "windows"))
    assert list(posix.held_out) == list(windows.held_out) and list(posix.train) == list(windows.train)


def test_files_of_windows_are_read_in_the_same_order(tmp_path):
    """Windows ignores case when it orders paths, and parts them by backslashes."""
    names = ["B.txt", "a.txt", "sub/c.txt", "sub-d.txt", "Sub/e.txt"]
    orders = []
    for kind in (PurePosixPath, PureWindowsPath):
        files = {kind(name): tmp_path / name for name in names}
        orders.append(_in_reading_order(files))
    assert orders[0] == orders[1] and len(orders[0]) == 5
    assert sorted(map(PureWindowsPath, names)) != sorted(map(PurePosixPath, names)), "nothing was tested"
    hidden = ("sub\\.git\\x.txt", ".venv\\a.py")
    assert not any(_is_read(PureWindowsPath(name)) for name in hidden) and _is_read(PureWindowsPath("sub\\x.TXT"))


# ---- errors --------------------------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_text(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n", "there is no text; readable are .txt, .md"), ("x", "of one character nothing can be")],
)
def test_too_little_text(tmp_path, content, message):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(ValueError, match=message):
        load_text(str(path))
    with pytest.raises(ValueError, match=message):
        load_text(str(tmp_path))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"'{tmp_path}': there is no text; readable are .txt, .md.*and data sets"):
        load_text(str(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.*"])
def test_a_file_has_neither_configurations_nor_splits(tmp_path, name):
    write(tmp_path / "a.txt", "words\n" * 99)
    write(tmp_path / "a.jsonl", jsonl(texts(9)))
    source = str(tmp_path / name)
    assert both(load_text(source, split="train"))
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        load_text(source, split="test")
    with pytest.raises(ValueError, match="has no configuration 'raw'"):
        load_text(source, config_name="raw")


def test_the_fingerprint_is_that_of_what_is_read(tmp_path):
    def fingerprints(folder):
        split = load_text(str(folder))
        return split.train.fingerprint, split.held_out.fingerprint, split.train.shuffled(1).fingerprint

    for name in ("one", "two"):
        for i, text in enumerate(texts(30)):
            write(tmp_path / name / f"{i}.txt", text)
    assert fingerprints(tmp_path / "one") == fingerprints(tmp_path / "two"), "where it lies does not matter"
    first = fingerprints(tmp_path / "one")
    path = tmp_path / "one" / "3.txt"
    before = path.stat()
    write(path, path.read_text(encoding="utf-8").replace("0", "1"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = fingerprints(tmp_path / "one")
    assert path.stat().st_size == before.st_size
    assert all(a != b for a, b in zip(first, after, strict=True)), "of the same size and time, but of other text"
    assert len({*first, *after}) == 6


def test_of_large_files_the_ends_and_the_time_tell_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr("tptt.data.sources._WHOLE", 1000)
    monkeypatch.setattr("tptt.data.sources._BLOCK", 64)
    path = write(tmp_path / "a.txt", "word " * 500)
    found = {load_text(str(path)).train.fingerprint for _ in range(3)}
    assert len(found) == 1
    os.utime(path, ns=(1, 1))
    found.add(load_text(str(path)).train.fingerprint)
    for change in ("last", "first"):
        text = path.read_text(encoding="utf-8")
        write(path, text[:-5] + "ward " if change == "last" else "ward " + text[5:])
        os.utime(path, ns=(1, 1))
        found.add(load_text(str(path)).train.fingerprint)
    assert len(found) == 4


def test_documents_are_read_when_they_are_asked_for(tmp_path):
    """Each time anew, and not before."""
    for i, text in enumerate(texts(30)):
        write(tmp_path / f"{i:02}.txt", text)
    split = load_text(str(tmp_path))
    first = list(itertools.islice(split.train, 3))
    for path in tmp_path.iterdir():
        path.write_text(path.read_text(encoding="utf-8").upper(), encoding="utf-8")
    assert [text.upper() for text in first] == list(itertools.islice(split.train, 3))
