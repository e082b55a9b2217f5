"""The arms change what they say that they change."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.conversion import changes, half_life
from benchmarks.conversion.second_write import second_write
from benchmarks.conversion.sinks import clamped_sinks
from tptt import TpttConfig, TpttModel
from tptt.assets import BASE
from tptt.convert.lora import lora_config
from tptt.hf import memories
from tptt.hf.compat import attention_implementation
from tptt.memory.features import MAPS
from tptt.memory.update import Tokens


def remembering(**options):
    """The embedded base with small memories."""
    config = TpttConfig(base_model_name=str(BASE), max_self_attn_length=16, feature_width=64, **options)
    return TpttModel(config, dtype=torch.float32)


def test_a_convolution_begins_as_none():
    model, ids = remembering(), torch.arange(2, 50)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        changes.short_convolution(model)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before)
        memories(model)[1].key_features.kernel[2] = 0.5
        assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, before)
    features = memories(model)[0].key_features
    seen = torch.randn(1, 6, 2, 32)
    late = torch.cat([seen[:, :4], torch.randn(1, 2, 2, 32)], 1)
    assert torch.equal(features(seen)[:, :4], features(late)[:, :4])


def test_decays_begin_at_the_distance_that_the_base_looks_back():
    even = torch.ones(1, 1, 4, 4).tril() / torch.arange(1, 5)[:, None]  # sees 0, 0.5, 1 and 1.5 tokens back
    assert half_life.mean_distances(even).tolist() == [0.75]
    straight = torch.diag(torch.ones(3), -1)[None, None].expand(2, 3, -1, -1)  # one back, where there is one
    assert half_life.mean_distances(straight).tolist() == [0.75] * 3
    lora = lora_config(AutoModelForCausalLM.from_pretrained(BASE))
    model = remembering(lora_config=lora, operator="gated_delta_rule")
    half_life.half_life_by_distance(model, length=64)
    for memory in memories(model):
        left = torch.sigmoid(memory.decay_gate.bias.detach())
        lives = -0.6931 / left.log()
        assert ((lives > 1) & (lives < 33)).all() and lives.shape == (memory.num_states,)
    assert len({round(memory.decay_gate.bias[0].item(), 3) for memory in memories(model)}) == 4
    assert attention_implementation(model.backbone.config) == "sdpa"
    model(input_ids=torch.arange(2, 50)[None]).logits.sum().backward()


def test_a_second_write_begins_next_to_nothing_and_can_take_the_first_back():
    model, ids = remembering(), torch.arange(2, 50)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        second_write(model)
        after = model(input_ids=ids, use_cache=False).logits
        assert 1e-2 < (after - before).abs().max() < 0.2 * before.abs().max()
        for memory in memories(model):
            memory.second_write.gate.bias.fill_(-50.0)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before, rtol=1e-3, atol=1e-3)
        memory = memories(model)[0]
        memory.second_write.gate.bias.fill_(50.0)
        memory.second_write.of_values.zero_()
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[1, 3:] = False
        width, hidden = memory.head_dim, memory.write_gate.weight.shape[1]
        k, v = torch.randn(2, 2, 5, memory.num_key_value_heads, width)
        writes = memory.update(Tokens(torch.randn(2, 5, hidden), k, v, mask))
        assert writes.k.shape[2] == 2 and not writes.beta[1, 3:].any()
        for key in writes.k[:, 2:3, 0], writes.k[:, 2:3, 1]:  # of the last token that writes in both rows
            first = writes._replace(**{name: getattr(writes, name)[:, :3] for name in ("k", "v", "beta")}, real=None)
            state = first.run(writes.k[:, :3, 0], None)[1]
            assert torch.einsum("bthk,bhkv->bthv", key, state).abs().max() < 1e-4


def test_clamped_sinks_are_as_far_as_in_a_cache_that_numbers_what_it_holds(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()
    base.save_pretrained(tmp_path)
    config = TpttConfig(base_model_name=str(tmp_path), max_self_attn_length=6, sink_tokens=2, mag_weight=0.0)
    model, ids = TpttModel(config, dtype=torch.float32).eval(), torch.randint(50, (2, 30))
    held = torch.cat([ids[:, :2], ids[:, -6:]], 1)
    with torch.no_grad():
        far = model(input_ids=ids, use_cache=False).logits[:, -1]
        clamped_sinks(model)
        wanted, found = base(input_ids=held).logits[:, -1], model(input_ids=ids, use_cache=False).logits[:, -1]
        near = model(input_ids=held, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(near, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(far, wanted, atol=1e-3)


def test_full_rank_trains_what_lora_adds_to():
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    model = TpttModel(TpttConfig(base_model_name=str(BASE), lora_config=lora, feature_width=64), dtype=torch.float32)
    changes.full_rank(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".liza." not in n and "lora_" not in n}
    assert len(trained) == 4 and all("q_proj" in n for n in trained)


def test_random_maps_know_nothing_of_the_base():
    model = TpttModel(TpttConfig(base_model_name=str(BASE), max_self_attn_length=16), dtype=torch.float32)
    begun = memories(model)[1].key_features.weight.clone()
    changes.random_maps(model)
    fresh = MAPS["fourier"](2, 32, 2048).weight
    assert torch.equal(memories(model)[1].key_features.weight, fresh) and not torch.allclose(begun, fresh)
