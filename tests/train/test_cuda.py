"""A conversion on a CUDA device, from the base to the saved model."""

import pytest
import torch

import tptt
from tptt.assets import BASE
from tptt.data import stdlib_text
from tptt.evaluation import branch_use
from tptt.hf import memories
from tptt.train import Corpus, TrainingSettings, convert_and_train
from tptt.train.base import load_tokenizer

pytestmark = pytest.mark.gpu
LENGTH, WINDOW = 128, 16
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def corpus():
    tokenizer = load_tokenizer(tptt.TpttConfig(base_model_name=BASE))
    return Corpus.of(tokenizer, stdlib_text(), 100_000, 4 * LENGTH)


@pytest.mark.parametrize("operator", ("delta_rule", "gated_delta_rule", "kda"))
def test_conversion(corpus, tmp_path, operator):
    config = tptt.TpttConfig(
        base_model_name=BASE, lora_config=LORA, max_self_attn_length=WINDOW, feature_width=256, operator=operator
    )
    settings = TrainingSettings(tokens=40 * 4 * LENGTH, per_device_train_batch_size=4, seq_len=LENGTH, probe_steps=20)
    converted = convert_and_train(config, corpus, settings, tmp_path)
    model = converted.model.eval()
    widths = [m.key_features.width for m in memories(model)]
    assert len(set(widths)) > 1 and sum(widths) <= 256 * len(widths)
    losses = [entry["loss"] for entry in converted.history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert converted.probe_results
    again = tptt.TpttModel.from_pretrained(tmp_path, dtype=torch.float32).cuda().eval()
    ids = corpus.text(LENGTH, LENGTH).cuda()
    with torch.no_grad():
        want = model(input_ids=ids).logits
        torch.testing.assert_close(again(input_ids=ids).logits, want, rtol=2e-2, atol=2e-2)
    use = branch_use(model, corpus.recall(), LENGTH, WINDOW, 4, 0)
    assert set(use.recall) and all(0 <= x.mu <= 1 for x in use.layers)


def test_teachers_and_chosen_layers(corpus):
    config = tptt.TpttConfig(
        base_model_name=BASE, lora_config=LORA, max_self_attn_length=WINDOW, feature_width=128, layers="auto"
    )
    settings = TrainingSettings(
        tokens=8 * 2 * LENGTH,
        seq_len=LENGTH,
        probe_steps=0,
        kl_weight=0.5,
        attention_transfer_weight=0.5,
        long_context_weight=1.0,
        kv_budget=0.5,
        tbptt_chunks=2,
        per_device_train_batch_size=1,
    )
    converted = convert_and_train(config, corpus, settings)
    assert converted.choice is not None and all(torch.isfinite(p).all() for p in converted.model.parameters())


def test_session_on_the_device():
    config = tptt.TpttConfig(base_model_name=BASE, max_self_attn_length=WINDOW, mag_weight=0.3)
    model = tptt.TpttModel(config, dtype=torch.float32).cuda().eval()
    ids = torch.randint(2, 2000, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=ids.cuda()).logits[0, -1]
    session = tptt.Session(model).read(ids[0, :250]).read(ids[0, 250:])
    assert session.ask(None, max_new_tokens=1, do_sample=False)[-1] == whole.argmax()
    text = model.generate(ids.cuda(), max_new_tokens=8, do_sample=False)[0, 300:]
    assert torch.equal(tptt.Session(model).read(ids[0]).generate(max_new_tokens=8, do_sample=False).cpu(), text.cpu())
