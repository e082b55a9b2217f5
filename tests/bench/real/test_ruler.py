"""Every task's rows are as long as they say, and their answers stand in them as the task says."""

import re
from collections import Counter

import pytest

from benchmarks.real.build import DEV_SEEDS, Cell, filled_rows
from benchmarks.real.fill import TooLong, fill, tokens
from benchmarks.real.judge import score
from benchmarks.real.rows import Row
from benchmarks.real.ruler import TASKS
from benchmarks.real.sources import title_of

LENGTHS = (1024, 4096)
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: ([0-9a-f-]+)\.")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PARAMETERS = {
    # kind of values, number of needles (None: the haystack is made of them), of answers, of queries
    "niah_single_1": ("numbers", 1, 1, 1),
    "niah_single_2": ("numbers", 1, 1, 1),
    "niah_single_3": ("uuids", 1, 1, 1),
    "niah_multikey_1": ("numbers", 4, 1, 1),
    "niah_multikey_2": ("numbers", None, 1, 1),
    "niah_multikey_3": ("uuids", None, 1, 1),
    "niah_multivalue": ("numbers", 4, 4, 1),
    "niah_multiquery": ("numbers", 4, 4, 4),
}


def made(sources, tokenizer, task, length=1024, split="test", count=3):
    cell = Cell("ruler", task, length, split, count)
    return list(filled_rows(cell, TASKS[task], sources.material[split], tokenizer))


def test_the_paper_has_thirteen_tasks():
    assert len(TASKS) == 13 and set(PARAMETERS) == {name for name in TASKS if name.startswith("niah")}
    assert {name for name, task in TASKS.items() if task.judge == "any"} == {"qa_1", "qa_2"}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_fill_their_length(sources, tokenizer, task, length):
    rows = made(sources, tokenizer, task, length)
    for row in rows:
        assert 0.93 * length <= tokens(row, tokenizer) <= length
        assert row.max_new_tokens == sources.material["test"].templates[TASKS[task].family].tokens_to_generate
        assert row.answer_prefix.startswith(" ") != bool(tokenizer.chat_template)
        assert "{" not in row.context + row.question + row.answer_prefix
        assert score(" ".join(row.answers), row.answers, row.judge) == 1
    assert len({row.key for row in rows}) == len({row.context for row in rows}) == 3


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_drawn_by_their_seed(sources, tokenizer, task):
    rows = made(sources, tokenizer, task)
    assert made(sources, tokenizer, task) == rows
    assert [r.context for r in made(sources, tokenizer, task, count=2)] == [r.context for r in rows[:2]]
    dev = made(sources, tokenizer, task, split="dev")
    assert all(row.seed >= DEV_SEEDS > other.seed for row in dev for other in rows)
    assert not {row.question for row in dev} & {row.question for row in rows} or task in ("cwe", "fwe")
    assert not {tuple(row.answers) for row in dev} & {tuple(row.answers) for row in rows} or task == "qa_2"


@pytest.mark.parametrize("task", PARAMETERS)
def test_needles(sources, tokenizer, task):
    kind, count, answers, queries = PARAMETERS[task]
    for row in made(sources, tokenizer, task):
        found = NEEDLE.findall(row.context)
        assert {one[0] for one in found} == {kind}
        assert len(found) == count if count else len(found) > 5
        asked = re.search(r" for (.*)\?", row.question).group(1)
        keys = re.split(r", and |, ", asked)
        assert len(keys) == queries and len(row.answers) == answers
        assert Counter(row.answers) == Counter(value for _, key, value in found if key in keys)
        assert [v for k in keys for _, key, v in found if key == k] == row.answers or task == "niah_multivalue"
        assert len({value for *_, value in found}) == len(found)
        for value in row.answers:
            assert UUID.fullmatch(value) if kind == "uuids" else re.fullmatch(r"[1-9]\d{6}", value)
        one = answers == 1
        assert row.context.startswith(
            f"A magic {kind[:-1]} is hidden here." if one else f"Some magic {kind} are hidden"
        )
        assert f"{'is the' if one else 'are all the'} magic {kind[:-1] if one else kind} for {asked}?" in row.question
        assert (
            row.answer_prefix.strip() == f"The magic {kind[:-1] if one else kind} for {asked} {'is' if one else 'are'}"
        )


def test_essays_are_those_of_the_split(sources, tokenizer):
    row = made(sources, tokenizer, "niah_single_2")[0]
    around = [piece for piece in NEEDLE.sub("", row.context.split("\n", 1)[1]).split("  ") if piece]
    held = " ".join(sources.material["test"].sentences)
    held += " " + held
    assert 1 <= len(around) <= 2 and all(piece.strip() in held for piece in around)


def test_a_chain_ends_in_the_value_that_is_asked_for(sources, tokenizer):
    for row in made(sources, tokenizer, "vt"):
        example, own = row.context.strip().split("Track the chain.\n\n")[1:]
        for text, names in ((own, row.answers), (example, re.findall(r": +((?:[A-Z]{3} ?){5})\n", example)[0].split())):
            value = re.search(r"VAR (\w+) = (\d{5})\b", text)
            assert value.group(1) == names[0]
            assert dict(re.findall(r"VAR (\w+) = VAR (\w+)", text)) == dict(zip(names[1:], names, strict=False))
            places = [text.index(f"VAR {name} =") for name in names]
            assert places == sorted(places) and len(set(names)) == 5
        assert value.group(2) in example.split("Question")[1]
        asked = re.search(r"VAR (\w+) = (\d{5})\b", own).group(2)
        assert asked in row.question and f"5 variables have the value {asked}" in row.answer_prefix


@pytest.mark.parametrize("length", LENGTHS)
def test_common_words_come_more_often(sources, tokenizer, length):
    often, seldom, shown_often, shown_seldom = (6, 1, 3, 1) if length < 4096 else (30, 3, 10, 3)
    for row in made(sources, tokenizer, "cwe", length):
        example, own = row.context.split("A list of words.\n")[1:]
        items = re.findall(r"(\d+)\. (\S+)", own)
        assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
        counts = Counter(word for _, word in items)
        assert {counts[word] for word in row.answers} == {often} and len(row.answers) == 10
        assert {count for word, count in counts.items() if word not in row.answers} == {seldom}
        shown, answer = example.split("Question")
        shown = Counter(re.findall(r"\d+\. (\S+)", shown))
        named = re.findall(r"\d+\. (\S+)", answer)
        assert {shown[word] for word in named} == {shown_often} and len(named) == 10
        assert {count for word, count in shown.items() if word not in named} == {shown_seldom}
        assert shown.keys().isdisjoint(counts)


@pytest.mark.parametrize("length", LENGTHS)
def test_frequent_words_have_the_next_counts_after_the_dots(sources, tokenizer, length):
    for row in made(sources, tokenizer, "fwe", length):
        counts = Counter(row.context.removeprefix("A coded text. ").split()).most_common()
        assert [word for word, _ in counts[:4]] == ["...", *row.answers]
        assert counts[3][1] > counts[4][1] and all(len(word) == 6 for word in row.answers)
        assert counts[1][1] / counts[0][1] == pytest.approx(1 / 4, abs=0.03)
        assert len(counts) <= length // 50


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_documents_answer_the_question_once(sources, tokenizer, task, split):
    material = sources.material[split]
    questions, documents = (
        (material.squad, material.squad_documents)
        if task == "qa_1"
        else (material.hotpotqa, material.hotpotqa_documents)
    )
    for row in made(sources, tokenizer, task, 2048, split):
        asked = next(q for q in questions if row.question.endswith(f"Question: {q.question}"))
        parts = re.split(r"(?:^|\n\n)Document (\d+):\n", row.context.removeprefix("Documents follow.\n\n"))[1:]
        numbers, shown = [int(n) for n in parts[::2]], parts[1::2]
        assert numbers == list(range(1, len(shown) + 1)) and len(set(shown)) == len(shown)
        assert set(asked.gold) <= set(shown) <= set(documents) and row.answers == list(asked.answers)
        assert set(asked.near) <= set(shown)  # there is room for them, and they come first
        assert len(shown) > len(asked.gold + asked.near)


def test_a_hotpot_question_keeps_its_two_paragraphs_where_ten_do_not_fit(sources, tokenizer):
    row = made(sources, tokenizer, "qa_2", 256)[0]
    asked = next(q for q in sources.material["test"].hotpotqa if q.question in row.question)
    titles = [title_of(d) for d in re.split(r"Document \d+:\n", row.context)[1:]]
    assert {title_of(d) for d in asked.gold} < set(titles) and len(titles) < 10


def test_what_cannot_be_filled_is_refused(sources, tokenizer):
    with pytest.raises(ValueError, match="the data of qa_1 does not fill 65,536 tokens"):
        made(sources, tokenizer, "qa_1", 65536)
    with pytest.raises(ValueError, match="the data of cwe does not fill 32,768 tokens"):
        made(sources, tokenizer, "cwe", 32768)


def test_what_cannot_fit_is_refused(sources, tokenizer):
    with pytest.raises(TooLong, match="cwe does not fit 128 tokens: it takes"):
        made(sources, tokenizer, "cwe", 128)
    with pytest.raises(ValueError, match="qa_1 at 40 tokens has 0 test rows of 3"):
        made(sources, tokenizer, "qa_1", 40)
    with pytest.raises(ValueError, match="qa_2 at 1,024 tokens has 10 test rows of 11"):
        made(sources, tokenizer, "qa_2", 1024, count=11)


@pytest.mark.parametrize("guess", [1, 7, 60, 5000])
def test_the_largest_haystack_is_found_from_any_guess(tokenizer, guess):
    looks = []

    def make(size):
        looks.append(size)
        return Row("t", "t", 2000, 0, "test", "a b c " * size, "?", "", ["a"], "any", 5)

    best = max(size for size in range(1000) if tokens(make(size), tokenizer) <= 2000)
    looks.clear()
    row, size = fill(make, tokenizer, 0, 1 << 20, guess)
    assert best - 7 <= size <= best and row == make(size)  # a hundredth may be left
    assert len(looks) <= 6
    assert fill(make, tokenizer, 0, 40, guess)[1] == 40
