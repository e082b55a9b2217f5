import pytest
import yaml

from tptt.assets import BASE
from tptt.run import base, folder, job
from tptt.run.options import RunOptions


class BegunError(Exception):
    """The run has come to its training."""


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """begin(**keys) runs as far as the training; gives what `convert_and_train` was called with."""

    def call(**keys):
        seen = {}

        def convert_and_train(config, data, settings, output_dir, callbacks, arguments, resume, **loading):
            seen.update(config=config, data=data, settings=settings, callbacks=callbacks, loading=loading)
            raise BegunError

        monkeypatch.setattr(job, "convert_and_train", convert_and_train)
        with pytest.raises(BegunError):
            job.run(RunOptions().changed(output_dir=str(tmp_path / "out"), **keys))
        return seen

    return call


def test_the_base_s_configuration_is_read_once_and_the_model_tried_once(begin, monkeypatch):
    calls = []
    for name in ("base_config", "check_buildable"):
        real = getattr(job, name)
        monkeypatch.setattr(job, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    real = base.AutoConfig.from_pretrained
    monkeypatch.setattr(base.AutoConfig, "from_pretrained", lambda *a, **k: calls.append("AutoConfig") or real(*a, **k))
    begin()
    assert sorted(calls) == ["AutoConfig", "base_config", "check_buildable"]


def test_what_a_run_is_given(begin):
    seen = begin(seq_len=64, lora_r=2, dtype="bfloat16", trust_remote_code=True)
    assert seen["config"].base_model_name == str(BASE) and seen["config"].max_self_attn_length == 16
    assert seen["config"].lora_config["r"] == 2 and seen["settings"].seq_len == 64 and seen["data"] is None
    assert str(seen["loading"]["dtype"]) == "torch.bfloat16" and seen["loading"]["trust_remote_code"] is True


def test_a_data_set_by_configuration_and_split(begin, monkeypatch):
    asked = []
    monkeypatch.setattr(job, "load_text", lambda *args: asked.append(args))
    begin(data="some/set", data_config_name="raw", data_split="validation", column="body")
    assert asked == [("some/set", "body", "raw", "validation")]


def test_the_run_file_names_paths_for_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    for data, written in (
        ("text.txt", str(tmp_path / "text.txt")),
        ("*.txt", str(tmp_path / "*.txt")),
        ("owner/set", "owner/set"),
        (None, None),
    ):
        options = RunOptions(output_dir="out", data=data, resume_from_checkpoint=True)
        folder.WriteRunFile(options).on_train_begin(None, None, None)
        found = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
        assert found["data"] == written and found["output_dir"] == str(tmp_path / "out")
        assert found["resume_from_checkpoint"] is False and found["base_model"] is None
