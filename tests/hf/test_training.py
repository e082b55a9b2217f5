"""The plain Trainer: the workflow document's code, accumulation, resuming, checkpointing, packing; checks 4, 5, 6."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
    set_seed,
)

import tptt
from tests.families.models import assert_near, randomize, tokens
from tptt import TpttModel


class Rows(Dataset):
    def __init__(self, count=12, length=24):
        self.ids = tokens(count, length)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i].tolist()}


def arguments(out, **options):
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "logging_steps": 1,
        "seed": 42,
        "save_strategy": "no",
        "disable_tqdm": True,
    } | options
    return TrainingArguments(output_dir=str(out), **options)


def train(model, tokenizer, out, callbacks=(), resume=None, **options):
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
    trainer = Trainer(
        model=model,
        args=arguments(out, **options),
        train_dataset=Rows(),
        data_collator=collator,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def losses(trainer):
    return [x["loss"] for x in trainer.state.log_history if "loss" in x]


def test_bf16_clipping_checkpointing_train_memory_and_lora(config, tokenizer, tmp_path):
    model = TpttModel(config(max_self_attn_length=6))
    before, frozen = state(model), model.get_input_embeddings().weight.clone()
    trainer = train(model, tokenizer, tmp_path, bf16=True, max_grad_norm=1.0, gradient_checkpointing=True, max_steps=8)
    moved = {n for n, p in state(model).items() if not torch.equal(p, before[n])}
    assert moved == set(before), sorted(set(before) - moved)
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if ".liza." in n)


def test_accumulation_equals_one_batch(config, tokenizer, tmp_path):
    results = []
    for batch, steps in ((4, 1), (1, 4)):
        set_seed(1)
        model = TpttModel(config())
        trainer = train(
            model,
            tokenizer,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=2,
            optim="sgd",
        )
        results.append((state(model), losses(trainer)))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    for name, value in results[0][0].items():
        assert_near(results[1][0][name], value, 1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(config):
    ids, out = tokens(2, 20), []
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for checkpointing in (False, True):
        set_seed(1)
        model = randomize(TpttModel(config(max_self_attn_length=6))).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        out.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert out[0].keys() == out[1].keys()
    for name in out[0]:
        assert_near(out[1][name], out[0][name], 1e-6)


def test_resuming_gives_the_same_model_and_mu(config, tokenizer, tmp_path):
    def callback(model):
        return tptt.AdjustMaGWeightCallback(model, initial_weight=0.1, final_weight=0.7, transition_step=6)

    set_seed(3)
    whole = TpttModel(config())
    full = train(whole, tokenizer, tmp_path / "a", [callback(whole)], save_strategy="steps", save_steps=3)
    set_seed(4)
    part = TpttModel(config())
    resumed = train(part, tokenizer, tmp_path / "b", [callback(part)], resume=str(tmp_path / "a" / "checkpoint-3"))
    for name, value in state(whole).items():
        assert_near(state(part)[name], value, 1e-6)

    def schedule(trainer):
        return [(x["step"], x["mag_weight"]) for x in trainer.state.log_history if "loss" in x]

    assert schedule(full) == schedule(resumed) and len(schedule(full)) == 6
    assert [m for _, m in schedule(full)] == sorted({m for _, m in schedule(full)})


def test_packed_rows_through_trainer_equal_padded_ones(config, tokenizer, tmp_path):
    lengths = (7, 12, 5, 9)
    rows = [{"input_ids": tokens(1, n, seed=n)[0].tolist()} for n in lengths]
    results = []
    for collator in (DataCollatorWithFlattening(), DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)):
        set_seed(1)
        model = randomize(TpttModel(config(max_self_attn_length=6)))
        trainer = Trainer(
            model=model,
            args=arguments(tmp_path, per_device_train_batch_size=4, max_steps=1, optim="sgd"),
            train_dataset=rows,
            data_collator=collator,
        )
        trainer.train()
        results.append((state(model), losses(trainer)))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    for name, value in results[0][0].items():
        assert_near(results[1][0][name], value, 1e-5)


def test_label_smoothing_shifts(config, tokenizer, tmp_path):
    model, ids = randomize(TpttModel(config())).eval(), tokens(2, 16)
    trainer = Trainer(model=model, args=arguments(tmp_path, label_smoothing_factor=0.1))
    inputs = {"input_ids": ids, "labels": ids}
    with torch.no_grad():
        got = trainer.compute_loss(model, dict(inputs))
        logits = model(input_ids=ids).logits[:, :-1]
        want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)
    assert float(got) == pytest.approx(float(want), rel=1e-4)
