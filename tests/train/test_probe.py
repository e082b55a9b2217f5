"""What a probe of the branches says, and when there is one."""

import logging
import re

import pytest
import torch
from transformers import TrainingArguments

from benchmarks.tiny import randomize
from tptt.evaluation import BranchUse, LayerUse, RecallScore, mag_weight
from tptt.hf import memories
from tptt.train import BranchProbe, ConversionTrainer, TrainingSettings
from tptt.train import probe as module
from tptt.train.probe_result import ProbeResult, diagnose

WINDOW = 8


def score(beyond):
    return RecallScore(64, WINDOW, 0.9, beyond, 10, 0 if beyond is None else 10, {})


def use(both=0.9, window=0.1, memory=0.8, with_memory=10.0, without=10.0, layers=((0.4, 1.0), (0.5, 1.2))):
    return BranchUse(
        tuple(LayerUse(*x) for x in layers),
        {"both": score(both), "window only": score(window), "memory only": score(memory)},
        {"both": with_memory, "window only": without, "memory only": 20.0},
    )


def test_all_is_well():
    assert diagnose(use()) == []
    assert diagnose(use(both=None, window=None)) == [], "nothing was asked beyond the window"
    assert diagnose(use(with_memory=None, without=None)) == [], "no text was given"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            use(both=0.12, window=0.1, layers=((0.1, 1.0), (0.3, 1.0))),
            r"bypassed: .* 0\.12 with it and 0\.10 without \(mean mu 0\.200\)",
        ),
        (use(with_memory=10.5), r"harmful to the text: perplexity 10\.50 with it, 10\.00 with the window alone"),
        (use(layers=((0.4, 25.0), (0.5, 1.0), (0.5, 0.01))), r"another size than the softmax's in layers \[0, 2\]"),
    ],
    ids=["bypassed", "harmful", "loud"],
)
def test_one_thing_is_wrong(found, message):
    (said,) = diagnose(found)
    assert re.search(message, said), said


def test_all_three_are_wrong():
    assert len(diagnose(use(both=0.1, with_memory=11.0, layers=((0.1, 99.0),)))) == 3


@pytest.mark.parametrize(
    "found",
    [use(with_memory=float("nan"), both=0.0), use(with_memory=float("inf")), use(layers=((float("nan"), 1.0),))],
)
def test_a_training_that_diverged_is_told_nothing_else(found):
    (said,) = diagnose(found)
    assert "diverged" in said and "Lower learning_rate and memory_learning_rate" in said


def test_memories_without_a_softmax_are_not_compared():
    alone = BranchUse((LayerUse(1.0, None),), {"both": score(0.0)}, {"both": 10.0})
    assert diagnose(alone) == []
    assert ProbeResult(3, alone).logs() == {"recall_beyond/both": 0.0, "perplexity/both": 10.0, "mu/0": 1.0}


def test_logs_of_a_probe():
    logs = ProbeResult(7, use()).logs()
    assert logs["recall_beyond/window_only"] == 0.1 and logs["perplexity/memory_only"] == 20.0
    assert logs["mu/1"] == 0.5 and logs["scale/1"] == 1.2
    assert "perplexity/both" not in ProbeResult(7, use(with_memory=None)).logs()


@pytest.mark.parametrize("found", [use(), use(with_memory=None), use(layers=((1.0, None), (0.5, 1.2)))])
def test_a_result_is_read_back_from_its_logs(found):
    logs = ProbeResult(7, found).logs()
    again = ProbeResult.from_logs(logs | {"step": 7}, 64, WINDOW)
    assert again.step == 7 and again.logs() == logs and diagnose(again.use) == diagnose(found)
    assert ProbeResult.from_logs({"loss": 3.0, "step": 7}, 64, WINDOW) is None


class Held:
    """Corpus whose held-out part is ready made."""

    def __init__(self, rows, text=None):
        self.rows, self.words = rows, text

    def recall(self, formats):
        return self.rows().recall

    def text(self, length, tokens):
        random = torch.randint(64, (2, length), generator=torch.Generator().manual_seed(2))
        return random if self.words is None else self.words


@pytest.fixture
def training(tiny, rows, tmp_path):
    """make(steps, found=None, **options of the probe) -> (run, probe) after training; ``found`` are planted results."""

    def make(steps, found=None, model=None, text=None, **options):
        model = model or randomize(tiny(max_self_attn_length=WINDOW))
        probe = BranchProbe(model, Held(rows, text), 32, WINDOW, **options)
        if found is not None:
            planted = iter(found)
            probe_use = lambda *args, **kwargs: next(planted)  # noqa: E731
            patch.setattr(module, "branch_use", probe_use)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
        )
        settings = TrainingSettings(learning_rate=1e-3, memory_learning_rate=1e-3, write_gate_weight=0.0)
        run = ConversionTrainer(model=model, args=arguments, train_dataset=rows(), callbacks=[probe], settings=settings)
        run.train()
        return run, probe

    with pytest.MonkeyPatch.context() as patch:
        yield make


def test_probes_every_so_often_and_at_the_end(training):
    run, probe = training(5, probe_steps=2)
    assert [x.step for x in probe.probe_results] == [2, 4, 5]
    logged = [x for x in run.state.log_history if "recall_beyond/both" in x]
    assert [x["step"] for x in logged] == [2, 4, 5]
    assert {"recall_beyond/window_only", "perplexity/memory_only", "mu/0", "mu/1", "scale/1"} <= set(logged[0])
    assert sum("loss" in x for x in run.state.log_history) == 5


def test_none_in_between(training):
    assert [x.step for x in training(4, probe_steps=0)[1].probe_results] == [4]


def test_probing_does_not_change_the_training(training, tiny):
    losses = []
    for steps in (0, 1):
        run, probe = training(4, probe_steps=steps)
        losses.append([x["loss"] for x in run.state.log_history if "loss" in x])
        assert run.model.training
    assert losses[0] == losses[1]


def test_a_bypassed_memory_is_found(training, tiny, caplog):
    """Planted: the memory is there and mu is almost 0."""
    model = randomize(tiny(max_self_attn_length=WINDOW, mag_weight=1e-4))
    with caplog.at_level(logging.WARNING, "tptt"):
        _, probe = training(2, model=model, probe_steps=1)
    assert any(w.startswith("the memory is bypassed") for w in probe.warnings)
    assert "the memory is bypassed" in caplog.text
    assert probe.probe_results[-1].use.layers[0].mu < 0.01


def test_a_harmful_memory_is_found(training, tiny):
    """Planted: the text is what the window alone would write, and the memory drowns the softmax in noise."""
    model = randomize(tiny(max_self_attn_length=WINDOW, mag_weight=0.9)).eval()
    model.get_output_embeddings().weight.data *= 50  # sure of itself
    with mag_weight(model, 0.0):
        text = model.generate(torch.tensor([[7], [8]]), max_length=32, do_sample=False, eos_token_id=None)
    for memory in memories(model):
        memory.output_scale.data.fill_(300.0)
    _, probe = training(2, model=model, text=text, probe_steps=1)
    kinds = {w.partition(":")[0] for w in probe.warnings}
    assert "the memory is harmful to the text" in kinds
    assert any("of another size than the softmax's in layers [0, 1]" in w for w in probe.warnings)


def test_warnings_come_once_and_not_before_the_memory_had_time(training, caplog):
    bad = use(both=0.1)
    with caplog.at_level(logging.WARNING, "tptt"):
        _, probe = training(10, [bad] * 3 + [use()] * 7, probe_steps=1)
        assert probe.warnings == []
        _, probe = training(10, [bad] * 10, probe_steps=1)
    assert len(probe.warnings) == 1 and caplog.text.count("bypassed") == 1


def test_training_ends_when_enough_is_recalled(training):
    run, probe = training(9, [use(both=b) for b in (0.2, None, 0.75, 0.9)], probe_steps=2, stop_at_recall=0.75)
    assert run.state.global_step == 6 and [x.step for x in probe.probe_results] == [2, 4, 6]


def test_a_diverging_run_is_told_so_by_its_probe(training, tiny, caplog):
    """Planted: a loss of more nats than a float can take the exponential of."""
    model = randomize(tiny(max_self_attn_length=WINDOW))
    model.get_output_embeddings().weight.data *= 1e6
    with caplog.at_level(logging.WARNING, "tptt"):
        _, probe = training(1, model=model, probe_steps=1)
    assert probe.probe_results[-1].use.perplexity["both"] == float("inf")
    assert [w.partition(":")[0] for w in probe.warnings] == ["the training diverged"]
    assert "the training diverged" in caplog.text


def test_no_probe_where_none_is_asked_for(tiny):
    with pytest.raises(ValueError, match="probe_steps=None asks for no probe"):
        BranchProbe.of(tiny(), None, TrainingSettings(probe_steps=None), 32)
