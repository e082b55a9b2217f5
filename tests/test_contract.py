"""What breaks first when transformers moves, in a few minutes; `make contract` runs it in the newest environment.

Beside these: every family (tests/families/test_registry.py), sessions, checkpoints, and what is refused
(tests/hf/test_compat.py).
"""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments

from tests.families.models import assert_near, randomize, tokens
from tptt import AdjustMaGWeightCallback, Session, TpttConfig, TpttModel
from tptt.hf.compat import cache_keyword, cache_of

pytestmark = pytest.mark.contract
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def model(tiny_llama):
    """A converted model with a window of 8 and LoRA, as if it had been trained."""
    config = TpttConfig(base_model_name=str(tiny_llama), lora_config=LORA, max_self_attn_length=8, feature_width=32)
    return randomize(TpttModel(config)).eval()


@pytest.fixture
def no_old_names():
    """Our own calls hand the cache on under the name that the installed transformers wants."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="`(past_key_values|cache_params|layer_past)`", category=FutureWarning)
        yield


def test_decoding_reads_the_state_at_every_step(model, no_old_names):
    """The fault that this project was founded to end: a memory that is empty in every step after the prefill."""
    ids = tokens(2, 24)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        cache, got = DynamicCache(config=model.config.get_text_config(decoder=True)), []
        for start in range(24):
            piece = ids[:, start : start + 1]
            got.append(model(input_ids=piece, use_cache=True, **cache_keyword(model, cache)).logits)
    assert_near(torch.cat(got, 1), want)
    assert all(layer.state is not None and layer.keys.shape[2] <= 8 for layer in cache.layers)


def test_generate_keeps_state_and_window(model, no_old_names):
    out = model.generate(
        tokens(1, 20),
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=0,
        eos_token_id=None,
    )
    cache = cache_of(out)
    assert all(layer.state is not None and layer.keys.shape[2] <= 8 for layer in cache.layers)
    again = model.generate(
        tokens(1, 20), max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(out.sequences, again)


def test_a_session_goes_on(model, no_old_names, tmp_path):
    ids = tokens(1, 40)[0]
    session = Session(model).read(ids[:20]).read(ids[20:])
    want = Session(model).read(ids).ask([5], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(session.ask([5], max_new_tokens=4, do_sample=False, eos_token_id=None), want)
    session.save(tmp_path / "session.safetensors")
    loaded = Session.load(tmp_path / "session.safetensors", model)
    assert torch.equal(loaded.ask([5], max_new_tokens=4, do_sample=False, eos_token_id=None), want)


def test_one_training_step_a_checkpoint_and_a_fresh_process(model, no_old_names, tmp_path):
    """Train, save, load by the Auto class in another process, generate the same tokens."""
    rows = [{"input_ids": row, "labels": row} for row in tokens(4, 24)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        learning_rate=1e-2,
        save_strategy="no",
    )
    ramp = AdjustMaGWeightCallback(model, 0.01, 0.5, 2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[ramp]).train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any("lora_" in n for n in moved) and any(".liza." in n for n in moved)
    assert all("lora_" in n or ".liza." in n for n in moved)
    model.eval()
    model.save_pretrained(tmp_path / "out")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(tokens(1, 20), **options)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    assert torch.equal(loaded.generate(tokens(1, 20), **options), want)
    code = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "ids = torch.tensor(json.loads(sys.argv[2]))\n"
        "print(json.dumps(model.generate(ids, **json.loads(sys.argv[3])).tolist()))\n"
    )
    arguments = [str(tmp_path / "out"), json.dumps(tokens(1, 20).tolist()), json.dumps(options)]
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout.splitlines()[-1]) == want.tolist()
