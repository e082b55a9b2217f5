"""A converted model as its own base, in several families."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.tiny import randomize, tiny_model
from tests.families.models import build, tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory, calibrate, set_mag_weight
from tptt.hf import as_base, attention_outputs, memories, softmax_squares

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "phi3": ["qkv_proj", "o_proj"],
}
OUTPUT = {
    "llama": "attn.o_proj",
    "qwen2": "attn.o_proj",
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "phi3": "attn.o_proj",
}
IDS = tokens(2, 24)
WINDOW = 6


def make_base(family):
    return build(family) if family in ("llama", "qwen2", "gpt2") else tiny_model(family)


@pytest.fixture(params=TARGETS)
def family(request):
    return request.param


@pytest.fixture
def pair(family, tmp_path):
    """make(**settings) -> the base, and a TpttModel on it with LoRA, everything off its start."""

    def make(**options):
        make_base(family).save_pretrained(tmp_path / "base")
        lora = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 2,
            "lora_dropout": 0.2,
            "target_modules": TARGETS[family],
            "fan_in_fan_out": family == "gpt2",
        }
        config = TpttConfig(base_model_name=tmp_path / "base", lora_config=lora, max_self_attn_length=WINDOW, **options)
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), randomize(TpttModel(config)).eval()

    return make


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False, **options).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_only_layers": [1]},
        {"memory_only_layers": "all"},
        {"mag_weight": 1.0, "mix_gate": "none"},
        {"layers": [1]},
        {"sink_tokens": 2},
    ],
    ids=str,
)
def test_it_is_the_base_bit_for_bit_and_comes_back(pair, options):
    base, model = pair(**options)
    before = logits(model)
    for _ in range(2):
        with as_base(model) as same:
            assert same is model
            assert torch.equal(logits(model), logits(base))
        assert torch.equal(logits(model), before)
    assert not torch.allclose(before, logits(base), atol=1e-3), "the memory does nothing: nothing shown"


def test_with_padding(pair):
    base, model = pair()
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    with as_base(model):
        assert torch.equal(logits(model, attention_mask=mask), logits(base, attention_mask=mask))


@pytest.mark.parametrize(
    "options", [{}, {"memory_only_layers": [1]}, {"mag_weight": 1.0, "mix_gate": "none"}, {"sink_tokens": 2}], ids=str
)
def test_with_its_window(pair, options):
    """The base under a mask of its own making: each token sees the window and the sinks."""
    base, model = pair(**options)
    before, place = logits(model), torch.arange(IDS.shape[1])
    behind = place[:, None] - place
    seen = (behind >= 0) & ((behind < WINDOW) | (place < options.get("sink_tokens", 0)))
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None].expand(2, 1, -1, -1)
    with as_base(model, window=True):
        torch.testing.assert_close(logits(model), logits(base, attention_mask=mask), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(base, attention_mask=mask), logits(base), atol=1e-3), "the window hides nothing"


def test_with_its_window_where_some_layers_have_none(pair):
    """They keep their whole context; nothing is left of one way to look when the other is taken."""
    base, model = pair(layers=[1])
    with as_base(model, window=True):
        narrow = logits(model)
    with as_base(model):
        assert torch.equal(logits(model), logits(base))
    torch.testing.assert_close(narrow[:, :WINDOW], logits(base)[:, :WINDOW], rtol=1e-4, atol=1e-5)  # by blocks
    assert not torch.allclose(narrow, logits(base))


def test_with_a_cache_of_its_own(pair):
    """In pieces, between which the model reads them too, with its own cache."""
    base, model = pair()
    caches = [DynamicCache(config=base.config), DynamicCache(config=model.config.get_text_config(decoder=True))]
    found = []
    with torch.no_grad():
        for piece in IDS.split(8, 1):
            with as_base(model):
                found.append(model(input_ids=piece, past_key_values=caches[0], use_cache=True).logits)
            model(input_ids=piece, past_key_values=caches[1], use_cache=True)
        torch.testing.assert_close(torch.cat(found, 1), logits(base), rtol=1e-4, atol=1e-4)
        last = model(input_ids=IDS[:, -1:], past_key_values=caches[1], use_cache=True).logits
        twice = model(input_ids=torch.cat([IDS, IDS[:, -1:]], 1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(last, twice, rtol=1e-4, atol=1e-4)


def test_it_comes_back_after_an_error(pair):
    _, model = pair(memory_only_layers=[1])
    before = logits(model)
    with pytest.raises(RuntimeError, match="on purpose"), as_base(model):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(model), before)


def test_what_attention_gives_out(pair, family):
    """The same numbers as hooks on the base's own output projections, in layer order."""
    base, model = pair()
    theirs: list[torch.Tensor] = []
    for name, child in base.named_modules():
        if name.endswith(OUTPUT[family]):
            child.register_forward_pre_hook(lambda m, args: theirs.append(args[0]))
    expected = logits(base)
    with attention_outputs(model) as ours, as_base(model):
        assert torch.equal(logits(model), expected)
    assert len(ours) == len(theirs) == 2 and all(map(torch.equal, ours, theirs))
    with attention_outputs(model) as mixed:
        logits(model)
    assert len(mixed) == 2 and not torch.allclose(mixed[0], ours[0], atol=1e-3)
    logits(model)
    assert len(mixed) == 2, "it goes on collecting"


def test_attention_outputs_carry_gradients(pair):
    _, model = pair()
    with attention_outputs(model) as found:
        model(input_ids=IDS, use_cache=False)
    sum(x.pow(2).sum() for x in found).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".liza." in n for n in reached) and any("lora_" in n for n in reached)


def test_squares_are_what_calibration_takes(pair):
    """Without the memories: what reaches a layer must not depend on how those below it have begun. What the delta rule
    reads is not normalised, and its scale not measured."""
    _, model = pair()
    before = [m.output_scale.clone() for m in memories(calibrate(model, IDS))]
    assert all(map(torch.equal, before, [m.output_scale for m in memories(calibrate(model, IDS + 1))]))
    _, model = pair(operator="linear_attention")
    set_mag_weight(model, 0.0)
    with softmax_squares(model) as squares:
        logits(model)
    set_mag_weight(model, 0.4)
    calibrate(model, IDS)
    assert all(float(m.mag_weight) == pytest.approx(0.4) for m in memories(model))
    scales = [m.liza.output_scale for m in model.modules() if hasattr(m, "liza")]
    for square, scale in zip(squares, scales, strict=True):
        torch.testing.assert_close(square.sqrt(), scale.detach().flatten(), rtol=1e-5, atol=1e-6)


def test_a_base_that_trains_is_no_teacher():
    model = attach_memory(build("llama"), MemoryConfig())
    with (
        pytest.raises(ValueError, match="weights train, so that it cannot be its own teacher: use lora_config"),
        as_base(model),
    ):
        pass
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".liza." in name)
    expected = logits(build("llama"))
    with as_base(randomize(model)):
        assert torch.equal(logits(model), expected)


def test_attention_without_an_output_projection_of_its_own():
    model = attach_memory(tiny_model("bert", is_decoder=True), MemoryConfig(max_self_attn_length=WINDOW))
    base = tiny_model("bert", is_decoder=True)
    expected = logits(base)
    model.requires_grad_(False)
    with attention_outputs(randomize(model)) as found, as_base(model):
        assert torch.equal(logits(model), expected)
    with attention_outputs(model) as mixed:
        logits(model)
    assert len(found) == len(mixed) > 0
    assert not torch.allclose(found[-1], mixed[-1], atol=1e-4)
