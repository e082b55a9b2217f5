"""Which layers keep their whole context: the right ones, within the budget, and written down."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.tiny import randomize, tiny_model
from tests.families.checks import assert_invariants
from tests.families.models import tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory, detach_memory
from tptt.assets import BASE
from tptt.convert import LayerChoice, choose_layers, layer_search, windowed
from tptt.convert.divergence import untrained
from tptt.data import TextSplit
from tptt.evaluation import layer_kv, measured_size
from tptt.hf import as_base, memories, memory_layers, softmax_as
from tptt.train import TrainingSettings, convert_and_train

LENGTH, WINDOW = 40, 8
CONFIG = MemoryConfig(max_self_attn_length=WINDOW, mag_weight=0.0)
_SLIDING, _WHOLE = "sliding_attention", "full_attention"
FAMILIES = {
    "llama": {"num_hidden_layers": 4},
    "mistral": {"num_hidden_layers": 4},
    "gpt2": {"n_layer": 4},
    "qwen2": {"num_hidden_layers": 4, "layer_types": [_WHOLE] * 4},
    "qwen3": {"num_hidden_layers": 4, "layer_types": [_WHOLE] * 4},
    "gemma2": {"num_hidden_layers": 4, "layer_types": [_SLIDING, _WHOLE] * 2},
}


def base(family="llama"):
    """A random model of four layers whose logits depend on the context."""
    return tiny_model(family, **FAMILIES[family])


def converted(config=CONFIG, **options):
    return attach_memory(base(**options).requires_grad_(False), config)


def batches(rows=2, length=LENGTH):
    return [{"input_ids": tokens(rows, length, seed)} for seed in range(2)]


def attends(model, strengths):
    """Scale what the attention of each layer gives."""
    with torch.no_grad():
        for layer, strength in zip(model.model.layers, strengths, strict=True):
            layer.self_attn.o_proj.weight.mul_(strength)
    return model


# ---- the right layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("far", range(4))
def test_the_one_layer_that_attends_is_restored_first(far):
    model = attends(converted(), [float(i == far) for i in range(4)])
    choice = choose_layers(model, batches(), 0.45)  # one whole layer and three windows of 8 in 40 are 40 %
    assert choice.whole == (far,) and choice.memory == tuple(i for i in range(4) if i != far)
    first = choice.rounds[0].kl
    assert first[far] == pytest.approx(0, abs=1e-7) and choice.start > 1e-3
    assert all(first[i] == pytest.approx(choice.start) for i in range(4) if i != far)


def test_the_layer_after_the_first_is_measured_beside_it():
    model = attends(converted(), [0, 0.03, 0, 1])
    choice = choose_layers(model, batches(), 0.65)
    assert choice.whole == (3, 1)
    assert set(choice.rounds[1].kl) == {0, 1, 2} and choice.end == pytest.approx(0, abs=1e-7)


def test_the_numbers_are_what_a_hybrid_model_has():
    """A restored layer is a layer without memory and window in a model made so."""
    model, ids = converted(), tokens(3, LENGTH)
    choice = choose_layers(model, [{"input_ids": ids}], 0.65)
    detach_memory(model)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        hybrid = attach_memory(model, choice.harden(CONFIG))
        got = hybrid(input_ids=ids, use_cache=False).logits
    p, q = want[:, :-1].double().softmax(-1), got[:, :-1].double().softmax(-1)
    divergence = float((p * (p / q).log()).sum() / ids[:, 1:].numel())
    assert len(choice.whole) == 2 and choice.end == pytest.approx(divergence, rel=1e-4)


def test_weights_say_which_tokens_count():
    model = attends(converted(), [1, 0, 0, 1])
    rows = batches()
    inside = [x | {"loss_weights": (torch.arange(LENGTH) < WINDOW).float().expand(2, -1)} for x in rows]
    assert choose_layers(model, inside, 0.45).start == pytest.approx(0, abs=1e-7)
    ones = [x | {"loss_weights": torch.ones(2, LENGTH)} for x in rows]
    assert choose_layers(model, ones, 0.45) == choose_layers(model, rows, 0.45)


def test_the_model_is_left_as_it_was():
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    model = randomize(attach_memory(get_peft_model(base(), lora), replace(CONFIG, mag_weight=0.5)))
    model.train()
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    ids = tokens(2, 20)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        choose_layers(model, batches(), 0.1)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, want)
    assert model.training and trains == [n for n, p in model.named_parameters() if p.requires_grad]
    assert_invariants(model.eval(), ("pieces",))


def test_softmax_as_in_a_layer_of_memory_alone():
    model = randomize(converted(replace(CONFIG, mag_weight=0.5, memory_only_layers=(1,))))
    ids = tokens(1, 30)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with as_base(model):
            want = model(input_ids=ids, use_cache=False).logits
        with softmax_as(model, whole=range(4)):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, want)
        with softmax_as(model, none=[0, 1]):
            assert [x.has_softmax for x in memory_layers(model)] == [False, False, True, True]
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_base_without_a_memory_chooses_what_it_chooses_with_one():
    """Windows alone decide: what states will take is known of memories that are not there yet."""
    config = replace(CONFIG, feature_width=64, operator="delta_product")
    want = choose_layers(converted(config), batches(), 0.65)
    plain = base()
    with windowed(plain, config), untrained(plain):
        assert choose_layers(plain, batches(), 0.65) == want
    assert want.state_bytes > 0 and not memory_layers(plain)


def test_the_number_of_passes_is_known_beforehand(monkeypatch):
    model, done = converted(), []
    monkeypatch.setattr(layer_search, "report_progress", lambda *args: Stage(done, *args))
    choose_layers(model, batches(), 0.7)
    (total, *amounts) = done
    assert total == sum(amounts) == 2 * (2 + (1 + 4) + (1 + 3)), "two batches; windows alone, then two rounds"


class Stage:
    def __init__(self, done, name, total, unit):
        self.advance = done.append
        done.append(total)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


# ---- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("budget", "sinks"), [(0.0, 0), (0.15, 0), (0.45, 0), (0.7, 0), (0.7, 2)])
def test_the_budget_holds_to_the_byte_on_a_real_cache(family, budget, sinks):
    plain = base(family)
    ids = tokens(1, LENGTH)

    def held(model):
        """After a long call and one token, when a window is fullest."""
        with torch.no_grad():
            cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
            return model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).past_key_values

    whole = measured_size(held(plain)).kv_bytes
    config = replace(CONFIG, sink_tokens=sinks)
    model = attach_memory(plain.requires_grad_(False), config)
    choice = choose_layers(model, batches(), budget)
    model = attach_memory(detach_memory(model), choice.harden(config))
    cache = held(model)
    assert choice.base_bytes == whole
    assert measured_size(cache).kv_bytes == choice.kv_bytes <= budget * whole
    states = [x.state for x in cache.layers if getattr(x, "state", None) is not None]
    assert sum(x.nbytes for x in states) == choice.state_bytes and len(states) == len(choice.memory)
    assert set(choice.whole).isdisjoint(choice.memory) and set(choice.memory_only) <= set(choice.memory)
    if budget == 0:
        assert choice.memory_only == choice.memory == (0, 1, 2, 3)


def test_the_layers_that_miss_their_softmax_least_get_memory_alone():
    model = attends(converted(), [1, 0, 1, 0])
    choice = choose_layers(model, batches(), 0.1)  # windows everywhere are 20 %
    assert choice.whole == () and choice.memory == (0, 1, 2, 3) and choice.memory_only == (1, 3)
    assert choice.end == pytest.approx(choice.start, abs=1e-7)


def test_layers_of_memory_alone_cost_nothing_until_they_are_chosen():
    model = attends(converted(), [0, 0, 1, 0])
    choice = choose_layers(model, batches(), 0.3, memory_only="all")
    assert choice.whole == (2,) and choice.share == 0.25 and choice.memory_only == choice.memory == (0, 1, 3)
    some = choose_layers(model, batches(), 0.45, memory_only=[0, 2])
    assert some.whole == (2,) and some.memory_only == (0,) and some.share == pytest.approx(0.25 + 2 * 0.05)


def test_more_layers_fit_at_a_longer_length():
    model = converted()
    assert len(choose_layers(model, batches(), 0.5).whole) == 1
    choice = choose_layers(model, batches(), 0.51, length=4000)
    assert len(choice.whole) == 2 and choice.length == 4000 and choice.share <= 0.51


def test_one_layer_keeps_its_memory():
    choice = choose_layers(converted(), batches(), 0.99, length=1_000_000)
    assert len(choice.whole) == 3 and len(choice.memory) == 1


def test_a_layer_whose_own_window_is_as_narrow_is_no_candidate():
    model = converted(replace(CONFIG, max_self_attn_length=12), family="gemma2")  # its own is 12
    choice = choose_layers(model, batches(), 0.9)
    assert set(choice.whole) <= {1, 3} and {0, 2} <= set(choice.memory)


def test_what_a_layer_saves_is_weighed_against_its_bytes():
    """Layer 3 saves most, layer 2 most per byte: of its own window of 12 it lacks four tokens."""
    model = attends(converted(family="gemma2"), [0, 0, 1, 1])
    choice = choose_layers(model, batches(length=60), 0.99)
    first = choice.rounds[0].kl
    assert min(first, key=first.__getitem__) == 3 and choice.whole[:2] == (2, 3)


@pytest.mark.parametrize("operator", ["delta_rule_v", "delta_product"])
def test_states_count_with_what_the_memory_keeps_of_the_last_tokens(operator):
    config = replace(CONFIG, operator=operator)
    model = converted(config)
    with torch.no_grad():
        cache = model(input_ids=tokens(1, LENGTH), use_cache=True).past_key_values
    kept = [x for layer in cache.layers for x in (layer.state, layer.history, layer.seen) if x is not None]
    assert sum(x.nbytes for x in kept) == sum(x.state for x in layer_kv(model, LENGTH))
    assert len(kept) > len(cache.layers)


def test_bytes_of_each_layer():
    kinds = layer_kv(converted(family="gemma2"), 100)
    token = 2 * 2 * 8 * 4  # keys and values, two heads of 8, float32
    assert [x.whole for x in kinds] == [12 * token, 100 * token] * 2
    assert [x.window for x in kinds] == [8 * token] * 4 and all(x.state == 4 * 2 * 2048 * 8 for x in kinds)
    hybrid = layer_kv(converted(replace(CONFIG, layers=(1,))), 100)
    assert [x.window for x in hybrid] == [None, 8 * token, None, None]


def test_a_layer_without_a_memory_counts_whole():
    choice = choose_layers(converted(replace(CONFIG, layers=(1, 2, 3))), batches(), 0.65)
    assert choice.memory == tuple(n for n in (1, 2, 3) if n not in choice.whole) and len(choice.whole) == 1
    assert choice.share == pytest.approx((2 + 2 * 0.2) / 4)


# ---- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [-0.1, 1, 1.0, 2, float("nan"), True, "half", None])
def test_a_budget_out_of_range(budget):
    with pytest.raises(ValueError, match=r"kv_budget must be a number in \[0, 1\)"):
        choose_layers(converted(), batches(), budget)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (replace(CONFIG, max_self_attn_length=None), {}, "set max_self_attn_length"),
        (CONFIG, {"length": 8}, "at 8 tokens no window is narrower"),
        (CONFIG, {"length": 0}, "length must be an integer of 1 or more, got 0"),
        (CONFIG, {"batches": []}, "needs one batch"),
        (CONFIG, {"batches": batches(length=8)}, "rows of 8 tokens show nothing of what lies beyond a window of 8"),
        (CONFIG, {"memory_only": [7]}, r"layers \[7\] that have no memory with a window; valid are \[0, 1, 2, 3\]"),
        (CONFIG, {"memory_only": "some"}, "memory_only must be 'all' or layer numbers, got 'some'"),
    ],
)
def test_what_cannot_be_chosen(config, options, message):
    options = {"batches": batches(), "length": LENGTH} | options
    with pytest.raises(ValueError, match=message):
        choose_layers(converted(config), kv_budget=0.5, **options)


def test_a_base_that_trains_is_no_teacher():
    with pytest.raises(ValueError, match="cannot be its own teacher"):
        choose_layers(attach_memory(base(), CONFIG), batches(), 0.5)


def test_softmax_that_cannot_be_left_out():
    """XGLM computes its softmax itself, in every version of transformers that tptt takes."""
    model = attach_memory(tiny_model("xglm").requires_grad_(False), CONFIG)
    with pytest.raises(ValueError, match=r"20.0% of the base's are left at 40 tokens, over the kv_budget of 5.0%"):
        choose_layers(model, batches(), 0.05)


def test_auto_without_data_says_so(tiny_llama):
    with pytest.raises(ValueError, match=r"layers='auto' is decided by data: .*convert_and_train"):
        attach_memory(base(), MemoryConfig(layers="auto"))
    with pytest.raises(ValueError, match="layers='auto' is decided by data"):
        TpttModel(TpttConfig(base_model_name=str(tiny_llama), layers="auto"))
    with pytest.raises(ValueError, match="layers must be 'all', 'auto', an integer n"):
        MemoryConfig(layers="some")
    with pytest.raises(ValueError, match="memory_only_layers must be 'all' or a list"):
        MemoryConfig(memory_only_layers="auto")


def test_settings():
    assert TrainingSettings(kv_budget=0.25, kv_length=32_768).kv_budget == 0.25
    with pytest.raises(ValueError, match="kv_budget must be a number"):
        TrainingSettings(kv_budget=1.0)
    with pytest.raises(ValueError, match="set kv_budget as well"):
        TrainingSettings(kv_length=512)


# ---- in one call --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place():
    """The embedded base: a Llama of four layers, with a tokenizer."""
    return BASE


@pytest.fixture(scope="module")
def text():
    import argparse
    import inspect

    lines = inspect.getsource(argparse).splitlines(keepends=True)
    documents = ["".join(lines[i : i + 100]) for i in range(0, len(lines), 100)]
    return TextSplit(documents[:-3], documents[-3:])


LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
SETTINGS = {
    "tokens": 256,
    "seq_len": 64,
    "per_device_train_batch_size": 2,
    "warmup_steps": 0,
    "recall_share": 0.0,
    "probe_steps": 0,
}


def convert(place, text, out=None, lora=LORA, settings=SETTINGS, **options):
    config = TpttConfig(base_model_name=str(place), lora_config=lora, **{"max_self_attn_length": WINDOW} | options)
    return convert_and_train(config, text, TrainingSettings(**settings), out)


def test_a_run_with_chosen_layers_goes_on_with_their_widths(place, text, tmp_path):
    def run(resume):
        config = TpttConfig(base_model_name=str(place), lora_config=LORA, max_self_attn_length=WINDOW, layers="auto")
        settings = TrainingSettings(**SETTINGS | {"kv_budget": 0.65, "tokens": 512})
        saves = {"save_strategy": "steps", "save_steps": 1}
        return convert_and_train(config, text, settings, tmp_path, arguments=saves, resume_from_checkpoint=resume)

    whole, again = run(False), run(True)
    assert again.choice is None and list(again.model.config.layers) == list(whole.choice.memory)
    assert len(whole.choice.memory) == 2
    assert len(whole.model.config.feature_width) == 2
    assert list(again.model.config.feature_width) == list(whole.model.config.feature_width)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
def test_chosen_trained_saved_and_loaded(place, text, tmp_path, lora):
    made = convert(place, text, tmp_path / "out", lora, SETTINGS | {"kv_budget": 0.65}, layers="auto")
    choice = made.choice
    assert isinstance(choice, LayerChoice) and len(choice.whole) == len(choice.memory) == 2
    assert choice.length == 64 and f"{choice.share:.1%}" in str(choice)
    assert choice.table().count("\n") == 4
    again = TpttModel.from_pretrained(tmp_path / "out").eval()
    assert tuple(again.config.layers) == choice.memory and tuple(again.config.memory_only_layers) == ()
    assert again.config.max_self_attn_length == WINDOW
    assert [x.layer for x in memory_layers(again)] == list(choice.memory)
    assert again.config.memory_config() == made.model.config.memory_config()
    ids = tokens(1, 30)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, made.model.eval()(input_ids=ids).logits)
    assert_invariants(again)


def test_windows_are_measured_without_their_untrained_memory_at_the_length_asked_for(place, text):
    still = SETTINGS | {"learning_rate": 0.0, "memory_learning_rate": 0.0, "kv_budget": 0.51, "kv_length": 4096}
    low, high = (convert(place, text, settings=still, layers="auto", mag_weight=w).choice for w in (0.1, 0.9))
    assert low == high and low.length == 4096 and len(low.whole) == 2


def test_it_starts_where_naming_the_layers_starts(place, text):
    still = SETTINGS | {"learning_rate": 0.0, "memory_learning_rate": 0.0}
    auto = convert(place, text, settings=still | {"kv_budget": 0.65}, layers="auto")
    named = convert(place, text, settings=still, layers=list(auto.choice.memory))
    assert named.choice is None
    trains = [{n for n, p in x.model.named_parameters() if p.requires_grad} for x in (auto, named)]
    assert trains[0] == trains[1]
    for (name, a), (_, b) in zip(auto.model.state_dict().items(), named.model.state_dict().items(), strict=True):
        # a scale is measured while the memories before it speak, whose own start then matters
        assert torch.equal(a, b) or "output_scale" in name, name


@pytest.mark.parametrize(("budget", "whole"), [(0.3, 1), (0.0, 0)])
def test_the_others_memory_alone(place, text, budget, whole):
    made = convert(
        place,
        text,
        settings=SETTINGS | {"kv_budget": budget},
        layers="auto",
        memory_only_layers="all",
        max_self_attn_length=None,
    )
    assert len(made.choice.whole) == whole and made.choice.share == whole / 4
    assert made.model.config.max_self_attn_length is None
    assert made.model.config.memory_only_layers == made.choice.memory
    assert all(float(m.mag_weight) == 1 for m in memories(made.model))


@pytest.mark.parametrize(
    ("options", "budget", "message"),
    [
        ({"layers": "auto"}, None, "layers='auto' needs TrainingSettings"),
        ({"layers": "all"}, 0.5, "the configuration names them: layers='all', not 'auto'"),
        ({"layers": "auto", "max_self_attn_length": None}, 0.5, "bounds the layers not chosen"),
    ],
)
def test_budget_and_layers_belong_together(place, text, options, budget, message):
    with pytest.raises(ValueError, match=message):
        convert(place, text, settings=SETTINGS | {"kv_budget": budget}, **options)
