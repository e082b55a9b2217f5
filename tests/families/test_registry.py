"""The families the project names, and whatever else has a layout of its own, through the checks of `verify`."""

import copy

import pytest
import torch

from benchmarks.families import WINDOW
from benchmarks.tiny import randomized, tiny_model
from tests.families.models import randomize
from tptt import MemoryConfig, attach_memory, calibrate, detach_memory, set_mag_weight
from tptt.evaluation.verify import CHECKS, TOLERANCE, verify
from tptt.hf import UnsupportedAttentionError, find_attention, memories

NAMED = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "olmo",
    "olmo2",
    "olmoe",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "falcon",
    "bloom",
    "opt",
    "stablelm",
    "granite",
    "cohere",
    "starcoder2",
    "smollm3",
    "glm4",
    "gpt_oss",
)
# a layout, a cache or a mask of another kind: latent attention, gated queries, hybrids, text of a multimodal model
OTHERS = (
    "deepseek_v2",
    "deepseek_v3",
    "qwen3_next",
    "gemma4_text",
    "falcon_h1",
    "jamba",
    "codegen",
    "gpt_bigcode",
    "bert",
    "mpt",
    "gemma3",
    "modernbert-decoder",
    "dbrx",
    "git",
    "inkling_text",
)
VARIANTS = {
    "falcon, new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, per head": ("falcon", {"multi_query": False, "num_kv_heads": 4}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "gpt_bigcode, per head": ("gpt_bigcode", {"multi_query": False}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}),
    "opt, narrow": ("opt", {"word_embed_proj_dim": 16}),
    "smollm3, no RoPE": ("smollm3", {"no_rope_layers": [1, 0]}),
}
UNBOUNDED = {"mpt", "falcon, ALiBi", "falcon_h1", "inkling_text"}  # no window here, and why stands in the error
ALL = (*NAMED, *OTHERS, *VARIANTS)


def base_of(name: str):
    family, changes = VARIANTS.get(name, (name, {}))
    return tiny_model(family, **changes)


@pytest.fixture(params=ALL)
def name(request):
    return request.param


def assert_holds(model, plain, checks=tuple(CHECKS)):
    """Every check the base passes is passed with a memory too."""
    ours, bases = verify(model, checks), verify(plain, checks)
    for check in checks:
        if isinstance(bases[check], float) and bases[check] <= TOLERANCE:
            if isinstance(ours[check], ValueError) and "cannot be told where packed rows begin" in str(ours[check]):
                continue
            assert isinstance(ours[check], float), f"{check}: {ours[check]!r}"
            assert ours[check] <= TOLERANCE, check


def test_the_checks_hold(name):
    base = base_of(name)
    assert all(isinstance(v, float) and v <= TOLERANCE for v in verify(base, ("no future", "greedy")).values())
    assert_holds(randomize(attach_memory(copy.deepcopy(base), MemoryConfig(operator="gated_delta_rule"))), base)


def test_the_checks_hold_within_a_window(name):
    base = base_of(name)
    if name in UNBOUNDED:
        with pytest.raises(ValueError, match="cannot be bounded|cannot bound"):
            attach_memory(copy.deepcopy(base), MemoryConfig(**WINDOW)).generate(
                torch.ones(1, 5, dtype=torch.long), max_new_tokens=2
            )
        return
    assert_holds(randomize(attach_memory(copy.deepcopy(base), MemoryConfig(**WINDOW))), base)


@pytest.mark.parametrize("family", NAMED)
def test_eager_attention(family):
    """The named families in the other implementation, within a window."""
    settings = {} if family in UNBOUNDED else WINDOW
    base = tiny_model(family, "eager")
    assert_holds(randomize(attach_memory(copy.deepcopy(base), MemoryConfig(**settings))), base)


@pytest.mark.parametrize("settings", [{}, WINDOW], ids=["full", "window"])
def test_the_memory_is_wired_to_the_projections(name, settings):
    """mu = 0 is the base; at mu = 1 nothing else than the memory counts; without the memory it is the base again."""
    base, ids = base_of(name), torch.randint(3, 60, (2, 20))
    if settings and name in UNBOUNDED:
        settings = {}
    with torch.no_grad():
        want = base(input_ids=ids, use_cache=False).logits
        model = randomize(attach_memory(copy.deepcopy(base), MemoryConfig(mag_weight=0.0, **settings)))
        if not settings:
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, want)
        set_mag_weight(model, 0.5)
        assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, want)
        assert torch.equal(detach_memory(model)(input_ids=ids, use_cache=False).logits, want)
    assert model.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "falcon", "phi3", "opt", "bloom"])
def test_queries_keys_and_values_are_those_of_the_base(family):
    """Attention computed by hand from what the layout cuts out is what the base's own softmax gives (no positions)."""
    model = tiny_model(family, **{"n_layer" if family == "bloom" else "num_hidden_layers": 1})
    (found,) = find_attention(model.base_model)
    sizes, outputs, seen = found.sizes, {}, {}
    for part in sizes.layout.projections:
        getattr(found.module, part).register_forward_hook(lambda m, a, out, part=part: outputs.update({part: out}))
    getattr(found.module, sizes.layout.output).register_forward_pre_hook(lambda m, a: seen.update(softmax=a[0]))
    with torch.no_grad():
        model(input_ids=torch.full((1, 1), 5), use_cache=False)  # one token attends to itself: softmax gives v
        q, k, v = sizes.split(found.module, outputs)
    assert q.shape[2:] == (sizes.heads, sizes.head_dim) and k.shape[2:] == (sizes.kv_heads, sizes.head_dim)
    expanded = v.repeat_interleave(sizes.heads // sizes.kv_heads, 2).flatten(2)
    torch.testing.assert_close(expanded, seen["softmax"])


def test_keys_shared_between_layers_are_refused_by_name():
    model = tiny_model("gemma3n_text")
    with pytest.raises(UnsupportedAttentionError, match=r"layers.2.self_attn .*takes its keys and values from another"):
        attach_memory(model)
    base = copy.deepcopy(model)
    assert_holds(randomize(attach_memory(model, MemoryConfig(layers=[0, 1]))), base)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("zamba2", "is shared between layers"),
        ("hrm_text", "runs several times for each token"),
        ("big_bird", "set attention_type='original_full'"),
        ("xlm", "takes no attention_mask"),
        ("mamba", "has no attention module with a known layout"),
        ("jetmoe", r"its parts are experts .*kv_proj"),
    ],
)
def test_what_a_memory_cannot_follow_is_refused(family, message):
    model = tiny_model(family)
    with pytest.raises(UnsupportedAttentionError, match=message):
        attach_memory(model)
    assert not memories(model)


def test_a_multimodal_model_gets_it_in_its_language_part():
    model = attach_memory(tiny_model("gemma3"))
    names = [n for n, m in model.named_modules() if n.endswith("liza")]
    assert names and all("language_model" in n for n in names)


# ---- encoders ------------------------------------------------------------------------------------------------------


def encoder(kind: str):
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    picture = {"image_size": 16, "patch_size": 4}
    made = {
        "bert": lambda: t.BertModel(t.BertConfig(vocab_size=61, **sizes)),
        "modernbert": lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(vocab_size=61, **sizes, **special)),
        "distilbert": lambda: t.DistilBertModel(
            t.DistilBertConfig(vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        ),
        "t5": lambda: t.T5EncoderModel(
            t.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**sizes, **picture)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**sizes, **picture)),
    }
    torch.manual_seed(0)
    return randomized(made[kind]())


def encoder_input(kind: str) -> dict:
    torch.manual_seed(0)
    if kind in ("vit", "dinov2"):
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    return {"input_ids": torch.randint(3, 61, (2, 20))}


@pytest.mark.parametrize("kind", ["bert", "modernbert", "distilbert", "t5", "vit", "dinov2"])
def test_encoders(kind):
    model, inputs = encoder(kind), encoder_input(kind)
    with torch.no_grad():
        want = model(**inputs)[0]
        if kind not in ("distilbert", "t5"):  # whose attention does not say whether it is causal
            with pytest.raises(UnsupportedAttentionError, match="needs bidirectional=True"):
                attach_memory(copy.deepcopy(model))
        randomize(attach_memory(model, MemoryConfig(bidirectional=True)))
        mixed = calibrate(model, **inputs)(**inputs)[0]
        assert not torch.allclose(mixed, want)
        if "input_ids" in inputs:
            ids = inputs["input_ids"]
            more = torch.randint(3, 61, (2, 6))
            mask = torch.cat([torch.ones_like(ids), torch.zeros_like(more)], 1)
            padded = model(input_ids=torch.cat([ids, more], 1), attention_mask=mask)[0][:, :20]
            torch.testing.assert_close(padded, mixed, rtol=1e-4, atol=1e-4)
        set_mag_weight(model, 0.0)
        assert torch.equal(model(**inputs)[0], want)
        assert torch.equal(detach_memory(model)(**inputs)[0], want)


def test_an_encoders_memory_sees_both_sides():
    model = randomize(attach_memory(encoder("bert"), MemoryConfig(bidirectional=True, mag_weight=1.0)))
    ids = encoder_input("bert")["input_ids"]
    for changed, read in ((2, 15), (15, 2)):
        other = ids.clone()
        other[:, changed] = 3 + (other[:, changed] - 2) % 58
        with torch.no_grad():
            assert not torch.allclose(model(input_ids=ids)[0][:, read], model(input_ids=other)[0][:, read])
    assert all(m.config.bidirectional for m in memories(model))
