"""Answers of several tokens: counted by hand, and by generation."""

from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tptt import MemoryConfig, attach_memory
from tptt.assets import BASE
from tptt.data import IGNORE, KeyValueRecall, Lexicon, RecallBatch, RecallTask, RecallVocabulary, tokenize
from tptt.evaluation import recall_accuracy, recall_by_generation


def fixed(batch):
    """What draws ``batch`` whatever is asked for."""
    return type("Fixed", (), {"draw": lambda self, *args: batch})()


def random_batch(seed, rows=6, length=40):
    """Asked answers of 1 to 4 tokens at random places, neighbours included."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    ids = torch.randint(64, (rows, length), generator=generator)
    answers, distance = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    names = torch.full_like(ids, -1)
    for row in range(rows):
        at, name = number(1, 6), 0
        while at < length - 4:
            size = number(1, 5)
            here = slice(at, at + size)
            answers[row, here], distance[row, here], names[row, here] = ids[row, here], number(1, at + 1), name
            at, name = at + size + number(0, 6), name + 1
    return RecallBatch(ids, answers, distance, names)


class Guesser(torch.nn.Module):
    """Predicts each next token with probability .8, and the same ones every time."""

    device = torch.device("cpu")

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, 64)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(len(ids) - 1):
                right = hash((*ids[: t + 2], 1)) % 5 > 0
                logits[row, t, ids[t + 1] if right else (ids[t + 1] + 1) % 64] = 1.0
        return type("Output", (), {"logits": logits})


def brute_force(model, batch, window):
    """{(beyond, right): count}, one answer after the other."""
    found: dict[tuple[bool, bool], int] = {}
    for row in range(len(batch.input_ids)):
        predicted = model(batch.input_ids[row : row + 1], False).logits[0].argmax(-1)
        for name in range(int(batch.number[row].max()) + 1):
            places = (batch.number[row] == name).nonzero()[:, 0].tolist()
            right = all(int(predicted[t - 1]) == int(batch.answers[row, t]) for t in places)
            key = (int(batch.distance[row, places[0]]) > window, right)
            found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_those_of_a_count_by_hand(seed):
    batch, window = random_batch(seed), 10
    score = recall_accuracy(Guesser(), fixed(batch), 40, window, rows=6, tokens_per_batch=80)
    counts = brute_force(Guesser(), batch, window)
    for share, asked, beyond in ((score.inside, score.inside_count, False), (score.beyond, score.beyond_count, True)):
        right, wrong = counts.get((beyond, True), 0), counts.get((beyond, False), 0)
        assert asked == right + wrong > 3 and min(right, wrong) > 0
        assert share == pytest.approx(right / asked)
    assert sum(n for _, n in score.by_distance.values()) == sum(counts.values())
    assert sum(h for h, _ in score.by_distance.values()) == sum(n for (_, right), n in counts.items() if right)


def test_one_wrong_token_makes_an_answer_wrong():
    batch = random_batch(0)
    ids = batch.input_ids

    class Almost(Guesser):
        def forward(self, input_ids, use_cache):
            logits = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 64).float()
            at = (batch.number[0] == 2).nonzero()[-1, 0] - 1
            logits[:, at] = logits[:, at].roll(1, -1)
            return type("Output", (), {"logits": logits})

    first = RecallBatch(*(x[:1] for x in (ids, batch.answers, batch.distance, batch.number)))
    asked = int(batch.number[0].max()) + 1
    score = recall_accuracy(Almost(), fixed(first), 40, 40, rows=1)
    assert score.inside == pytest.approx((asked - 1) / asked) and score.inside_count == asked


STEPS = 22  # enough for some of the answers
NOISE = 0.2  # leaves the base some of them


def overfitted(batch, window):
    """A small model with a memory that knows some of the answers of ``batch`` by heart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = attach_memory(LlamaForCausalLM(config), MemoryConfig(max_self_attn_length=window))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        labels = torch.where(batch.answers == IGNORE, -100, batch.answers)
        model(input_ids=batch.input_ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_scores_are_what_greedy_generation_answers():
    """All tokens of an answer are predicted with the right ones before them exactly where generation writes the
    answer."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = list(topics.values())[:12]
    formats = ("records", "passkey", "identifiers", "strings")
    drills = RecallTask(tokenizer, Lexicon.of(text), tokenize(tokenizer, text), formats, facts=4)
    batch = drills.draw(4, 160, torch.Generator().manual_seed(0))
    window = 24
    model = overfitted(batch, window)
    score = recall_accuracy(model, fixed(batch), 160, window, rows=4)
    counts = {(beyond, right): 0 for beyond in (False, True) for right in (False, True)}
    for row in range(4):
        for name in batch.number[row].unique().tolist()[1:]:
            places = (batch.number[row] == name).nonzero()[:, 0]
            start, size = int(places[0]), len(places)
            written = model.generate(
                batch.input_ids[row : row + 1, :start], max_new_tokens=size, do_sample=False, use_cache=True
            )[0, start:]
            right = torch.equal(written, batch.answers[row, places])
            counts[int(batch.distance[row, start]) > window, right] += 1
    found = (score.inside or 0.0) * score.inside_count + (score.beyond or 0.0) * score.beyond_count
    assert round(found) == counts[False, True] + counts[True, True]
    assert score.beyond_count == counts[True, False] + counts[True, True]
    assert counts[True, False] and counts[True, True], "all right or all wrong says little"


def by_teacher_forcing(model, batch, window):
    """(right, asked): the last answer beyond the window of each row, all its tokens predicted with the right ones
    before."""
    right = []
    for row in range(len(batch.input_ids)):
        far = batch.number[row][(batch.distance[row] > window) & (batch.answers[row] != IGNORE)]
        if not len(far):
            continue
        with torch.no_grad():
            predicted = model(input_ids=batch.input_ids[row : row + 1], use_cache=False).logits[0].argmax(-1)
        places = (batch.number[row] == far[-1]).nonzero()[:, 0]
        right.append(torch.equal(predicted[places - 1], batch.answers[row, places]))
    return sum(right), len(right)


def test_generation_of_the_base_answers_what_it_predicts():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # it would know all of them
            p.add_(torch.randn_like(p) * p.std() * NOISE)
    rows = KeyValueRecall(RecallVocabulary(tokenizer), tokenize(tokenizer, list(topics.values())[:12]))
    batch = rows.draw(12, 192, torch.Generator().manual_seed(3), 8)
    right, asked = recall_by_generation(model, rows, 192, 48, rows=12, seed=3, facts=8)
    assert (right, asked) == by_teacher_forcing(model, batch, 48)
    assert 0 < right < asked == 12, "all right or all wrong says little"


def test_generation_from_a_memory_answers_what_it_predicts():
    """Prompts of different lengths, so that there is padding before most of them; the drills' answers have many
    tokens."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = list(topics.values())[:12]
    drills = RecallTask(tokenizer, Lexicon.of(text), tokenize(tokenizer, text), ("passkey", "identifiers"), facts=4)
    batch = drills.draw(6, 160, torch.Generator().manual_seed(0))
    model = overfitted(batch, 24)
    found = recall_by_generation(model, fixed(batch), 160, 24, rows=6)
    assert found == by_teacher_forcing(model, batch, 24)
    assert 0 < found[0] < found[1], "all right or all wrong says little"


def test_generation_asks_for_what_lies_beyond_the_window_and_no_more():
    assert recall_by_generation(Guesser(), fixed(random_batch(0)), 40, 40, rows=6) == (0, 0)
    with pytest.raises(ValueError, match="rows must be 1 or more, got 0"):
        recall_by_generation(Guesser(), fixed(random_batch(0)), 40, 10, rows=0)
