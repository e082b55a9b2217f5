import gzip
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.files import write
from tptt.data import documents, text_files
from tptt.data.text_files import NoTextError, TextFile

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
BIG_ENDIAN = {"utf-16-be": b"\xfe\xff", "utf-32-be": b"\0\0\xfe\xff"}


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of a few bytes, whose ends are looked for in a few more."""
    monkeypatch.setattr(documents, "PIECE", 16)
    monkeypatch.setattr(text_files, "PIECE", 16)
    monkeypatch.setattr(text_files, "LINE_END_WITHIN", 24)


def pieces(path):
    file = TextFile.of(path)
    places = [*file.pieces(), file.size]
    return [file.piece(a, b) for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "ein Wörtchen\r\n\nnoch eins".encode(encoding))
    assert TextFile.of(path).beginning() == "ein Wörtchen\n\nnoch eins" == "".join(pieces(path))


@pytest.mark.parametrize("encoding", BIG_ENDIAN)
def test_big_endian(tmp_path, encoding):
    path = write(tmp_path / "a.txt", BIG_ENDIAN[encoding] + "ein Wörtchen\n".encode(encoding))
    assert TextFile.of(path).beginning() == "ein Wörtchen\n" == "".join(pieces(path))


@pytest.mark.parametrize("encoding", [*ENCODINGS, *BIG_ENDIAN])
@given(text=st.text(st.sampled_from("ab\n\r ü語𝄞\u0a0a\u0a00ऀ"), max_size=90))
def test_pieces_leave_nothing_out_and_repeat_nothing(tmp_path_factory, encoding, text):
    """Also where a line ends nowhere, where a character has several bytes, and where two make up a line end."""
    path = write(tmp_path_factory.mktemp("text") / "a.txt", BIG_ENDIAN.get(encoding, b"") + text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", 16)
        patch.setattr(text_files, "LINE_END_WITHIN", 24)
        found = pieces(path)
    assert "".join(found) == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pieces_end_where_lines_do(tmp_path, small_pieces, encoding):
    path = write(tmp_path / "a.txt", "".join(f"{i}\n" for i in range(100, 130)).encode(encoding))
    found = pieces(path)
    assert len(found) > 3 and all(piece == "" or piece.endswith("\n") for piece in found)


def test_a_file_of_one_line_is_read_in_pieces_too(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 3_000_000)
    assert max(map(len, pieces(path))) < 400_000


def test_single_letters_of_another_encoding_are_replaced(tmp_path):
    path = write(tmp_path / "a.txt", ("a word and a w\u00f6rd " * 20).encode("latin-1"))
    assert "a word and a w\ufffdrd" in TextFile.of(path).beginning()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", bytes(range(256)) * 40, "a.bin is no text: neither UTF-8 nor"),
        ("a.txt.gz", gzip.compress(b"some words\n" * 99, mtime=0), "a.txt.gz is no text.*unpack an archive"),
        ("a.txt", "слово за словом\n".encode("cp1251") * 99, "a.txt is no text.*convert another encoding"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, content, message):
    with pytest.raises(NoTextError, match=message):
        TextFile.of(write(tmp_path / name, content)).beginning()


def test_what_is_no_text_further_on_is_named_with_its_place(tmp_path):
    path = write(tmp_path / "a.txt", b"some words\n" * 120_000 + bytes(range(256)) * 4000)
    TextFile.of(path).beginning()
    with pytest.raises(NoTextError, match=r"a.txt is no text from byte 1\d{6} on"):
        pieces(path)
