from tests.data.files import write
from tptt.data import installed_text, standard_library, stdlib_text
from tptt.data.standard_library import split_by_name


def test_the_standard_library_splits_by_module():
    split = stdlib_text()
    assert len(split.train) > 10 * len(split.held_out) > 0
    assert sum(map(len, split.train)) > 5_000_000
    assert not set(split.train) & set(split.held_out)


def test_a_document_never_changes_sides():
    some = split_by_name((str(i), f"text {i}") for i in range(100))
    more = split_by_name((str(i), f"text {i}") for i in reversed(range(200)))
    assert set(some.train) <= set(more.train) and set(some.held_out) <= set(more.held_out)
    assert some.held_out


def test_copies_are_on_the_side_of_the_first():
    split = split_by_name((f"{place}/{i}", f"text {i}") for place in "abcdefgh" for i in range(200))
    assert not set(split.train) & set(split.held_out) and split.held_out


def test_copies_in_packages_are_on_the_side_of_the_first(tmp_path, monkeypatch):
    for package in "abcdefgh":
        for i in range(60):
            write(tmp_path / package / f"{i}.py", f"text {i}\n")
    monkeypatch.setattr(
        standard_library.sysconfig, "get_paths", lambda: {"purelib": tmp_path, "stdlib": tmp_path / "no"}
    )
    split = installed_text(10**6)
    assert len([*split.train, *split.held_out]) > 8 * 60
    assert not set(split.train) & set(split.held_out) and any(t.startswith("text") for t in split.held_out)
