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
from tptt.train import ConversionTrainer, TrainingSettings

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
        output_dir=str(folder),
        learning_rate=0.0,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        **options,
    )


def settings(**weights):
    """At a learning rate of 0, and with no more than the ``weights`` in the loss beside cross entropy."""
    still = {"learning_rate": 0.0, "memory_learning_rate": 0.0, "write_gate_weight": 0.0, "fact_weight": 1.0}
    return TrainingSettings(**still | {"write_gate_steps": None, "write_gate_floor": 0.0} | weights)


def conversion(model, folder, weights=None, rows=None, **options):
    return ConversionTrainer(
        model=model, args=arguments(folder, **options), train_dataset=rows, settings=settings(**(weights or {}))
    )


def trained(model, rows, folder, kind=ConversionTrainer, teacher=None, **options):
    """(losses, gradients) of each step at a learning rate of 0."""
    seen = Gradients(model)
    own = {"settings": settings(**(teacher or {}))} if kind is ConversionTrainer else {}
    run = kind(model=model, args=arguments(folder, **options), train_dataset=rows, callbacks=[seen], **own)
    run.train()
    return [x["loss"] for x in run.state.log_history if "loss" in x], seen.found


def assert_same(one, other, tolerance=1e-6):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert len(one[1]) == len(other[1]) > 0
    for a, b in zip(one[1], other[1], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


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


def divergence(logits, base_logits, labels):
    """Sum over all targets of KL(base || model)."""
    p, q = base_logits[:, :-1].softmax(-1), logits[:, :-1].softmax(-1)
    return ((p * (p.log() - q.log())).sum(-1) * (labels[:, 1:] != IGNORE)).sum()


def into_output(model, ids):
    """Logits, and what goes into each output projection."""
    found = []
    for name, child in model.named_modules():
        if name.endswith("o_proj"):
            child.register_forward_pre_hook(lambda m, args: found.append(args[0]))
    return model(input_ids=ids, use_cache=False).logits, found


def test_weighted_loss_by_hand(converted, batch, tmp_path):
    model = converted()
    loss = conversion(model, tmp_path).compute_loss(model, batch)
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
        own = {"settings": settings(**teacher)} if kind is ConversionTrainer else {}
        run = kind(model=converted(), args=arguments(tmp_path), **own)
        results.append(run.evaluate(data)["eval_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_several_devices_average_gradients_of_a_loss_counted_over_all(converted, batch, tmp_path, monkeypatch):
    model, batch = converted(), batch | {"loss_weights": torch.ones(4, 32)}
    losses = []
    for kind, left_out in ((ConversionTrainer, ()), (Trainer, ("loss_weights", "stated"))):
        own = {"settings": settings()} if kind is ConversionTrainer else {}
        run = kind(model=model, args=arguments(tmp_path), **own)
        monkeypatch.setattr(type(run.accelerator), "num_processes", property(lambda self: 4))
        inputs = {k: v for k, v in batch.items() if k not in left_out}
        losses.append(run.compute_loss(model, inputs, num_items_in_batch=torch.tensor(400)))
    torch.testing.assert_close(losses[0], losses[1])


def test_loss_of_the_teacher_by_hand(converted, base, batch, tmp_path):
    batch["labels"][1, :20] = IGNORE
    model = converted().train()
    for one in (base, model):  # so that the KL's two directions are far apart
        one.get_output_embeddings().weight.data *= 20
    run = conversion(model, tmp_path, {"kl_weight": 0.7, "attention_transfer_weight": 0.3})
    loss = run.compute_loss(model, batch)
    base_logits, theirs = into_output(base, batch["input_ids"])
    logits, ours = into_output(model, batch["input_ids"])
    total, count = weighted(logits, batch)
    targets = (batch["labels"][:, 1:] != IGNORE).sum(1)
    assert targets.tolist() == [24, 12, 31, 31]
    first = [WINDOW, 20, WINDOW, WINDOW]
    apart = sum(
        (a[i, n:] - b[i, n:]).pow(2).mean() / b[i, n:].pow(2).mean() * targets[i] / 2
        for a, b in zip(ours, theirs, strict=True)
        for i, n in enumerate(first)
    )
    kl, backwards = divergence(logits, base_logits, batch["labels"]), divergence(base_logits, logits, batch["labels"])
    torch.testing.assert_close(loss, (total + 0.7 * kl + 0.3 * apart) / count)
    assert 0.3 * apart > 0.01 * total and abs(backwards - kl) > 0.03 * kl > 1e-3 * total


@pytest.mark.parametrize("fact_weight", [1.0, 3.0])
def test_the_loss_of_write_gates_by_hand(converted, batch, tmp_path, fact_weight):
    model = converted(feature_width=[16, 48]).train()
    plain, gated = (
        conversion(model, tmp_path, {"write_gate_weight": w, "fact_weight": fact_weight}).compute_loss(model, batch)
        for w in (0.0, 0.6)
    )
    lost, filler = fact_weight * 2 / (1 + fact_weight), 2 / (1 + fact_weight)
    logits = [[], []]
    for memory, found in zip(memories(model), logits, strict=True):
        memory.write_gate.register_forward_hook(lambda m, args, out, found=found: found.append(out))
    model(batch["input_ids"])
    total, targets = 0.0, (batch["labels"][:, 1:] != IGNORE).sum(1)
    for (found,), share in zip(logits, (0.25, 0.75), strict=True):
        for beta, stated, count in zip(found.sigmoid(), batch["stated"], targets, strict=True):
            if (stated >= 0).any():
                written, left = beta[stated == 1].log().mean(), (1 - beta[stated == 0]).log().mean()
                total -= share * count * (lost * written + filler * left)
    torch.testing.assert_close(gated - plain, 0.6 * total / targets.sum(), rtol=1e-4, atol=1e-5)
    assert gated - plain > 0.1


def test_write_gates_learn_what_is_stated(converted, rows, tmp_path):
    model, found = converted(), rows(count=64)
    recall = [found[i] for i in range(64) if found.is_recall(i)]
    ids, stated = (torch.stack([x[k] for x in recall]) for k in ("input_ids", "stated"))

    def apart():
        with torch.no_grad(), write_gates(model) as gates:
            model(ids)
        return [float(x[stated == 1].mean() - x[stated == 0].mean()) for _, x in gates]

    before, weights = apart(), {"write_gate_weight": 1.0, "learning_rate": 0.05, "memory_learning_rate": 0.05}
    conversion(model, tmp_path, weights, found, max_steps=40).train()
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

    monkeypatch.setattr(module, "write_gate_loss", lambda gates, stated, weight: gates[0][1].sum((1, 2)) * 0 + 1)
    options = arguments(tmp_path, max_steps=5)
    recall = rows(count=20, recall_share=1.0)
    gates = settings(write_gate_weight=0.6, write_gate_steps=steps, write_gate_floor=floor)
    Watched(model=converted(), args=options, train_dataset=recall, settings=gates).train()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_a_gate_without_parameters_has_nothing_to_learn(converted, batch, tmp_path):
    model = converted(write_gate="k").train()
    losses = [conversion(model, tmp_path, {"write_gate_weight": w}).compute_loss(model, batch) for w in (0.0, 1.0)]
    assert torch.equal(*losses)


def test_nothing_is_taught_within_the_window(converted, base, batch, tmp_path):
    """With mu = 0 and LoRA at its start the attention of the first layer is the base's up to the window, and only
    there.
    """
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
    run = conversion(model, tmp_path, {"kl_weight": 1.0})
    logits, attention = run._teacher(model, {"input_ids": batch["input_ids"]}, None)
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
    run = conversion(model, tmp_path, {"long_context_weight": 2.0, "tbptt_chunks": pieces})
    seen, compute = [], run.compute_loss
    run.compute_loss = lambda m, x, **k: seen.append(x["loss_weights"]) or compute(m, x, **k)
    run.training_step(model, dict(far_batch), num_items_in_batch=torch.tensor(50))
    expected, got = expected_weights(base, far_batch, 2.0), torch.cat(seen, 1)
    counted = far_batch["labels"] != IGNORE
    torch.testing.assert_close(got[counted], expected[counted], rtol=1e-5, atol=1e-6)
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
    run = conversion(model, tmp_path, {"tbptt_chunks": 2})
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
def test_chunks_and_accumulation(converted, rows, tmp_path, teacher):
    found, teacher = rows(), teacher | {"tbptt_chunks": 2}
    whole = trained(converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=4)
    parts = trained(
        converted(), found, tmp_path, teacher=teacher, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert_same(whole, parts)


@pytest.mark.parametrize("pieces", [2, 8])
def test_the_teacher_of_carried_pieces_reads_the_whole_row(converted, base, batch, tmp_path, monkeypatch, pieces):
    """By piece: the base's logits and attention are those of one pass over the row, the model's too; all beyond the
    window.
    """
    told, apart = [], []
    kl, distance = module.kl_from_base, module.attention_distance
    monkeypatch.setattr(module, "kl_from_base", lambda a, b, w: told.append((a, b)) or kl(a, b, w))
    monkeypatch.setattr(module, "attention_distance", lambda a, b, n: apart.append((a, b, n)) or distance(a, b, n))
    model = converted()
    run = conversion(model, tmp_path, {"tbptt_chunks": pieces, "kl_weight": 1.0, "attention_transfer_weight": 1.0})
    run.training_step(model, dict(batch), num_items_in_batch=torch.tensor(50))
    with torch.no_grad():
        base_logits, theirs = into_output(base, batch["input_ids"])
        logits, ours = into_output(model.eval(), batch["input_ids"])
    for k, whole in enumerate((logits, base_logits)):
        torch.testing.assert_close(torch.cat([x[k] for x in told], 1), whole, rtol=1e-4, atol=1e-5)
    beyond = (torch.arange(32) >= WINDOW) & (batch["labels"] != IGNORE)
    assert torch.equal(torch.cat([counts for *_, counts in apart], 1), beyond)
    for k, whole in enumerate((ours, theirs)):
        for layer in range(2):
            got = torch.cat([x[k][layer] for x in apart], 1)
            torch.testing.assert_close(got, whole[layer], rtol=1e-4, atol=1e-5)


def test_rates_of_memory_and_lora(converted, rows, tmp_path):
    model = converted()
    run = conversion(model, tmp_path, {"learning_rate": 1e-3, "memory_learning_rate": 1e-2}, rows())
    assert run.optimizer is None, "made too early for FSDP"
    run.train()
    found = {id(p): g["initial_lr"] for g in run.optimizer.param_groups for p in g["params"]}
    assert {n: found[id(p)] for n, p in model.named_parameters() if p.requires_grad} == {
        n: 1e-2 if ".liza." in n else 1e-3 for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_optimizer_is_the_one_that_the_arguments_name(converted, rows, tmp_path):
    weights = {"learning_rate": 1e-3, "memory_learning_rate": 1e-2}
    run = conversion(converted(), tmp_path, weights, rows(), optim="sgd", weight_decay=0.1)
    optimizer = run.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    groups = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert groups == [(1e-3, 0.1), (1e-2, 0.0)], "what the memory starts from does not decay"
    own = torch.optim.SGD(run.model.parameters(), lr=0.5)
    run = ConversionTrainer(model=run.model, args=run.args, optimizers=(own, None))
    assert run.create_optimizer() is own


def test_what_cannot_be_taught_or_carried(converted, rows, batch, tmp_path, base):
    with pytest.raises(ValueError, match="need a model with a memory"):
        conversion(base, tmp_path, {"kl_weight": 1.0})
    with pytest.raises(ValueError, match="whole context with the window: set max_self_attn_length"):
        conversion(converted(max_self_attn_length=None), tmp_path, {"long_context_weight": 1.0})
    with pytest.raises(ValueError, match="gradient_checkpointing takes away"):
        conversion(converted(), tmp_path, {"tbptt_chunks": 2}, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="rows of 32 tokens cannot be cut into tbptt_chunks=3"):
        trained(converted(), rows(), tmp_path, teacher={"tbptt_chunks": 3})
    short = {k: v[:, :WINDOW] for k, v in batch.items()}
    model = converted().train()
    with pytest.raises(ValueError, match="beyond the window of 8: rows of 8 tokens are too short"):
        conversion(model, tmp_path, {"attention_transfer_weight": 1.0}).compute_loss(model, short)


# ---- padding and ignored labels --------------------------------------------------------------------------------

TERMS = {"kl_weight": 0.7, "attention_transfer_weight": 0.3, "write_gate_weight": 0.6}
ALONE = ({"kl_weight": 0.7}, {"attention_transfer_weight": 0.3}, {"write_gate_weight": 0.6})


def padded(batch, pad_id, side, mask=True, count=9):
    """``batch`` with ``count`` tokens of padding in all rows but the first, which is as much longer."""
    real = torch.ones(4, 32 + count, dtype=torch.long)
    real[1:, -count:] = 0
    if side == "left":
        real = real.flip(1)
    fillers = {"input_ids": pad_id, "labels": IGNORE, "loss_weights": 1.0, "stated": -1}
    found = {}
    for name, value in batch.items():
        wider = torch.full((4, 32 + count), fillers[name], dtype=value.dtype)
        wider[real.bool()] = torch.cat([value[0], value[0][:count], *value[1:]])
        found[name] = wider
    found["labels"][torch.arange(4), real.argmax(1)] = IGNORE  # nothing before it predicts a first token
    return found | ({"attention_mask": real} if mask else {})


@pytest.mark.parametrize("weights", [*ALONE, TERMS, FAR], ids=str)
@pytest.mark.parametrize(("side", "mask"), [("right", True), ("left", True), ("right", False)])
def test_padding_counts_in_no_term(converted, batch, tmp_path, weights, side, mask):
    """The id of padding is a token like any other, and what the model makes of it must not reach the loss."""
    losses = []
    for pad_id in (0, 7):
        run = conversion(model := converted(), tmp_path, weights)
        step = run.training_step(model, padded(batch, pad_id, side, mask), num_items_in_batch=torch.tensor(50))
        losses.append(step)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [*ALONE, TERMS], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_lose_per_token_what_they_lose_alone(converted, batch, tmp_path, weights, side):
    run, rows = conversion(model := converted().train(), tmp_path, weights), padded(batch, 0, side)
    whole = run.compute_loss(model, rows)
    alone = []
    for i, real in enumerate(rows["attention_mask"].bool()):
        row = {k: v[i][real][None] for k, v in rows.items() if k != "attention_mask"}
        alone.append(run.compute_loss(model, row))
    targets = (rows["labels"] != IGNORE).sum(1)
    torch.testing.assert_close(whole, (torch.stack(alone) * targets).sum() / targets.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_chunks_of_padded_rows_compute_what_the_whole_rows_do(converted, batch, tmp_path, side, monkeypatch):
    """The model and its teacher: both read a row's padding from its first token on."""
    rows, kl = padded(batch, 0, side, count=8), module.kl_from_base
    runs = []
    for chunks in (1, 2):
        told, model = [], converted()
        monkeypatch.setattr(module, "kl_from_base", lambda a, b, w, told=told: told.append((a, b)) or kl(a, b, w))
        run = conversion(model, tmp_path, {"tbptt_chunks": chunks, "kl_weight": 1.0})
        run.training_step(model, dict(rows), num_items_in_batch=torch.tensor(50))
        runs.append([torch.cat([x[k].detach() for x in told], 1) for k in range(2)])
    real = rows["attention_mask"].bool()
    for whole, cut in zip(*runs, strict=True):
        torch.testing.assert_close(cut[real], whole[real], rtol=1e-4, atol=1e-5)


def test_packed_rows_lose_what_they_lost(converted, batch, tmp_path):
    """Packing is told by position_ids, without a mask: every token counts."""
    model = converted().train()
    positions = torch.cat([torch.arange(20), torch.arange(12)]).expand(4, -1)
    run = conversion(model, tmp_path, {"kl_weight": 0.7})
    loss = run.compute_loss(model, batch | {"position_ids": positions})
    with torch.no_grad():
        base_logits, _ = run._teacher(model, {"input_ids": batch["input_ids"], "position_ids": positions}, None)
    logits = model(batch["input_ids"], position_ids=positions).logits
    total, count = weighted(logits, batch)
    torch.testing.assert_close(loss, (total + 0.7 * divergence(logits, base_logits, batch["labels"])) / count)


def test_a_teacher_leaves_frozen_parts_in_eval_mode(converted, batch, tmp_path):
    model = converted().train()
    model.inner.model.layers[0].mlp.eval()
    before = [m.training for m in model.modules()]
    run = conversion(model, tmp_path, TERMS | FAR)
    run._teacher(model, {"input_ids": batch["input_ids"]}, None)
    run._base_losses(model, {"input_ids": batch["input_ids"]}, batch["labels"], True)
    assert [m.training for m in model.modules()] == before and len(set(before)) == 2
