"""Perplexities of a unigram and an interpolated 3-gram model: what a language model has to beat."""

from __future__ import annotations

from collections import Counter

import torch


def _counts(stream: list[int], order: int) -> Counter:
    return Counter(zip(*(stream[i:] for i in range(order)), strict=False))


def baselines(stream: torch.Tensor, rows: torch.Tensor, vocabulary: int) -> dict[str, float]:
    """Perplexity on ``rows`` [N, T] of counts taken on ``stream`` [n].

    The 3-gram model is Witten-Bell smoothed (Chen and Goodman 1999, section 2.3) down to the unigram and the uniform
    distribution. Each token is scored within its row, as the language model's are.
    """
    train = stream.tolist()
    grams = [_counts(train, order) for order in (1, 2, 3)]
    seen: list[Counter] = []
    followers: list[Counter] = []
    for gram in grams:
        totals: Counter = Counter()
        kinds: Counter = Counter()
        for key, count in gram.items():
            totals[key[:-1]] += count
            kinds[key[:-1]] += 1
        seen.append(totals)
        followers.append(kinds)

    def probability(context: tuple[int, ...], token: int) -> float:
        p = 1.0 / vocabulary
        for order in range(len(context) + 1):
            history = context[len(context) - order :]
            total, kinds = seen[order][history], followers[order][history]
            if total:
                p = (grams[order][(*history, token)] + kinds * p) / (total + kinds)
        return p

    unigram = trigram = 0.0
    tokens = 0
    log = torch.log
    probabilities: list[tuple[float, float]] = []
    for row in rows.tolist():
        for t in range(1, len(row)):
            context = tuple(row[max(0, t - 2) : t])
            probabilities.append((probability((), row[t]), probability(context, row[t])))
            tokens += 1
    table = log(torch.tensor(probabilities, dtype=torch.float64)).mean(0)
    unigram, trigram = (-table).exp().tolist()
    return {"unigram_perplexity": round(unigram, 1), "trigram_perplexity": round(trigram, 2)}
