"""The folder of a run: whether it may be written or resumed, and the run.yaml in it."""

from __future__ import annotations

import glob
import shlex
from pathlib import Path

from transformers import TrainerCallback

from tptt.processes import is_first
from tptt.train.checkpoints import broken_checkpoints, last_checkpoint

from .options import RunOptions
from .run_file import load_run

RUN_FILE = "run.yaml"
_TRAINER = "trainer"
_MADE_OF = (
    "lora_r",
    "lora_target_modules",
    "operator",
    "feature_map",
    "feature_width",
    "write_gate",
    "states",
    "mix_gate",
    "cross_gate",
    "layers",
    "memory_only_layers",
    "bidirectional",
    "kv_budget",
    "kv_length",
)
"""Keys that say which weights a model has."""


def check_output(options: RunOptions) -> None:
    """Refuse an output folder that the run must not write to. Where several processes run, the first one looks.

    Raises:
        ValueError: ``output_dir`` is a file, or holds something that is not to be resumed, or that cannot be.
    """
    out = Path(options.output_dir)
    if not is_first():
        return
    if out.is_file():
        raise ValueError(f"output_dir: {out} is a file, it must be a folder")
    if not out.is_dir() or _holds_nothing(out):
        return
    if not options.resume_from_checkpoint:
        raise ValueError(
            f"output_dir: {out} is not empty; name another folder, or resume the run in it "
            "(resume_from_checkpoint: true)"
        )
    if last_checkpoint(out / _TRAINER) is None:
        raise ValueError(
            f"resume_from_checkpoint: {out} holds no checkpoint to go on from (save_steps says how often one is saved)"
        )
    _check_same_model(options, out / RUN_FILE)


def _holds_nothing(out: Path) -> bool:
    """Whether ``out`` holds nothing but what a run leaves that ended before its first checkpoint."""
    names = {x.name for x in out.iterdir()}
    if not names:
        return True
    if _TRAINER not in names or names - {_TRAINER, RUN_FILE} or not (out / _TRAINER).is_dir():
        return False  # a run.yaml alone may be somebody's own
    broken = set(broken_checkpoints(out / _TRAINER))
    return {x.name for x in (out / _TRAINER).iterdir()} <= broken


def _check_same_model(options: RunOptions, file: Path) -> None:
    if not file.is_file():
        return
    before, now = load_run(file).flat(), options.flat()
    changed = [f"{k} {before[k]!r}, not {now[k]!r}" for k in _MADE_OF if before[k] != now[k]]
    if changed:
        raise ValueError(
            f"resume_from_checkpoint: {file} made the model with {', '.join(changed)}; keep these keys, or name "
            "another output_dir for a new run"
        )


def where_it_begins(options: RunOptions) -> str:
    """What a resumed run goes on from, in a line."""
    folder = Path(options.output_dir) / _TRAINER
    last, broken = last_checkpoint(folder), broken_checkpoints(folder)
    passed = f"; passed over as half written: {', '.join(broken)}" if broken else ""
    if last is None:
        return f"no checkpoint in {options.output_dir}: the run starts from the beginning{passed}"
    return f"going on from {last}{passed}"


def how_to_go_on(options: RunOptions) -> str:
    """What a run that was interrupted has saved, and how to resume it, in a line."""
    out = Path(options.output_dir)
    last = last_checkpoint(out / _TRAINER)
    if last is None:
        return "no checkpoint was saved: the run can be started again as it was"
    return f"saved: {last}; go on with: tptt train {shlex.quote(str(out / RUN_FILE))} --resume-from-checkpoint"


class WriteRunFile(TrainerCallback):
    """Writes run.yaml into the output folder when training begins.

    Until then a run may fail or be refused, and what an earlier run has written there stays.
    """

    def __init__(self, options: RunOptions) -> None:
        self.options = options

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if is_first():
            out = Path(self.options.output_dir)
            out.mkdir(parents=True, exist_ok=True)
            (out / RUN_FILE).write_text(_from_anywhere(self.options).to_yaml(), encoding="utf-8")


def _is_here(value: str) -> bool:
    """Whether ``value`` is a path or a pattern of paths, and not the name of something on the hub."""
    return Path(value).expanduser().exists() or glob.has_magic(value)


def _from_anywhere(options: RunOptions) -> RunOptions:
    """``options`` with absolute paths, for a run file that can be resumed from another working directory."""
    here = {name: value for name in ("base_model", "data") if (value := getattr(options, name)) is not None}
    found = {name: str(Path(value).expanduser().absolute()) for name, value in here.items() if _is_here(value)}
    output_dir = str(Path(options.output_dir).absolute())
    return options.changed(resume_from_checkpoint=False, output_dir=output_dir, **found)
