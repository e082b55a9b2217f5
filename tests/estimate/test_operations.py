"""The operations of a training step, counted without weights, against torch's counter on real steps and against numbers
worked out by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from tptt.estimate.hardware import _GPU_MEMORY, HARDWARE
from tptt.estimate.operations import OperationCounter, Operations, Step
from tptt.estimate.passes import MemoryCall, count_memory
from tptt.estimate.resources import step_of
from tptt.estimate.survey import Survey
from tptt.ops import delta_rule
from tptt.train.trainer import ConversionTrainer

aten = torch.ops.aten
FAMILIES = ("llama", "gemma3_text", "olmoe", "gpt2")  # grouped heads, sliding windows, experts, fused projections


def products(a_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    """Of [..., M, K] and [..., K, N]."""
    return 2 * torch.Size(a_shape).numel() * b_shape[-1]


def attention(q, k, v, dropout=0.0, is_causal=False, *, out_shape=None, **kwargs) -> int:
    """The two products of [B, H, T, D] queries with keys and values; a kernel leaves out what lies in the future."""
    return (products(q, (*k[:-2], k[-1], k[-2])) + products((*q[:-1], k[-2]), v)) // (2 if is_causal else 1)


def attention_backward(grad, q, k, v, out, logsumexp, dropout, is_causal, *, out_shape=None, **kwargs) -> int:
    """The weights again, and four gradients."""
    return attention(q, k, v, is_causal=is_causal) * 5 // 2


KNOWN = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten.baddbmm_: lambda _, a, b, *args, out_shape=None, **kwargs: products(a, b),
    aten._grouped_mm: products,
    aten.linalg_solve_triangular: lambda a, b, *args, out_shape=None, **kwargs: torch.Size(b).numel() * a[-1],
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """PyTorch's form with the chunks that a GPU gets, on the CPU."""
    monkeypatch.setattr("tptt.ops.native.unavailable", lambda: "off: a GPU has no C++ kernels")
    monkeypatch.setattr("tptt.ops.chunk.default_chunk_size", lambda key_width, steps=1, device="cpu": 128 // steps)


@pytest.fixture
def counted_step(built, tmp_path, as_on_a_gpu):
    """The operations of one real training step per token."""

    def count(options) -> float:
        settings, model = options.training, built(options)
        rows = settings.per_device_train_batch_size
        arguments = TrainingArguments(
            str(tmp_path / "trainer"),
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            max_steps=1,
            save_strategy="no",
            per_device_train_batch_size=rows,
            gradient_checkpointing=settings.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        ids = torch.randint(3, 60, (rows, settings.seq_len))
        data = [{"input_ids": x, "labels": x, "loss_weights": torch.ones(len(x)), "stated": x * 0 - 1} for x in ids]
        trainer = ConversionTrainer(model=model, args=arguments, settings=settings, train_dataset=data)
        with FlopCounterMode(display=False, custom_mapping=KNOWN) as counter:
            trainer.train()
        return counter.get_total_flops() / ids.numel()

    return count


def assert_as_counted(options, counted_step):
    found = Survey(options).operations(step_of(options, 64))
    assert found.total == pytest.approx(counted_step(options), rel=1e-3)
    assert min(found.base, sum(found.memory.values())) > 0.1 * found.total


SMALL = {"feature_width": 64}  # or the memories would hide the base


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(
    "changes", [{}, {"max_self_attn_length": None}, {"gradient_checkpointing": True}, {"kl_weight": 0.1}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_of_a_real_step(family, changes, options_of, counted_step):
    assert_as_counted(options_of(family, **SMALL, **changes), counted_step)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": "eager", "max_self_attn_length": None, "gradient_checkpointing": True},
        {"max_self_attn_length": 40},  # more than half a row: a mask of all pairs
        {"sink_tokens": 2},
        {"attention_transfer_weight": 0.1},
        {"long_context_weight": 1.0, "recall_share": 0.0},
        {"lora_r": 0},
        {"memory_only_layers": [0]},
        {"layers": [1], "operator": "delta_product"},
        {"operator": "kda"},
    ],
    ids=str,
)
def test_operations_of_other_trainings_are_those_of_a_real_step(changes, options_of, counted_step):
    assert_as_counted(options_of("llama", **SMALL, **changes), counted_step)


def test_operations_of_a_llama_by_hand(options_of):
    """Without a window, LoRA or gates: two products a parameter forward, twice as many backward, and the attention."""
    options = options_of(
        "llama",
        max_self_attn_length=None,
        lora_r=0,
        layers=[1],
        feature_map="silu",
        mix_gate="none",
        write_gate="constant",
    )
    survey = Survey(options)
    hidden, heads, kv_heads, width, mlp, vocabulary = 32, 4, 2, 8, 48, 61
    weights = 2 * (hidden * (2 * heads + 2 * kv_heads) * width + 3 * hidden * mlp) + hidden * vocabulary
    attention = 2 * 2 * heads * width * 64 // 2  # two products with the 64 keys of a row, of which half are in the past
    found = survey.operations(Step(3, 64))
    assert found.base == 6 * weights + 2 * attention * (1 + 5 / 2)
    frozen = Survey(options.changed(lora_r=2))
    plain, taught = (frozen.operations(Step(3, 64, teacher=x)) for x in (False, True))
    assert taught.base == plain.base + 2 * weights + 2 * attention and taught.memory == plain.memory


def test_windows_by_hand(options_of):
    """Causal attention leaves out what lies in the future, a mask of all pairs nothing; blocks of a window of 8 have 16
    keys."""
    base = {
        window: Survey(options_of("llama", max_self_attn_length=window)).operations(Step(3, 64)).base
        for window in (None, 40, 8)
    }
    heads, width, layers = 4, 8, 2
    per_key = layers * (1 + 5 / 2) * 2 * 2 * heads * width
    assert base[40] - base[None] == pytest.approx(per_key * (64 - 32))
    assert base[8] - base[None] == pytest.approx(per_key * (16 - 32))


def test_a_memory_by_hand(options_of):
    """Linear attention with the keys as features: scores and values within a chunk, and reading and writing the state;
    in the backward pass each product has two, and the segments are kept."""
    options = options_of(
        "llama",
        operator="linear_attention",
        feature_map="silu",
        mix_gate="none",
        write_gate="constant",
        max_self_attn_length=None,
    )
    model = Survey(options).model
    memory = model.inner.model.layers[0].self_attn.liza
    rows, tokens, heads, kv_heads, width = 3, 64, 4, 2, 8
    call = MemoryCall(
        *(
            (torch.Size((rows, tokens, *x)), torch.bfloat16, True)
            for x in ((heads, width), (32,), (kv_heads, width), (kv_heads, width))
        )
    )
    forward = count_memory(memory, call, train=False)
    chunk = 64  # no more than there are tokens
    of_queries = 2 * heads * width * (2 * chunk + width)  # scores, values; the state that is read
    of_keys = 2 * kv_heads * width * width  # the state that is written
    assert forward == {torch.float32: rows * tokens * (of_queries + of_keys)}


def test_recomputed_activations_cost_a_forward_pass_of_the_memories(options_of):
    survey = Survey(options_of("llama"))
    plain, recomputed = (survey.operations(Step(3, 64, recompute=x)) for x in (False, True))
    assert recomputed.base > plain.base
    memory, call = next(iter(survey._counter.counted(3, 64, True).calls.items()))
    forward = count_memory(memory, call, train=False)
    for dtype, count in forward.items():
        more = 3 * 64 * (recomputed.memory[dtype] - plain.memory[dtype])
        assert more >= 2 * count  # two layers, and what their gates compute
        assert more == pytest.approx(2 * count, rel=0.1)


def test_far_weights_are_passes_of_the_base_over_the_text_rows(options_of):
    """One with its whole context, one with the window alone."""
    counter = OperationCounter(Survey(options_of("llama")).model)
    plain, half, every = (counter.per_token(Step(3, 64, text=x)).base for x in (0.0, 0.5, 1.0))
    passes = (counter.counted(3, 64, train=False, base=x).operations[torch.bfloat16] for x in ("whole", "window"))
    whole, window = (x / (3 * 64) for x in passes)
    assert every - plain == pytest.approx(whole + window) and whole > window
    assert half - plain == pytest.approx((whole + window) / 2)


def test_nothing_is_left_on_the_model(options_of):
    survey = Survey(options_of("gemma3_text"))
    survey.operations(Step(3, 64, recompute=True, teacher=True))
    assert all(p.grad is None for p in survey.model.parameters()) and survey.model.training
    assert not any("forward" in vars(m) for m in survey.model.modules())
    assert not survey.model.is_gradient_checkpointing


def test_the_assumed_share_of_a_gpu_s_peak_is_the_measured_one():
    """ "Operators, NVIDIA H200" in benchmarks/RESULTS.md: 25 ms for this call, on a card of 67 TFLOP/s in float32 and
    float64."""
    shapes = {"q": (2, 4096, 8, 2048), "k": (2, 4096, 4, 2048), "v": (2, 4096, 4, 64), "beta": (2, 4096, 4)}
    with FlopCounterMode(display=False, custom_mapping=KNOWN) as counter, torch.device("meta"):
        read, _ = delta_rule(**{n: torch.empty(x, requires_grad=True) for n, x in shapes.items()})
        read.sum().backward()
    assert counter.get_total_flops() / (25e-3 * 67e12) == pytest.approx(_GPU_MEMORY, abs=0.005)
    assert all(x.memory_utilisation == _GPU_MEMORY for name, x in HARDWARE.items() if name != "cpu")


def test_totals():
    found = Operations(2.0, {torch.float32: 3.0, torch.float64: 0.5})
    assert found.total == 5.5
