import pytest
import torch
from transformers import Trainer, TrainingArguments

from tptt import parameter_groups
from tptt.data import IGNORE, RecallRows
from tptt.surgery import memories, set_mag_weight
from tptt.training.recall_trainer import MixedRows, RecallTrainer
from tptt.training.window import window_alone


class Words:
    """A recall vocabulary of token ids 10..59 without a tokenizer."""

    marker = (5,)
    record_length = 3
    words = torch.arange(10, 60)
    keys, values = words[0::2], words[1::2]


@pytest.fixture
def rows():
    stream = torch.randint(64, (500,), generator=torch.Generator().manual_seed(0))
    return MixedRows(stream, RecallRows(Words(), stream), 32, 16, recall_share=0.5, facts=(2, 4))


def test_groups_hold_every_trained_parameter_once(tiny):
    model = tiny()
    lora, memory = parameter_groups(model, 1e-3, 1e-2, 0.1)
    assert (lora["lr"], lora["weight_decay"], memory["lr"], memory["weight_decay"]) == (1e-3, 0.1, 1e-2, 0.0)
    owned = {id(p) for m in memories(model) for p in m.parameters()}
    assert {id(p) for p in memory["params"]} == owned
    assert sum(len(g["params"]) for g in (lora, memory)) == sum(p.requires_grad for p in model.parameters())


def test_groups_without_anything_to_train(tiny):
    with pytest.raises(ValueError, match="no parameter that trains"):
        parameter_groups(tiny().requires_grad_(False))
    with pytest.raises(ValueError, match="memory_lr"):
        parameter_groups(tiny(), memory_lr=-1.0)


def test_rows_hold_both_kinds_and_repeat(rows):
    asked = (rows.loss_weights == 5).any(1)
    assert len(rows) == 16 and int(asked.sum()) == 8
    assert set(rows.loss_weights[~asked].unique().tolist()) == {1.0}
    item = rows[0]
    assert {k: v.shape for k, v in item.items()} == dict.fromkeys(("input_ids", "labels", "loss_weights"), (32,))
    with pytest.raises(ValueError, match="longer"):
        MixedRows(torch.zeros(32, dtype=torch.long), None, 32, 1)


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder), max_steps=2, learning_rate=0.0, logging_steps=1, report_to="none", disable_tqdm=True,
        use_cpu=True, save_strategy="no", **options,
    )  # fmt: skip


def test_unit_weights_give_trainers_own_loss(tiny, rows, tmp_path):
    rows.loss_weights = torch.ones_like(rows.loss_weights)
    losses = []
    for kind, unused in ((RecallTrainer, False), (Trainer, True)):
        run = kind(model=tiny(), args=arguments(tmp_path, remove_unused_columns=unused), train_dataset=rows)
        run.train()
        losses.append([x["loss"] for x in run.state.log_history if "loss" in x])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_accumulation_gives_the_same_weighted_loss(tiny, rows, tmp_path):
    losses = []
    for batch, pieces in ((8, 1), (2, 4)):
        args = arguments(
            tmp_path, remove_unused_columns=False, per_device_train_batch_size=batch, gradient_accumulation_steps=pieces
        )
        run = RecallTrainer(model=tiny(), args=args, train_dataset=rows)
        run.train()
        losses.append([x["loss"] for x in run.state.log_history if "loss" in x])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_weighted_loss_by_hand(tiny, rows, tmp_path):
    model = tiny().eval()
    batch = {k: torch.stack([rows[i][k] for i in range(4)]) for k in rows[0]}
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, :8] = IGNORE
    run = RecallTrainer(model=model, args=arguments(tmp_path, remove_unused_columns=False), train_dataset=rows)
    loss = run.compute_loss(model, batch)
    logp = model(batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    per = -logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * weights * (labels != IGNORE)
    torch.testing.assert_close(loss, per.sum() / (batch["labels"] != IGNORE).sum())


def test_window_alone_is_mu_zero_without_the_memory(tiny):
    model = tiny(max_self_attn_length=8).eval()
    set_mag_weight(model, 0.0)
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(ids).logits
        assert torch.equal(before, window_alone(model)(ids).logits)
    assert not memories(model)
    with pytest.raises(ValueError, match="no memory"):
        window_alone(model)
    out = model.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 43)
