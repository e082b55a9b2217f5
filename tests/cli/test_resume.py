import json
import signal

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tptt.cli.main import app
from tptt.cli.probes import ShowProbes


@pytest.fixture
def run_file(small_base, tmp_path):
    """A run of four steps, as a file."""
    path = tmp_path / "run.yaml"
    keys = {
        "base_model": str(small_base),
        "data": str(small_base / "text.txt"),
        "output_dir": str(tmp_path / "out"),
        "seq_len": 128,
        "per_device_train_batch_size": 1,
        "tokens": 4 * 128,
        "max_self_attn_length": 16,
        "lora_r": 2,
        "recall_formats": ["records"],
        "probe_steps": 2,
        "save_steps": 2,
        "feature_width": 16,
        "allocate_widths": False,
    }
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.fixture(scope="module")
def small_base(make_base):
    return make_base(128)


def invoke(*arguments):
    run = CliRunner().invoke(app, ["train", *map(str, arguments)])
    return run.exit_code, " ".join(run.output.split())


def test_a_resume_keeps_the_history_and_passes_over_a_half_written_checkpoint(run_file, tmp_path):
    code, output = invoke(run_file)
    assert code == 0, output
    out = tmp_path / "out"
    (bypassed,) = [x for x in (out / "report.md").read_text().splitlines() if x.startswith("- the memory is bypassed")]

    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint")  # a finished run
    assert code == 0, output
    report = (out / "report.md").read_text()
    assert "| 2 |" in report and "| 4 |" in report and bypassed in report

    half = out / "trainer" / "checkpoint-9999"
    half.mkdir()
    (half / "config.json").write_text("{}")
    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint", "--tokens", 6 * 128)
    assert code == 0, output
    assert "checkpoint-4; passed over as half written: checkpoint-9999" in output
    report = (out / "report.md").read_text()
    assert all(f"| {step} |" in report for step in (2, 4, 6))


def test_a_refused_resume_leaves_the_run_as_it_was(run_file, tmp_path):
    assert invoke(run_file, "--tokens", 256)[0] == 0
    out = tmp_path / "out"
    before = (out / "run.yaml").read_text()
    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint", "--lora-r", 4)
    assert code == 1 and "made the model with lora_r 2, not 4; keep these keys" in output
    code, output = invoke(
        out / "run.yaml", "--resume-from-checkpoint", "--max-self-attn-length", "null", "--long-context-weight", 1
    )
    assert code == 1 and "set max_self_attn_length" in output
    assert (out / "run.yaml").read_text() == before
    assert invoke(out / "run.yaml", "--resume-from-checkpoint", "--tokens", 512)[0] == 0


def test_a_run_that_failed_before_its_first_checkpoint_can_be_started_again(run_file, tmp_path, monkeypatch):
    def fail(self, args, state, control, **kwargs):
        raise RuntimeError("it broke")

    with monkeypatch.context() as broken:
        broken.setattr(ShowProbes, "on_step_end", fail)
        code, output = invoke(run_file)
    assert code == 1 and "it broke" in output and (tmp_path / "out" / "run.yaml").exists()
    code, output = invoke(run_file, "--resume-from-checkpoint", "--tokens", 256)
    assert code == 0 and "the run starts from the beginning" in output


@pytest.fixture
def in_the_foreground():
    """As in a shell's foreground: Ctrl-C is not ignored, as it is in what a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_and_says_how_to_go_on(run_file, tmp_path, monkeypatch, name, code):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def interrupt(self, args, state, control, **kwargs):
        signal.raise_signal(number)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(ShowProbes, "on_optimizer_step", interrupt)
        ended, output = invoke(run_file, "--save-steps", 0)
    out = tmp_path / "out"
    assert ended == code, output
    assert f"checkpoint-1; go on with: tptt train {out}/run.yaml --resume-from-checkpoint" in output
    assert not (out / "report.md").exists()
    assert signal.getsignal(number) is before
    if name != "SIGUSR1":
        return
    ended, output = invoke(out / "run.yaml", "--resume-from-checkpoint")  # as the requeued job does
    assert ended == 0 and "going on from" in output and "at step 4." in (out / "report.md").read_text()


def test_a_run_that_ignores_interrupts_goes_on(run_file, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(ShowProbes, "on_optimizer_step", lambda *args, **kwargs: signal.raise_signal(signal.SIGINT))
        code, output = invoke(run_file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 0, output


def test_a_run_of_relative_paths_is_resumed_from_another_folder(run_file, small_base, tmp_path, monkeypatch):
    monkeypatch.chdir(small_base.parent)
    name = small_base.name
    code, output = invoke(run_file, "--base-model", name, "--data", f"{name}/text.txt", "--output-dir", f"{name}/out")
    assert code == 0, output
    monkeypatch.chdir(tmp_path)
    code, output = invoke(small_base / "out" / "run.yaml", "--resume-from-checkpoint")
    assert code == 0 and "going on from" in output, output
    code, output = invoke(run_file, "--base-model", name)
    assert code == 1 and f"a relative path counts from {tmp_path}" in output and "from_pretrained" not in output


def test_layers_that_the_data_choose_stay_chosen(run_file, tmp_path):
    auto = ("--layers", "auto", "--kv-budget", 0.6)
    code, output = invoke(run_file, *auto, "--dry-run", "--hardware", "cpu")
    assert code == 0 and "counted with 1 that keep their whole context and 1 that have a memory" in output, output
    code, output = invoke(run_file, *auto, "--tokens", 256)
    assert code == 0, output
    out = tmp_path / "out"
    chosen = json.loads((out / "config.json").read_text())["layers"]
    assert len(chosen) == 1 and f"layers {chosen} have a memory" in (out / "report.md").read_text()

    for checkpoint in (out / "trainer").glob("checkpoint-*"):  # as if the text had said otherwise then
        other = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(other | {"layers": [1 - chosen[0]]}))
        weights = load_file(checkpoint / "model.safetensors")
        moved = {
            k.replace(f"layers.{chosen[0]}.self_attn.liza", f"layers.{1 - chosen[0]}.self_attn.liza"): v
            for k, v in weights.items()
        }
        save_file(moved, checkpoint / "model.safetensors", {"format": "pt"})
    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint", "--tokens", 512)
    assert code == 0, output
    assert json.loads((out / "config.json").read_text())["layers"] == [1 - chosen[0]]
    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint", "--kv-budget", 0.5)
    assert code == 1 and "made the model with kv_budget 0.6, not 0.5" in output
    code, output = invoke(run_file, "--layers", "auto", "--output-dir", tmp_path / "other")
    assert code == 1 and "of a run the key kv_budget" in output
