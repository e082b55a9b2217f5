"""A base in 4 bits (QLoRA). Needs the extra `quant`, which `make test-slow` installs."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from tests.families.models import randomize
from tptt import TpttConfig, TpttModel
from tptt.assets import BASE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # bitsandbytes on a CPU warns
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # fmt: skip


def quantised():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def model():
    config = TpttConfig(base_model_name=str(BASE), lora_config=LORA, max_self_attn_length=16)
    return TpttModel(config, quantization_config=quantised())


def test_memory_and_lora_train_on_a_4_bit_base(model, tmp_path):
    assert "Linear4bit" in {type(m).__name__ for m in model.modules()}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert any(".liza." in n for n in before) and any("lora_" in n for n in before)
    ids = torch.randint(5, 2000, (2, 40))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, learning_rate=1e-2, report_to=[], use_cpu=True, logging_steps=1,
        save_strategy="no", disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": r, "labels": r} for r in ids])
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_4_bit_base_saves_and_reloads(model, tmp_path):
    randomize(model).eval()
    ids = torch.randint(5, 2000, (2, 40))
    with torch.no_grad():
        want = model(input_ids=ids).logits
        model.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert "quantization_config" not in json.dumps(saved)  # the next user chooses
        again = TpttModel.from_pretrained(tmp_path / "saved", quantization_config=quantised()).eval()
        assert torch.equal(again(input_ids=ids).logits, want)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
        assert "Linear4bit" not in {type(m).__name__ for m in plain.modules()}
        cut = model.generate(ids[:1, :12], max_new_tokens=20, min_new_tokens=20, do_sample=False)
        plain = model.generate(ids[:1, :12], max_new_tokens=20, min_new_tokens=20, do_sample=False, use_cache=False)
        assert torch.equal(cut, plain)
