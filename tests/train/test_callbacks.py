import pytest
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import tptt
from tptt.hf import memories


class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = (torch.arange(12) * (index + 1)) % 64
        return {"input_ids": ids, "labels": ids}


class Seen(TrainerCallback):
    """mu of the model in the middle of each step."""

    def __init__(self, model):
        self.model, self.weights = model, {}

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.weights[state.global_step] = [m.mag_weight.item() for m in memories(self.model)]


def trainer(model, callback, folder, steps=4, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy=options.pop("save_strategy", "no"),
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[callback])


def expect(steps, initial=0.1, final=0.5, ramp=4):
    return {n: pytest.approx([initial + (final - initial) * min(1, n / ramp)] * 2) for n in steps}


def test_ramp_is_set_in_every_layer_at_every_step(tiny, tmp_path):
    model = tiny()
    seen = Seen(model)
    run = trainer(model, tptt.AdjustMaGWeightCallback(model, 0.1, 0.5, 4), tmp_path, steps=6)
    run.add_callback(seen)
    run.train()
    assert seen.weights == expect(range(6))


def test_one_element_tuples_as_in_the_workflow(tiny, tmp_path):
    model = tiny()
    callback = tptt.AdjustMaGWeightCallback(model, initial_weight=(0.1,), final_weight=(0.5,), transition_step=(4,))
    assert [callback.schedule(s) for s in (0, 4)] == [0.1, 0.5]


def test_mu_is_in_log_history_and_in_the_printed_logs(tiny, tmp_path, capsys):
    model = tiny()
    run = trainer(model, tptt.AdjustMaGWeightCallback(model, 0.1, 0.5, 4), tmp_path)
    assert any(isinstance(c, PrinterCallback) for c in run.callback_handler.callbacks)
    run.train()
    logged = [x["mag_weight"] for x in run.state.log_history if "loss" in x]
    assert logged == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert capsys.readouterr().out.count("mag_weight") >= 4


def test_a_callback_sets_mu_in_every_training_that_it_serves(tiny, tmp_path):
    """Between two trainings somebody may set another mu, as loading a checkpoint does."""
    model = tiny()
    callback = tptt.LiZACallback(model, mode="constant", final_weight=0.3)
    trainer(model, callback, tmp_path, steps=1).train()
    tptt.set_mag_weight(model, 0.9)
    seen = Seen(model)
    run = trainer(model, callback, tmp_path, steps=1)
    run.add_callback(seen)
    run.train()
    assert seen.weights == {0: pytest.approx([0.3, 0.3])}


def test_resume_goes_on_at_the_mu_of_its_step(tiny, tmp_path):
    model = tiny()
    trainer(
        model, tptt.AdjustMaGWeightCallback(model, 0.1, 0.5, 4), tmp_path, steps=2, save_strategy="steps", save_steps=2
    ).train()
    model = tiny()
    seen = Seen(model)
    run = trainer(model, tptt.AdjustMaGWeightCallback(model, 0.1, 0.5, 4), tmp_path, steps=5)
    run.add_callback(seen)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert seen.weights == expect(range(2, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_weight": -0.1}, "initial_weight.*-0.1"),
        ({"final_weight": 1.5}, "final_weight.*1.5"),
        ({"final_weight": True}, "final_weight"),
        ({"initial_weight": "0.1"}, "initial_weight"),
        ({"initial_weight": float("nan")}, "initial_weight"),
        ({"initial_weight": (0.1, 0.2)}, "initial_weight must be one number"),
        ({"transition_step": 0}, "transition_step.*0"),
        ({"transition_step": 1.5}, "transition_step"),
    ],
)
def test_bad_values_are_named(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tptt.AdjustMaGWeightCallback(tiny(), **options)


def test_a_model_without_memory_is_refused():
    with pytest.raises(ValueError, match="Linear carries no memory"):
        tptt.AdjustMaGWeightCallback(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"mode": "constant", "final_weight": 0.3}, [0.3, 0.3, 0.3]),
        ({"mode": "gradual", "final_weight": (0.5,), "transition_step": 2}, [0.0, 0.25, 0.5]),
        ({"mode": "cyclic", "weight_list": [0.1, 0.2]}, [0.1, 0.2, 0.1]),
        ({"mode": "switch", "final_weight": 0.4}, [0.0, 0.4, 0.0]),
    ],
)
def test_liza_modes(tiny, tmp_path, options, values):
    model = tiny()
    run = trainer(model, tptt.LiZACallback(model, **options), tmp_path, steps=3)
    run.train()
    logged = [x for x in run.state.log_history if "loss" in x]
    assert [x["mag_weight"] for x in logged] == pytest.approx(values)
    assert all(torch.isfinite(torch.tensor(x["grad_norm"])) for x in logged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sudden"}, "unknown mode 'sudden'; valid are constant, gradual, cyclic, switch"),
        ({"mode": "cyclic"}, "needs weight_list"),
        ({"mode": "cyclic", "weight_list": [0.1, 2]}, r"weight_list\[1\].*2"),
        ({"mode": "switch", "switch_period": 0}, "switch_period"),
    ],
)
def test_liza_bad_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tptt.LiZACallback(tiny(), **options)
