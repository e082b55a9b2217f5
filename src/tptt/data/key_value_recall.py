"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927) within running text, for any tokenizer.

A fact is a key and a value, two words of one token each that are paired at random, written ``\\n@ key value``. Every
fact is stated once and asked for once, by the same record again: the model has to predict the value after the key. All
other room is filled with real text, which a memory has to read without losing the facts.

Legend: B rows, T tokens of a row.
"""

from __future__ import annotations

import torch

from .recall_batch import IGNORE, RecallBatch

_MARKER = "\n@"


class RecallVocabulary:
    """Words of a tokenizer that are one token inside running text, and the marker before a record.

    Args:
        tokenizer: any tokenizer of Hugging Face, byte-level or SentencePiece.
        most: how many words are taken at most, spread evenly over the tokenizer's ids.

    Raises:
        ValueError: the tokenizer has fewer than 64 such words.
    """

    def __init__(self, tokenizer, most: int = 4096) -> None:
        self.marker = tuple(tokenizer(_MARKER, add_special_tokens=False)["input_ids"])
        special = set(tokenizer.all_special_ids)
        texts = ((i, tokenizer.decode([i]).strip()) for i in range(len(tokenizer)) if i not in special)
        plain = [(i, text) for i, text in texts if len(text) >= 3 and text.isascii() and text.isalpha()]
        # tokenized behind another sign, because SentencePiece gives the first word of a text a space of its own
        before = tokenizer("@", add_special_tokens=False)["input_ids"]
        behind = tokenizer([f"@ {text}" for _, text in plain], add_special_tokens=False)["input_ids"] if plain else []
        words = [i for (i, _), ids in zip(plain, behind, strict=True) if ids == [*before, i]]
        if len(words) < 64:
            raise ValueError(f"recall rows need at least 64 words that are one token; this tokenizer has {len(words)}")
        # even and odd places: keys and values share no word, and both hold short, frequent and long, rare ones
        taken = min(most, len(words))
        self.words = torch.tensor([words[i * len(words) // taken] for i in range(taken)])
        self.keys, self.values = self.words[0::2], self.words[1::2]

    @property
    def record_length(self) -> int:
        """Tokens of one record."""
        return len(self.marker) + 2


def _of_single_tokens(ids: torch.Tensor, answers: torch.Tensor, distance: torch.Tensor) -> RecallBatch:
    """A batch in which each token that is asked for is an answer of its own."""
    asked = answers != IGNORE
    return RecallBatch(ids, answers, distance, torch.where(asked, asked.cumsum(1) - 1, -1))


class KeyValueRecall:
    """RecallSampler rows of text that state keys with values and ask for them again.

    Args:
        vocabulary: the words to pair.
        filler: [n] token ids of real text for the room between records.
        facts: how many facts a row states; fewer where the row is too short for them.
    """

    def __init__(self, vocabulary: RecallVocabulary, filler: torch.Tensor, facts: int = 32) -> None:
        self.vocabulary, self.filler, self.facts = vocabulary, filler, facts

    def draw(self, batch: int, length: int, generator: torch.Generator, facts: int | None = None) -> RecallBatch:
        """``batch`` rows of ``length`` tokens, drawn from ``generator`` alone.

        Raises:
            ValueError: fewer than one fact, no fact fits into ``length``, or the filler is shorter than a row.
        """
        facts = self.facts if facts is None else facts
        if facts < 1:
            raise ValueError(f"a recall row states one fact or more, not {facts}")
        count = min(facts, length // (2 * self.vocabulary.record_length), len(self.vocabulary.keys))
        if count < 1:
            raise ValueError(f"a recall row needs {2 * self.vocabulary.record_length} tokens or more, not {length}")
        if len(self.filler) <= length:
            raise ValueError(f"recall rows of {length} tokens need a longer filler than {len(self.filler)} tokens")
        rows = [self._row(length, count, generator) for _ in range(batch)]
        return _of_single_tokens(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def draw_without_filler(self, batch: int, length: int, generator: torch.Generator, facts: int) -> RecallBatch:
        """``batch`` rows that hold nothing but records of ``facts`` facts, each of which is asked for again and again.

        A model that trains on them learns early to look a key up in its context. Distances are those to the latest
        statement of the same fact.

        Raises:
            ValueError: fewer than one fact, more facts than keys, or no record fits into ``length``.
        """
        voc, size = self.vocabulary, self.vocabulary.record_length
        if not 1 <= facts <= len(voc.keys):
            raise ValueError(
                f"a row without filler takes 1 to {len(voc.keys)} facts, as many as there are keys, not {facts}"
            )
        if length < size:
            raise ValueError(f"a row without filler needs {size} tokens or more, not {length}")
        places = length // size
        order = torch.randint(facts, (batch, places), generator=generator)
        names = torch.stack([torch.randperm(len(voc.keys), generator=generator)[:facts] for _ in range(batch)])
        values = voc.values[torch.randint(len(voc.values), (batch, facts), generator=generator)]
        marker = torch.tensor(voc.marker).expand(batch, places, -1)
        value = values.gather(1, order)
        records = torch.cat([marker, torch.stack([voc.keys[names].gather(1, order), value], -1)], -1)
        ids = torch.full((batch, length), voc.marker[0])
        ids[:, : places * size] = records.flatten(1)
        same = (order[:, :, None] == order[:, None, :]).tril(-1)
        latest = torch.where(same, torch.arange(places), -1).amax(-1)  # [batch, places]
        answers = torch.full((batch, length), IGNORE)
        distance = torch.zeros(batch, length, dtype=torch.long)
        at = torch.arange(places) * size + size - 1
        asked = latest >= 0
        answers[:, at] = torch.where(asked, value, IGNORE)
        distance[:, at] = torch.where(asked, (torch.arange(places) - latest) * size, 0)
        return _of_single_tokens(ids, answers, distance)

    def _row(self, length: int, count: int, generator: torch.Generator):
        voc = self.vocabulary
        keys = voc.keys[torch.randperm(len(voc.keys), generator=generator)[:count]]
        values = voc.values[torch.randint(len(voc.values), (count,), generator=generator)]
        # a random order of 2 * count places; the earlier place of a fact states it, the later one asks
        order = torch.randperm(2 * count, generator=generator) % count
        room = length - 2 * count * voc.record_length
        cuts = torch.randint(room + 1, (2 * count,), generator=generator).sort().values
        start = int(torch.randint(len(self.filler) - length, (1,), generator=generator))
        text = self.filler[start : start + room].tolist()  # lists: a tensor per record is slow
        keys, values = keys.tolist(), values.tolist()
        ids: list[int] = []
        answers, distance = [IGNORE] * length, [0] * length
        done = 0
        stated: dict[int, int] = {}
        for fact, cut in zip(order.tolist(), cuts.tolist(), strict=True):
            ids += [*text[done:cut], *voc.marker, keys[fact], values[fact]]
            done, at = cut, len(ids)
            if fact in stated:
                answers[at - 1] = values[fact]
                distance[at - 1] = at - 1 - stated[fact]
            else:
                stated[fact] = at - 1
        return tuple(map(torch.tensor, (ids + text[done:], answers, distance)))
