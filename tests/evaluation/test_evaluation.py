import pytest
import torch

from tptt.data import KeyValueRecall
from tptt.evaluation import perplexity, recall_accuracy


class Oracle(torch.nn.Module):
    """Knows the value of a key that was stated at most ``reach`` tokens before the key is asked."""

    device = torch.device("cpu")

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, 64)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(1, len(ids)):
                for s in range(max(2, t - self.reach + 1), t):
                    if ids[t - 1] == ids[s - 2] == 5 and ids[t] == ids[s - 1]:
                        logits[row, t, ids[s]] = 1.0
        return type("Output", (), {"logits": logits})


@pytest.fixture
def recall(words):
    return KeyValueRecall(words, torch.full((300,), 3), facts=6)


def test_perplexity_of_equal_logits_is_the_vocabulary():
    rows = torch.randint(64, (5, 9))
    assert perplexity(Oracle(0), rows, tokens_per_batch=18) == pytest.approx(64.0)


def test_perplexity_is_the_models_loss(llama):
    rows = torch.randint(64, (3, 16))
    with torch.no_grad():
        loss = llama(input_ids=rows, labels=rows).loss
    llama.train()
    assert perplexity(llama, rows) == pytest.approx(loss.exp().item(), rel=1e-5)
    assert llama.training
    with pytest.raises(ValueError, match=r"\[3, 1\]"):
        perplexity(llama, rows[:, :1])


def test_recall_parts_at_the_window(recall):
    window = 24
    score = recall_accuracy(Oracle(window), recall, 96, window, rows=8)
    assert (score.inside, score.beyond) == (1.0, 0.0)
    assert score.inside_count > 0 and score.beyond_count > 0
    assert score.inside_count + score.beyond_count == 8 * 6 == sum(n for _, n in score.by_distance.values())
    assert sum(h for h, _ in score.by_distance.values()) == score.inside_count
    assert score == recall_accuracy(Oracle(window), recall, 96, window, rows=8, tokens_per_batch=96)


def test_recall_of_one_who_knows_all_and_where_nothing_is_beyond(recall):
    assert recall_accuracy(Oracle(96), recall, 96, 24, rows=4).beyond == 1.0
    assert recall_accuracy(Oracle(96), recall, 96, 96, rows=4).beyond is None
    with pytest.raises(ValueError, match="rows"):
        recall_accuracy(Oracle(1), recall, 96, 24, rows=0)
