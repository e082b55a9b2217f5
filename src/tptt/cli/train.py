"""`tptt train`: one run from a YAML file and flags, or what it would take."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape

from tptt.run.keys import Key, keys

from .console import Debug, errors_told, quiet, say

_PANELS = {"run": "Keys of the run", "memory": "Keys of the memory", "training": "Keys of the training"}
_WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", dict: "MAPPING", tuple: "LIST", Sequence: "LIST"}
_HELP = """Convert a base and train it, from a YAML file and flags.

RUN.yaml holds one `key: value` a line. Every key is a flag as well, with dashes or underscores, and flags go before \
the file. Lists are typed as a,b.

A run that is stopped by Ctrl-C, SIGTERM or SIGUSR1 saves a checkpoint after the current step and ends with exit code \
128 plus the signal's number: 130, 143 or 138. With --resume-from-checkpoint it goes on from there. A job of Slurm \
that is to be requeued asks for --signal=USR1@120 and is requeued on 138."""


def train_command() -> Any:
    """The verb with a flag for every key of a run."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    names = {"token_normalize_func": lambda name: name.replace("_", "-")}
    app.command("train", help=_HELP, context_settings=names)(_with_flags())
    return typer.main.get_command(app)


def _with_flags() -> Any:
    def call(**given: Any) -> None:
        own = {name: given.pop(name) for name in ("context", "run_file", "dry_run", "debug")}
        train(**own, flags={name: value for name, value in given.items() if value is not None})

    own = list(inspect.signature(train, eval_str=True).parameters.values())[:-1]
    call.__signature__ = inspect.Signature([*own, *map(_flag, keys().values())])  # type: ignore[attr-defined]
    return call


def _flag(key: Key) -> inspect.Parameter:
    """The option of a key. Its text is read as that of a run file is, so that a list or null can be given."""
    name = f"--{key.name.replace('_', '-')}"
    default = "null" if key.default is None else "no layer" if key.default == () else str(key.default)
    words = escape(f"{key.help} Default: {default.lower() if key.is_switch else default}.")
    about: dict[str, Any] = {"help": words, "show_default": False, "rich_help_panel": _PANELS[key.part]}
    if key.is_switch:
        hint: Any = Annotated[bool | None, typer.Option(f"{name}/--no-{name[2:]}", **about)]
    else:
        hint = Annotated[str | None, typer.Option(name, metavar=_type_name(key.hint), **about)]
    return inspect.Parameter(key.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _type_name(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return "|".join("null" if x is type(None) else _WORDS[get_origin(x) or x] for x in kinds)


def train(
    context: typer.Context,
    run_file: Annotated[Path | None, typer.Argument(help="YAML file of keys.", metavar="RUN.yaml")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take; train nothing.")] = False,
    debug: Debug = False,
    flags: dict[str, str | bool] | None = None,
) -> None:
    """Run, or say what the run would take; ``flags`` are those of the keys."""
    with errors_told(debug or bool(context.obj)):
        from tptt.estimate.hardware import check_hardware
        from tptt.run.run_file import load_run

        options = load_run(run_file, flags)
        check_hardware(options.hardware)
        quiet()
        if dry_run:
            from .dry_run import show_dry_run

            show_dry_run(options, Console(highlight=False))
        else:
            _run(options)


def _run(options) -> None:
    from tptt.processes import is_first
    from tptt.run.folder import how_to_go_on
    from tptt.run.interrupt import Interrupted
    from tptt.run.job import run

    from .probes import ShowProbes

    def tell(text: str) -> None:
        if is_first():
            say(text)

    try:
        converted = run(options, [ShowProbes()])
    except KeyboardInterrupt as stop:
        tell(f"interrupted; {how_to_go_on(options)}")
        raise typer.Exit(stop.exit_code if isinstance(stop, Interrupted) else 130) from stop
    tell(f"model, run.yaml and report.md: {options.output_dir}")
    if converted.diverged:
        raise typer.Exit(1)


def main() -> None:
    """This verb as a command of its own."""
    train_command()()


if __name__ == "__main__":
    main()
