"""A converted model on a CUDA device: what it computes, trains and generates there."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import tptt
from tptt.assets import BASE
from tptt.hf import memories

pytestmark = pytest.mark.gpu
WINDOW = 32


@pytest.fixture
def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture
def ids():
    return AutoTokenizer.from_pretrained(BASE)("import os\n" * 40, return_tensors="pt")["input_ids"][:, :150].cuda()


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
def test_identity_and_window(base, ids, attention):
    base = base.cuda()
    base.set_attn_implementation(attention)
    with torch.no_grad():
        want = base(input_ids=ids).logits
        tptt.attach_memory(base, tptt.MemoryConfig(mag_weight=0.0))
        assert torch.equal(base(input_ids=ids).logits, want)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_cached_generation(ids, dtype):
    config = tptt.TpttConfig(base_model_name=BASE, max_self_attn_length=WINDOW, mag_weight=0.3)
    model = tptt.TpttModel(config, dtype=dtype).cuda().eval()
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True}
    got = model.generate(ids, **options)
    assert max(layer.keys.shape[2] for layer in got.past_key_values.layers) <= WINDOW
    assert got.sequences.device.type == "cuda"
    if dtype == torch.float32:  # in bfloat16 two equally good tokens may change places
        assert torch.equal(got.sequences, model.generate(ids, use_cache=False, **options).sequences)


def test_bfloat16_training(ids, tmp_path):
    lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    config = tptt.TpttConfig(base_model_name=BASE, lora_config=lora, max_self_attn_length=WINDOW)
    model = tptt.TpttModel(config, dtype=torch.bfloat16)
    before = [p.detach().clone().cpu() for m in memories(model) for p in m.parameters()]
    rows = [{"input_ids": row, "labels": row} for row in ids.repeat(8, 1).cpu()]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        bf16=True,
        gradient_checkpointing=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    after = [p.detach().cpu() for m in memories(model) for p in m.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
