import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tptt.data.documents import document_key
from tptt.data.held_out import FEW, HeldOut, TooLittleTextError, choose

SIZES = st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 10**7), min_size=1, max_size=60)


def held(chosen, sizes):
    """Keys of the documents that are held out whole."""
    return {key for key, size in sizes.items() if chosen.range_of(key, size, True) == (0, size)}


@example(sizes={0: 1, 1: 10, 2: 10})
@given(sizes=SIZES)
def test_of_few_documents_a_twentieth_of_the_text_is_held_out(sizes):
    total = sum(sizes.values())
    if total < 2:
        return
    chosen = choose(sizes.items())
    whole = held(chosen, sizes)
    if chosen.cut is None:
        amount = sum(sizes[key] for key in whole)
        assert total / 20 <= amount <= total / 2
    else:
        assert not whole and sizes[chosen.cut] == max(sizes.values())
        assert len(sizes) == 1 or max(sizes.values()) > total / 2
    for key, size in sizes.items():
        train, out = (chosen.range_of(key, size, side) for side in (False, True))
        assert train[1] <= out[0] or out[1] <= train[0] or train == (0, 0) or out == (0, 0), "a document on two sides"


@given(sizes=SIZES, data=st.data())
def test_neither_order_nor_copies_matter(sizes, data):
    documents = list(sizes.items())
    copies = data.draw(st.lists(st.sampled_from(documents), max_size=9))
    other = data.draw(st.permutations(documents + copies))
    if sum(sizes.values()) > 1:
        assert choose(documents) == choose(other)


def test_of_many_documents_about_one_in_20_is_held_out_and_the_rest_is_not_looked_at():
    keys = (document_key(f"text {i}") for i in itertools.count())
    chosen = choose((key, 7) for key in keys)
    assert next(keys) == document_key(f"text {FEW + 1}"), "more than needed was looked at"
    sizes = {document_key(f"text {i}"): 7 for i in range(20_000)}
    assert len(held(chosen, sizes)) == pytest.approx(1000, abs=120)


def test_a_document_of_many_never_changes_sides():
    some, more = ({document_key(f"text {i}"): i + 1 for i in range(n)} for n in (2000, 4000))
    assert held(choose(some.items()), some) == held(choose(more.items()), more) & set(some)


def test_thousands_of_copies_are_one_document():
    chosen = choose([(5, 100)] * 3000)
    assert chosen.cut == 5


def test_the_end_of_a_single_document_is_held_out_and_what_is_before_it_left_out():
    chosen = HeldOut((), cut=3)
    assert (chosen.range_of(3, 1000, False), chosen.range_of(3, 1000, True)) == ((0, 890), (900, 1000))
    gigabytes = 4 << 30
    (_, end), (start, last) = (chosen.range_of(3, gigabytes, side) for side in (False, True))
    assert (last, last - start, start - end) == (gigabytes, 16 << 20, 64 << 10)
    assert (chosen.range_of(3, 2, False), chosen.range_of(3, 2, True)) == ((0, 1), (1, 2))
    assert chosen.range_of(4, 10, False) == (0, 10) and chosen.range_of(4, 10, True) == (0, 0)


def test_a_book_beside_some_notes_is_cut():
    assert choose({8: 10**6, 1: 300, 2: 500}.items()) == HeldOut((), cut=8)
    assert choose({8: 10**6, 1: 300, 2: 60_000}.items()) == HeldOut((1, 2)), "the notes are enough to be held out"


@pytest.mark.parametrize(("sizes", "message"), [([], "no text"), ([(1, 1)], "of one character nothing")])
def test_too_little_text(sizes, message):
    with pytest.raises(TooLittleTextError, match=message):
        choose(sizes)


def test_a_key_depends_on_the_text_alone():
    assert document_key("one\r\ntwo\r\n") == document_key("\none\ntwo") != document_key("one\ntwo.")
    assert document_key("wörds") == 0x8535F3747F8BAC7F  # printf wörds | b2sum -l 64
