"""The loss of `ConversionTrainer` by hand, its teacher, accumulation and carried rows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import tptt.train.trainer as module
from benchmarks.tiny import randomize
from tptt import TpttConfig, TpttModel
from tptt.convert.window_only import window_alone
from tptt.data import IGNORE
from tptt.hf import memories, write_gates
from tptt.train import ConversionTrainer

WINDOW = 8
GATES = {"write_gate_weight": 0.6}
FAR = {"long_context_weight": 3.0}
TEACHERS = [
    {"kl_weight": 0.7},
    {"attention_transfer_weight": 0.3},
    {"kl_weight": 0.7, "attention_transfer_weight": 0.3},
]


class Gradients(TrainerCallback):
    """Of each step, before anything uses them."""

    def __init__(self, model):
        self.model, self.found = model, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = self.model.named_parameters()
        self.found.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def arguments(folder, **options):
    options = {"max_steps": 2, "per_device_train_batch_size": 4} | options
    return TrainingArguments(
        output_dir=str(folder), learning_rate=0.0, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", max_grad_norm=0.0, remove_unused_columns=False, **options,
    )  # fmt: skip


def trained(model, rows, folder, kind=ConversionTrainer, teacher=None, **options):
    """(losses, gradients) of each step at a learning rate of 0."""
    seen = Gradients(model)
    run = kind(model=model, args=arguments(folder, **options), train_dataset=rows, callbacks=[seen], **(teacher or {}))
    run.train()
    return [x["loss"] for x in run.state.log_history if "loss" in x], seen.found


def assert_same(one, other, tolerance=1e-5):
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    assert len(one[1]) == len(other[1]) > 0
    for a, b in zip(one[1], other[1], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def converted(tiny):
    """make(**options): window and LoRA, everything off its start."""
    return lambda **options: randomize(tiny(**{"max_self_attn_length": WINDOW} | options))


@pytest.fixture
def base(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture
def batch(rows):
    found = rows()
    batch = {k: torch.stack([found[i][k] for i in range(4)]) for k in found[0]}
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, :8] = IGNORE
    return batch


def weighted(logits, batch):
    """Sum of the weighted cross entropies, and how many tokens are predicted."""
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(chosen * weights * (labels != IGNORE)).sum(), (labels != IGNORE).sum()


def divergence(logits, base_logits):
    """Sum over all tokens but the last of each row of KL(base || model)."""
    p, q = base_logits[:, :-1].softmax(-1), logits[:, :-1].softmax(-1)
    return (p * (p.log() - q.log())).sum()


def into_output(model, ids):
    """Logits, and what goes into each output projection."""
    found = []
    for name, child in model.named_modules():
        if name.endswith("o_proj"):
            child.register_forward_pre_hook(lambda m, args: found.append(args[0]))
    return model(input_ids=ids, use_cache=False).logits, found


def test_weighted_loss_by_hand(converted, batch, tmp_path):
    model = converted()
    loss = ConversionTrainer(model=model, args=arguments(tmp_path)).compute_loss(model, batch)
    total, count = weighted(model(batch["input_ids"]).logits, batch)
    torch.testing.assert_close(loss, total / count)


def test_unit_weights_give_trainers_own_loss(converted, rows, tmp_path):
    equal = rows(answer_weight=1.0, filler_weight=1.0)
    plain = [{k: equal[i][k] for k in ("input_ids", "labels")} for i in range(len(equal))]
    assert_same(trained(converted(), equal, tmp_path), trained(converted(), plain, tmp_path, Trainer))
    assert_same(trained(converted(), plain, tmp_path), trained(converted(), plain, tmp_path, Trainer))


def test_evaluation_gives_trainers_own_loss(converted, rows, tmp_path):
    equal = rows(answer_weight=1.0, filler_weight=1.0)
    plain = [{k: equal[i][k] for k in ("input_ids", "labels")} for i in range(len(equal))]
    results = []
    for kind, data, teacher in (
        (ConversionTrainer, equal, {"kl_weight": 1.0, "attention_transfer_weight": 1.0}),
        (Trainer, plain, {}),
    ):
        run = kind(model=converted(), args=arguments(tmp_path), **teacher)
        results.append(run.evaluate(data)["eval_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_several_devices_average_gradients_of_a_loss_counted_over_all(converted, batch, tmp_path, monkeypatch):
    model, batch = converted(), batch | {"loss_weights": torch.ones(4, 32)}
    losses = []
    for kind, left_out in ((ConversionTrainer, ()), (Trainer, ("loss_weights", "stated"))):
        run = kind(model=model, args=arguments(tmp_path))
        monkeypatch.setattr(type(run.accelerator), "num_processes", property(lambda self: 4))
        inputs = {k: v for k, v in batch.items() if k not in left_out}
        losses.append(run.compute_loss(model, inputs, num_items_in_batch=torch.tensor(400)))
    torch.testing.assert_close(losses[0], losses[1])


def test_distilled_and_aligned_loss_by_hand(converted, base, batch, tmp_path):
    model = converted().train()
    run = ConversionTrainer(model=model, args=arguments(tmp_path), kl_weight=0.7, attention_transfer_weight=0.3)
    loss = run.compute_loss(model, batch)
    base_logits, theirs = into_output(base, batch["input_ids"])
    logits, ours = into_output(model, batch["input_ids"])
    total, count = weighted(logits, batch)
    shares = [
        (a[row, WINDOW:] - b[row, WINDOW:]).pow(2).mean() / b[row, WINDOW:].pow(2).mean()
        for a, b in zip(ours, theirs, strict=True)
        for row in range(4)
    ]
    expected = total + 0.7 * divergence(logits, base_logits) + 0.3 * sum(shares) / len(shares) * 4 * 31
    torch.testing.assert_close(loss, expected / count)
    assert 0.3 * sum(shares) > 0.01 and 0.7 * divergence(logits, base_logits) > 0.01


@pytest.mark.parametrize("fact_weight", [1.0, 3.0])
def test_the_loss_of_write_gates_by_hand(converted, batch, tmp_path, fact_weight):
    model = converted(feature_width=[16, 48]).train()
    plain, gated = (
        ConversionTrainer(
            model=model, args=arguments(tmp_path), write_gate_weight=w, fact_weight=fact_weight
        ).compute_loss(model, batch)
        for w in (0.0, 0.6)
    )
    lost, filler = fact_weight * 2 / (1 + fact_weight), 2 / (1 + fact_weight)
    logits = [[], []]
    for memory, found in zip(memories(model), logits, strict=True):
        memory.write_gate.register_forward_hook(lambda m, args, out, found=found: found.append(out))
    model(batch["input_ids"])
    total = 0.0
    for (found,), share in zip(logits, (0.25, 0.75), strict=True):
        for beta, stated in zip(found.sigmoid(), batch["stated"], strict=True):
            if (stated >= 0).any():
                written, left = beta[stated == 1].log().mean(), (1 - beta[stated == 0]).log().mean()
                total -= share * (lost * written + filler * left)
    count = (batch["labels"][:, 1:] != IGNORE).sum()
    torch.testing.assert_close(gated - plain, 0.6 * total / 4 * (4 * 31 / count), rtol=1e-4, atol=1e-5)
    assert gated - plain > 0.1


def test_write_gates_learn_what_is_stated(converted, rows, tmp_path):
    model, found = converted(), rows(count=64)
    recall = [found[i] for i in range(64) if found.is_recall(i)]
    ids, stated = (torch.stack([x[k] for x in recall]) for k in ("input_ids", "stated"))

    def apart():
        with torch.no_grad(), write_gates(model) as gates:
            model(ids)
        return [float(x[stated == 1].mean() - x[stated == 0].mean()) for _, x in gates]

    before, options = apart(), arguments(tmp_path, max_steps=40)
    options.learning_rate = 0.05
    ConversionTrainer(model=model, args=options, train_dataset=found, write_gate_weight=1.0).train()
    assert all(b - a > 0.5 for a, b in zip(before, apart(), strict=True)), (before, apart())


@pytest.mark.parametrize(
    "steps, floor, wanted",
    [
        (None, 0.0, [0.6] * 5),
        (2, 0.0, [0.6, 0.6, 0.6, 0.3, 0.0]),
        (1, 0.0, [0.6, 0.6, 0.0, 0.0, 0.0]),
        (2, 0.25, [0.6, 0.6, 0.6, 0.3, 0.15]),
        (1, 1.0, [0.6] * 5),
        (9, 0.0, [0.6] * 5),
    ],
)
def test_write_gates_are_told_for_so_many_steps(converted, rows, tmp_path, monkeypatch, steps, floor, wanted):
    found = []

    class Watched(ConversionTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            full = super().compute_loss(model, inputs, *args, **kwargs)
            rest = super().compute_loss(model, {k: v for k, v in inputs.items() if k != "stated"}, *args, **kwargs)
            found.append(float((full - rest).detach()))
            return full

    monkeypatch.setattr(module, "write_loss", lambda gates, stated, weight: gates[0][1].sum() * 0 + 1)
    options = arguments(tmp_path, max_steps=5)
    recall = rows(count=20, recall_share=1.0)
    gates = {"write_gate_weight": 0.6, "write_gate_steps": steps, "write_gate_floor": floor}
    Watched(model=converted(), args=options, train_dataset=recall, **gates).train()
    each = found[0] / wanted[0]
    assert each > 0
    torch.testing.assert_close(torch.tensor(found), each * torch.tensor(wanted), rtol=1e-2, atol=1e-4)


def test_a_gate_without_parameters_has_nothing_to_learn(converted, batch, tmp_path):
    model = converted(write_gate="k").train()
    losses = [
        ConversionTrainer(model=model, args=arguments(tmp_path), write_gate_weight=w).compute_loss(model, batch)
        for w in (0.0, 1.0)
    ]
    assert torch.equal(*losses)


def test_nothing_is_taught_within_the_window(converted, base, batch, tmp_path):
    """With mu = 0 and LoRA at its start the attention of the first layer is the base's up to the window, and only there."""
    _, theirs = into_output(base, batch["input_ids"])
    model = converted().eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.zero_()
    model.backbone.get_base_model().model.layers[0].self_attn.liza.mag_weight.zero_()
    _, ours = into_output(model, batch["input_ids"])
    torch.testing.assert_close(ours[0][:, :WINDOW], theirs[0][:, :WINDOW])
    assert (ours[0][:, WINDOW] - theirs[0][:, WINDOW]).abs().max() > 1e-6


def test_the_teacher_is_the_base_bit_for_bit(tiny_llama, base, batch, tmp_path):
    lora = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj", "o_proj"],
        "lora_dropout": 0.3,
        "task_type": "CAUSAL_LM",
    }
    config = TpttConfig(
        base_model_name=tiny_llama, lora_config=lora, max_self_attn_length=WINDOW, memory_only_layers=[1]
    )
    model = randomize(TpttModel(config)).train()
    trains = {n: p.requires_grad for n, p in model.named_parameters()}
    run = ConversionTrainer(model=model, args=arguments(tmp_path), kl_weight=1.0)
    logits, attention = run._taught(model, {"input_ids": batch["input_ids"]}, None)
    expected, theirs = into_output(base, batch["input_ids"])
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert all(map(torch.equal, attention, theirs)) and len(attention) == 2
    assert model.training and trains == {n: p.requires_grad for n, p in model.named_parameters()}
    assert not torch.allclose(model(batch["input_ids"]).logits, expected, atol=1e-3), (
        "the model is the base: nothing shown"
    )


def expected_weights(base, batch, weight):
    """What ``long_context_weight`` makes of the weights of ``batch``, with the base under a mask of our own."""
    ids, weights = batch["input_ids"], batch["loss_weights"].clone()
    behind = torch.arange(32)[:, None] - torch.arange(32)
    seen = (behind >= 0) & (behind < WINDOW)
    mask = (
        torch.zeros(32, 32).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None].expand(len(ids), 1, -1, -1)
    )
    with torch.no_grad():
        found = (base(ids, attention_mask=m).logits[:, :-1].log_softmax(-1) for m in (None, mask))
        whole, near = (x.gather(-1, ids[:, 1:, None])[..., 0] for x in found)
    text = (batch["stated"] == -1).all(1)
    weights[text, 1:] *= 1 + weight * (whole - near)[text].clamp(0, 4)
    return weights


@pytest.fixture
def far_batch(batch):
    """Rows 1 and 3 state something, 0 and 2 are text and do not weigh all the same."""
    assert (batch["stated"] == -1).all(1).tolist() == [True, False, True, False]
    batch["loss_weights"][2, 10:20] = 0.5
    return batch


@pytest.mark.parametrize("pieces", [1, 2])
def test_text_weighs_by_what_the_base_sees_beyond_the_window(converted, base, far_batch, tmp_path, pieces):
    """LoRA, memory and dropout have moved away from the base: they do not count."""
    for parameter in base.parameters():  # a random base of this size sees next to nothing in its context
        parameter.data *= 3
    base.save_pretrained(tmp_path / "loud")
    model = converted(base_model_name=str(tmp_path / "loud"))
    run = ConversionTrainer(model=model, args=arguments(tmp_path), long_context_weight=2.0, tbptt_chunks=pieces)
    seen, compute = [], run.compute_loss
    run.compute_loss = lambda m, x, **k: seen.append(x["loss_weights"]) or compute(m, x, **k)
    run.training_step(model, dict(far_batch), num_items_in_batch=torch.tensor(50))
    expected, got = expected_weights(base, far_batch, 2.0), torch.cat(seen, 1)
    counted = far_batch["labels"] != IGNORE
    torch.testing.assert_close(got[counted], expected[counted], rtol=1e-3, atol=1e-4)
    assert torch.equal(got[1::2], far_batch["loss_weights"][1::2]), "a recall row keeps its weights"
    assert got[0].max() > 1.2, "nothing is told from far"
    assert got[0, :WINDOW].max() < 1.001, "a window sees all of that"
    assert model.training


def test_no_weight_of_far_context_calls_no_teacher(converted, rows, tmp_path, monkeypatch):
    asked, as_base = [], module.as_base
    monkeypatch.setattr(module, "as_base", lambda *args: asked.append(args) or as_base(*args))
    trained(converted(), rows(recall_share=1.0), tmp_path, teacher=FAR)
    trained(converted(), rows(), tmp_path)
    assert not asked
    trained(converted(), rows(), tmp_path, teacher=FAR)
    assert len(asked) == 2 * 2, "twice in each of two steps"


def test_rows_of_users_that_say_nothing_weigh_too(converted, rows, tmp_path):
    plain = [{k: row[k] for k in ("input_ids", "labels")} for row in rows()]
    runs = [trained(converted(), plain, tmp_path, teacher={"long_context_weight": w}) for w in (0.0, 4.0)]
    assert all(a < b for a, b in zip(*(losses for losses, _ in runs), strict=True))


@pytest.mark.parametrize("teacher", [{}, GATES, FAR, *TEACHERS], ids=str)
def test_accumulation_gives_the_same_loss_and_gradients(converted, rows, tmp_path, teacher):
    found = rows()
    whole = trained(converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=8)
    parts = trained(
        converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert_same(whole, parts)


@pytest.mark.parametrize("teacher", [GATES, FAR, *TEACHERS], ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(converted, rows, tmp_path, teacher):
    found = rows()
    plain = trained(converted(), found, tmp_path, teacher=teacher)
    again = trained(converted(), found, tmp_path, teacher=teacher, gradient_checkpointing=True)
    assert_same(plain, again)


def test_a_teacher_changes_the_gradients_of_memory_and_lora(converted, rows, tmp_path):
    found = rows()
    plain, taught = (trained(converted(), found, tmp_path, teacher=t) for t in ({}, TEACHERS[2]))
    moved = {n for n, g in plain[1][0].items() if not torch.allclose(g, taught[1][0][n], rtol=1e-3, atol=0)}
    assert any(".liza." in n for n in moved) and any("lora_" in n for n in moved)


def test_rows_without_weights_are_taught_as_well(converted, rows, tmp_path):
    equal = rows(answer_weight=1.0, filler_weight=1.0)
    plain = [{k: equal[i][k] for k in ("input_ids", "labels")} for i in range(len(equal))]
    assert_same(*(trained(converted(), x, tmp_path, teacher=TEACHERS[2]) for x in (equal, plain)))


class Pieces:
    """The logits of each call that trains, in order."""

    def __init__(self, model):
        self.found = []
        model.register_forward_hook(self._see)

    def _see(self, model, args, output):
        if model.training:
            self.found.append(output.logits.detach())


@pytest.mark.parametrize("window_only", [False, True])
def test_carried_pieces_compute_what_the_whole_row_does(converted, batch, tmp_path, window_only):
    model = converted()
    if window_only:
        window_alone(model)
    run = ConversionTrainer(model=model, args=arguments(tmp_path), tbptt_chunks=2)
    seen = Pieces(model)
    loss = run.training_step(model, dict(batch), num_items_in_batch=torch.tensor(50))
    with torch.no_grad():
        whole = model.eval()(batch["input_ids"], use_cache=False).logits
    assert [x.shape[1] for x in seen.found] == [16, 16]
    torch.testing.assert_close(torch.cat(seen.found, 1), whole, rtol=1e-4, atol=1e-5)
    halves = [{k: v[:, part] for k, v in batch.items()} for part in (slice(16), slice(16, None))]
    sums = [weighted(logits, half)[0] for logits, half in zip(whole.split(16, 1), halves, strict=True)]
    torch.testing.assert_close(loss, sum(sums) / 50, rtol=1e-4, atol=1e-5)


def test_gradients_end_between_pieces(tiny_llama, tmp_path):
    """The loss of the second piece does not reach the tokens of the first, whose embeddings tell."""
    ids = torch.cat([torch.randint(3, 30, (2, 16)), torch.randint(30, 64, (2, 16))], 1)
    weights = torch.cat([torch.zeros(2, 16), torch.ones(2, 16)], 1)
    rows = [{"input_ids": i, "labels": i, "loss_weights": w} for i, w in zip(ids, weights, strict=True)]
    reach = []
    for chunks in (1, 2):
        model = randomize(TpttModel(TpttConfig(base_model_name=tiny_llama, max_self_attn_length=WINDOW)))
        (gradients, *_) = trained(
            model, rows, tmp_path, teacher={"tbptt_chunks": chunks}, per_device_train_batch_size=2
        )[1]
        embeddings = gradients["backbone.model.embed_tokens.weight"].abs().amax(1)
        assert embeddings[30:].max() > 0
        reach.append(float(embeddings[:30].max()))
    assert reach[0] > 0 and reach[1] == 0


@pytest.mark.parametrize("teacher", [{}, TEACHERS[2]], ids=str)
def test_carry_and_accumulation(converted, rows, tmp_path, teacher):
    found, teacher = rows(), teacher | {"tbptt_chunks": 2}
    whole = trained(converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=4)
    parts = trained(
        converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert_same(whole, parts)


@pytest.mark.parametrize("pieces", [2, 8])
def test_the_teacher_of_carried_pieces_reads_the_whole_row(converted, base, batch, tmp_path, monkeypatch, pieces):
    """By piece: the base's logits and attention are those of one pass over the row, the model's too; all beyond the window."""
    told, apart = [], []
    kl, distance = module.kl_from_base, module.attention_distance
    monkeypatch.setattr(module, "kl_from_base", lambda a, b: told.append((a, b)) or kl(a, b))
    monkeypatch.setattr(module, "attention_distance", lambda a, b, n: apart.append((a, b, n)) or distance(a, b, n))
    model = converted()
    run = ConversionTrainer(
        model=model, args=arguments(tmp_path), tbptt_chunks=pieces, kl_weight=1.0, attention_transfer_weight=1.0
    )
    run.training_step(model, dict(batch), num_items_in_batch=torch.tensor(50))
    with torch.no_grad():
        base_logits, theirs = into_output(base, batch["input_ids"])
        logits, ours = into_output(model.eval(), batch["input_ids"])
    for k, whole in enumerate((logits, base_logits)):
        torch.testing.assert_close(torch.cat([x[k] for x in told], 1), whole, rtol=1e-4, atol=1e-5)
    size = 32 // pieces
    beyond = [max(0, WINDOW - start) for start in range(0, 32, size)]
    assert [n for *_, n in apart] == [n for n in beyond if n < size]
    start = 32 - size * len(apart)
    for k, whole in enumerate((ours, theirs)):
        for layer in range(2):
            got = torch.cat([x[k][layer] for x in apart], 1)
            torch.testing.assert_close(got, whole[layer][:, start:], rtol=1e-4, atol=1e-5)


def test_rates_of_memory_and_lora(converted, rows, tmp_path):
    model = converted()
    run = ConversionTrainer(model=model, args=arguments(tmp_path), train_dataset=rows(), rates=(1e-3, 1e-2))
    assert run.optimizer is None, "made too early for FSDP"
    run.train()
    found = {id(p): g["initial_lr"] for g in run.optimizer.param_groups for p in g["params"]}
    assert {n: found[id(p)] for n, p in model.named_parameters() if p.requires_grad} == {
        n: 1e-2 if ".liza." in n else 1e-3 for n, p in model.named_parameters() if p.requires_grad
    }


def test_what_cannot_be_taught_or_carried(converted, rows, batch, tmp_path, base):
    with pytest.raises(ValueError, match="need a model with a memory"):
        ConversionTrainer(model=base, args=arguments(tmp_path), kl_weight=1.0)
    with pytest.raises(ValueError, match="whole context with the window: set max_self_attn_length"):
        ConversionTrainer(model=converted(max_self_attn_length=None), args=arguments(tmp_path), long_context_weight=1.0)
    with pytest.raises(ValueError, match="gradient_checkpointing takes away"):
        ConversionTrainer(model=converted(), args=arguments(tmp_path, gradient_checkpointing=True), tbptt_chunks=2)
    with pytest.raises(ValueError, match="rows of 32 tokens cannot be carried in 3 pieces"):
        trained(converted(), rows(), tmp_path, teacher={"tbptt_chunks": 3})
    short = {k: v[:, :WINDOW] for k, v in batch.items()}
    model = converted().train()
    with pytest.raises(ValueError, match="beyond the window of 8: rows of 8 tokens are too short"):
        ConversionTrainer(model=model, args=arguments(tmp_path), attention_transfer_weight=1.0).compute_loss(
            model, short
        )
