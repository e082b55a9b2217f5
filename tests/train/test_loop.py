"""A base and a text in, a converted model out: end to end on a tiny base."""

import json
import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)

from benchmarks.tiny import randomized
from tests.small_llama import small_llama_config
from tools.train_base.train import build_tokenizer
from tptt import TpttConfig, TpttModel, calibrate, progress
from tptt.convert import widths
from tptt.convert.window_only import window_alone
from tptt.data import TextSplit
from tptt.hf import memories
from tptt.hf import model as model_module
from tptt.hf.base_model import load_base
from tptt.hf.configuration import TpttConfig as Configuration
from tptt.train import Corpus, TrainingSettings, begin, begin_conversion, convert_and_train, report_steps, train
from tptt.train.base import check_reach, load_tokenizer, row_length
from tptt.train.begin import rows_to_measure
from tptt.train.window import default_window

LENGTH, WINDOW = 48, 8
WORDS = [a + b + c for a in ("ba", "ce", "di", "fo", "gu") for b in ("la", "me", "ni", "so", "tu") for c in "xyz"]


@pytest.fixture(scope="session")
def split():
    order = torch.randint(len(WORDS), (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [" ".join(WORDS[w] for w in order[i : i + 10]) for i in range(0, len(order), 10)]
    documents = ["\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    return TextSplit(documents[2:], documents[:2])


@pytest.fixture(scope="session")
def base(tmp_path_factory, split):
    """Folder of a random Llama with a tokenizer of its own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(split.train, 500)
    config = small_llama_config(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1)
    randomized(LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(base):
    lora = LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "o_proj"]).to_dict()
    return lambda **options: TpttConfig(
        base_model_name=base, lora_config=lora, **{"max_self_attn_length": WINDOW} | options
    )


def settings(steps=3, rows=2, **options):
    options = {"tbptt_chunks": 1, "gradient_accumulation_steps": 1, "seq_len": LENGTH, "probe_steps": 0} | options
    tokens = steps * rows * LENGTH * options["tbptt_chunks"] * options["gradient_accumulation_steps"]
    return TrainingSettings(tokens=tokens, per_device_train_batch_size=rows, **options)


@pytest.fixture(scope="session")
def corpus(base, split):
    return Corpus.of(AutoTokenizer.from_pretrained(base), split, 4 * LENGTH, 2 * LENGTH)


def state(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def losses(history):
    return [x["loss"] for x in history if "loss" in x]


class Seen(TrainerCallback):
    """The rows of each step, read off the model."""

    def __init__(self, model):
        self.ids = []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model, args, kwargs):
        if model.training:
            self.ids.append(kwargs["input_ids"].clone())


def test_from_a_base_to_a_saved_model(config, split, tmp_path):
    done = convert_and_train(config(), split, settings(steps=4, probe_steps=2), tmp_path / "out")
    assert [x.step for x in done.probe_results] == [2, 4] and done.seconds > 0
    assert len(losses(done.history)) == 4 and all(map(torch.isfinite, torch.tensor(losses(done.history))))
    assert done.probe_results[-1].use.perplexity["both"] is not None
    untrained = state(TpttModel(config()))
    assert all(not torch.equal(p, untrained[n]) for n, p in state(done.model).items()), "something did not train"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(" ".join(WORDS[:30]), return_tensors="pt")["input_ids"]
    assert ids.shape[1] > WINDOW
    with torch.no_grad():
        assert torch.equal(model(ids).logits, done.model.eval()(ids).logits)
    generate = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(model.generate(ids, **generate), done.model.generate(ids, **generate))


def test_nothing_is_written_without_a_folder(config, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = convert_and_train(config(), corpus, settings(steps=1))
    assert done.corpus is corpus and not list(tmp_path.iterdir())


def test_what_was_trained_under_autocast_computes_as_it_is_saved(config, corpus, tmp_path):
    converted = convert_and_train(config(), corpus, settings(bf16=True), tmp_path)
    ids = corpus.text(LENGTH, 2 * LENGTH)
    with torch.no_grad():
        got = converted.model.eval()(input_ids=ids).logits
        want = TpttModel.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    assert torch.equal(got, want)


def test_a_run_repeats_and_its_seed_matters(config, corpus):
    first, again, other = (convert_and_train(config(), corpus, settings(seed=s)) for s in (1, 1, 2))
    assert losses(first.history) == losses(again.history) != losses(other.history)
    assert all(torch.equal(p, state(again.model)[n]) for n, p in state(first.model).items())


@pytest.mark.parametrize(
    "options",
    [{}, {"kl_weight": 0.5, "attention_transfer_weight": 0.5, "mag_weight_start": 0.01, "mag_weight_steps": 3}],
    ids=str,
)
def test_a_resumed_run_equals_an_uninterrupted_one(config, corpus, tmp_path, options, monkeypatch):
    recipe = settings(steps=4, **options)
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole = convert_and_train(config(), corpus, recipe, tmp_path / "whole", arguments=saves)
    shutil.copytree(tmp_path / "whole" / "trainer" / "checkpoint-2", tmp_path / "part" / "trainer" / "checkpoint-2")
    with monkeypatch.context() as patch:
        patch.setattr(widths, "dependence", lambda *args: pytest.fail("widths are measured again"))
        part = convert_and_train(
            config(), corpus, recipe, tmp_path / "part", arguments=saves, resume_from_checkpoint=True
        )
    assert part.model.config.feature_width == whole.model.config.feature_width
    assert len(set(whole.model.config.feature_width)) == 2
    assert losses(part.history) == losses(whole.history)
    for name, value in state(whole.model).items():
        torch.testing.assert_close(state(part.model)[name], value, rtol=1e-6, atol=1e-7, msg=name)
    afresh = convert_and_train(config(), corpus, recipe, tmp_path / "new", resume_from_checkpoint=True)
    assert losses(afresh.history) == pytest.approx(losses(whole.history)), "there was nothing to go on from"


def test_both_arms_see_the_same_rows(config, corpus):
    seen = []
    for memory in (True, False):
        model = TpttModel(config())
        if not memory:
            window_alone(model)
        seen.append(Seen(model).ids)
        train(model, corpus, settings(), LENGTH)
    assert len(seen[0]) == len(seen[1]) == 3
    assert all(map(torch.equal, *seen))


def test_the_weight_rises_where_it_is_to(config, corpus):
    done = convert_and_train(
        config(mag_weight=0.4), corpus, settings(steps=4, mag_weight_start=0.1, mag_weight_steps=2)
    )
    logged = [x["mag_weight"] for x in done.history if "loss" in x]
    assert logged == pytest.approx([0.1, 0.25, 0.4, 0.4])
    assert all(m.mag_weight.item() == pytest.approx(0.4) for m in memories(done.model))
    assert json.loads(done.model.config.to_json_string())["mag_weight"] == 0.4


def test_rates_of_memory_and_lora(config, corpus):
    frozen = convert_and_train(config(), corpus, settings(learning_rate=0.0, memory_learning_rate=1e-2))
    start = state(TpttModel(config()))
    for name, value in state(frozen.model).items():
        if "lora_A" not in name and "output_scale" not in name:  # drawn at random, measured on the text
            assert torch.equal(value, start[name]) is (".liza." not in name), name


def test_rows_longer_than_fits_at_once(config, corpus):
    done = convert_and_train(
        config(), corpus, settings(steps=2, tbptt_chunks=2, kl_weight=0.5, attention_transfer_weight=0.5)
    )
    assert len(losses(done.history)) == 2 and losses(done.history)[0] > 0


def test_a_model_of_memories_alone_is_probed_too(config, corpus):
    done = convert_and_train(config(memory_only_layers="all"), corpus, settings(steps=4))
    assert list(done.probe_results[-1].use.recall) == ["both"] and not done.warnings


def test_the_start_is_measured_on_the_text(config, corpus):
    def start(corpus):
        model = begin_conversion(config(), corpus, settings(allocate_widths=False), LENGTH).model
        return [m.key_features.weight for m in memories(model)]

    on_random_ids = [m.key_features.weight for m in memories(TpttModel(config()))]
    short = replace(corpus, stream=corpus.stream[: 2 * LENGTH + 5])  # less text than is measured otherwise
    found = [on_random_ids, start(corpus), start(short)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not any(map(torch.equal, found[a], found[b]))
    model = TpttModel(config(), base=load_base(config()))
    calibrate(model, corpus.stream[: 4 * LENGTH].view(4, LENGTH), LENGTH)
    assert all(map(torch.equal, [m.key_features.weight for m in memories(model)], start(corpus)))
    sizes = [x.scale for x in convert_and_train(config(), corpus, settings(steps=1)).probe_results[-1].use.layers]
    assert all(0.05 < s < 20 for s in sizes)


class Calls:
    """How often each function was called."""

    def __init__(self, patch, *places):
        self.count = {name: 0 for _, name in places}
        for place, name in places:
            patch.setattr(place, name, self._counting(name, getattr(place, name)))

    def _counting(self, name, function):
        def call(*args, **kwargs):
            self.count[name] += 1
            return function(*args, **kwargs)

        return call


def test_a_run_attaches_once_and_calibrates_once(config, corpus, monkeypatch):
    calls = Calls(
        monkeypatch,
        (model_module, "attach_memory"),
        (model_module, "calibrate"),
        (begin, "calibrate"),
        (begin, "choose_layers"),
        (widths, "dependence"),
        (begin, "load_base"),
    )
    chosen = settings(steps=4, kv_budget=0.7, kv_length=400)
    done = convert_and_train(config(layers="auto"), corpus, chosen)
    assert calls.count == {"attach_memory": 1, "calibrate": 1, "choose_layers": 1, "dependence": 1, "load_base": 1}
    assert len(done.choice.whole) == len(done.model.config.feature_width) == 1
    monkeypatch.undo()
    named = begin_conversion(config(layers=list(done.choice.memory)), corpus, settings(steps=4), LENGTH).model
    (started,), (weight,) = memories(named), [m.key_features.start for m in memories(done.model)]
    assert torch.equal(started.key_features.start, weight), "calibrated as a memory whose layers were named"


def test_beginning_leaves_the_random_state_alone(config, corpus):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (begin_conversion(config(), corpus, settings(seed=s), LENGTH).model for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), want)
    drawn = [next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (one, two, other)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_window_is_chosen_where_it_is_left_open(config, corpus, caplog):
    with caplog.at_level(logging.INFO, "tptt"):
        model = convert_and_train(config(max_self_attn_length="auto"), corpus, settings(steps=1)).model
    assert model.config.max_self_attn_length == LENGTH // 4 == memories(model)[0].config.window
    assert f"max_self_attn_length: {LENGTH // 4} tokens, chosen for rows of {LENGTH}" in caplog.text
    assert [default_window(n) for n in (16, 512, 2048, 2052, 65536)] == [4, 128, 512, 512, 512]
    alone = config(max_self_attn_length="auto", memory_only_layers="all")
    assert convert_and_train(alone, corpus, settings(steps=1)).model.config.max_self_attn_length is None


def test_no_window_is_warned_of(config, corpus, caplog):
    done = convert_and_train(config(max_self_attn_length=None), corpus, settings(steps=1, probe_steps=None))
    (said,) = done.warnings
    assert "no softmax window: the cache holds all that the base's does" in said and said in caplog.text
    assert done.model.config.max_self_attn_length is None and not done.probe_results
    for options in ({}, {"memory_only_layers": "all", "max_self_attn_length": None}):
        assert not convert_and_train(config(**options), corpus, settings(steps=4, probe_steps=None)).warnings


def test_a_window_left_open_is_refused_where_nobody_decides_it(config):
    with pytest.raises(ValueError, match="max_self_attn_length='auto' is decided by the length of training rows"):
        TpttModel(config(max_self_attn_length="auto"))
    with pytest.raises(ValueError, match="max_self_attn_length must be an integer of 1 or more, 'auto' or None"):
        Configuration(max_self_attn_length="wide")


def test_measuring_widths_takes_a_tenth_of_the_run_at_most(config, corpus, monkeypatch, caplog):
    rows = []
    measure = widths.dependence
    monkeypatch.setattr(widths, "dependence", lambda base, batches: rows.append(len(batches)) or measure(base, batches))
    for steps in (2, 4, 7, 14, 100):
        assert rows_to_measure(settings(steps=steps), LENGTH) == min(4, int(0.1 * 3 * 2 * steps / 2))
    assert rows_to_measure(settings(steps=2, tbptt_chunks=2, gradient_accumulation_steps=2), LENGTH) == 2
    short = convert_and_train(config(), corpus, settings(steps=3, probe_steps=None))
    (said,) = short.warnings
    assert "all memories are equally wide" in said and said in caplog.text and not rows
    assert [m.key_features.width for m in memories(short.model)] == [2048, 2048]
    convert_and_train(config(), corpus, settings(steps=7, probe_steps=None))
    assert rows == [2]


class Steps(TrainerCallback):
    """Learning rates and norms of the gradients of each step, as the optimizer gets them."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.rates.append([g["lr"] for g in optimizer.param_groups])
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


def test_rates_rise_and_fall(config, corpus):
    seen = Steps()
    rates = {"learning_rate": 1e-3, "memory_learning_rate": 4e-3, "warmup_steps": 3, "allocate_widths": False}
    convert_and_train(config(), corpus, settings(steps=8, probe_steps=None, **rates), callbacks=[seen])
    lora, memory = ([x[i] for x in seen.rates] for i in (0, -1))
    assert lora[:4] == pytest.approx([0.0, 1e-3 / 3, 2e-3 / 3, 1e-3]) and memory[:4] == pytest.approx(
        [4 * x for x in lora[:4]]
    )
    assert lora[4:] == pytest.approx([5e-4 * (1 + math.cos(math.pi * i / 5)) for i in range(1, 5)])
    short = Steps()
    convert_and_train(config(), corpus, settings(steps=4, probe_steps=None, **rates), callbacks=[short])
    assert [x[0] for x in short.rates][:3] == pytest.approx([0.0, 5e-4, 1e-3]), "half of the steps at most"


def test_gradients_are_clipped(config, corpus):
    seen = Steps()
    loud = settings(steps=3, answer_weight=1000.0, recall_share=1.0, probe_steps=None, allocate_widths=False)
    done = convert_and_train(config(), corpus, loud, callbacks=[seen])
    before = [x["grad_norm"] for x in done.history if "grad_norm" in x]
    assert min(before) > 2 and seen.norms == pytest.approx([1.0] * 3, rel=1e-3)


def test_a_log_says_how_far_the_run_is_and_its_loss(config, corpus, caplog, monkeypatch):
    monkeypatch.setattr(report_steps, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SILENT", 0.0)
    with caplog.at_level(logging.INFO, "tptt.progress"):
        convert_and_train(config(), corpus, settings(steps=4, probe_steps=2))
    lines = [r.message for r in caplog.records if r.name == "tptt.progress"]
    for stage in ("loading", "measuring widths", "calibrating the memory", "training", "probing recall and perplexity"):
        assert any(line.startswith(stage) and "done" in line for line in lines), (stage, lines)
    assert [x.partition(": loss")[0] for x in lines if ": loss" in x] == [
        f"training: step {i} of 4" for i in range(1, 5)
    ]
    monkeypatch.setattr(report_steps, "EVERY", 1000.0)
    caplog.clear()
    with caplog.at_level(logging.INFO, "tptt.progress"):
        convert_and_train(config(), corpus, settings(steps=4, probe_steps=None))
    losses_told = [r.message for r in caplog.records if ": loss" in r.message]
    assert [x.partition(": loss")[0] for x in losses_told] == ["training: step 1 of 4", "training: step 4 of 4"]


def test_memories_become_as_wide_as_their_layers_need(config, corpus, tmp_path):
    def trained(**options):
        model = convert_and_train(config(), corpus, settings(steps=4, **options), tmp_path).model
        saved = TpttModel.from_pretrained(tmp_path).config
        assert saved.memory_config() == model.config.memory_config()
        return [m.key_features.width for m in memories(model)]

    equal, spread = trained(allocate_widths=False), trained()
    assert equal == [2048, 2048] and sum(spread) == 4096 and spread[0] != spread[1]


def test_lengths(base):
    def shape(context):
        return LlamaConfig(max_position_embeddings=context)

    assert row_length(TrainingSettings(seq_len=100), shape(64)) == 100
    assert row_length(TrainingSettings(), shape(64)) == 64
    longest = row_length(TrainingSettings(), shape(1 << 20))
    assert longest == row_length(TrainingSettings(), shape(longest)) == row_length(TrainingSettings(), object())


def test_rows_beyond_a_table_of_positions_are_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, n_positions=32))
    check_reach(gpt2, 32)
    with pytest.raises(ValueError, match="positions for 32 tokens, rows of 33"):
        check_reach(gpt2, 33)
    check_reach(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=4,
            )
        ),
        99,
    )


def test_what_is_missing_is_named(config, tmp_path, corpus):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        convert_and_train(config(), str(tmp_path / "no-such-file.txt"), settings())
    (tmp_path / "short.txt").write_text("too short a text\n" * 500)
    with pytest.raises(ValueError, match="held-out part has .* tokens, rows of 4800 need"):
        convert_and_train(config(), str(tmp_path / "short.txt"), settings(seq_len=4800))
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "silent")
    with pytest.raises((OSError, ValueError), match="silent"):
        load_tokenizer(TpttConfig(base_model_name=tmp_path / "silent"))
