"""`tptt train`: one run from a YAML file and flags, or the plan of it."""

from __future__ import annotations

import typer
from rich.console import Console

from .console import errors_told, quiet

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For typer: every key is a flag, and the keys are read from the dataclasses that hold them."""


def train(
    context: typer.Context,
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what the run would take and bring; train nothing."),
    list_keys: bool = typer.Option(False, "--keys", help="List all keys with their defaults."),
) -> None:
    """Convert a base and train it: tptt train [RUN.yaml] [--key value ...].

    RUN.yaml holds one `key: value` a line; every key is a flag as well, with dashes or underscores, and flags win.
    `tptt train --keys` lists them. Without a base_model_name it is the embedded one.
    """
    console = Console(highlight=False)
    with errors_told():
        from tptt.assets import BASE
        from tptt.estimate.hardware import check_hardware
        from tptt.run.options import load_run, parse_flags

        if list_keys:
            from .plan import show_keys

            return show_keys(console)
        options = load_run(*parse_flags(context.args), base_model_name=str(BASE))
        check_hardware(options.hardware)
        quiet()
        if dry_run:
            from .plan import show_plan

            return show_plan(options, console)
        from tptt.processes import is_first
        from tptt.run.folder import check_output, how_to_go_on, where_it_begins
        from tptt.run.job import run

        from .progress import ShowProgress

        check_output(options)
        console.quiet = not is_first()
        if options.resume:
            console.print(where_it_begins(options), markup=False, soft_wrap=True)
        try:
            with ShowProgress(console) as shown:
                converted = run(options, [shown])
        except KeyboardInterrupt as stop:
            console.print(f"interrupted; {how_to_go_on(options)}", markup=False, soft_wrap=True)
            raise typer.Exit(130) from stop  # as a shell says it
        for text in converted.warnings:
            console.print(f"warning: {text}", markup=False, style="yellow", soft_wrap=True)
        console.print(f"model, run.yaml and report.md: {options.out}", markup=False, soft_wrap=True)
        if converted.diverged:
            raise typer.Exit(1)


def main() -> None:
    """This verb as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=CONTEXT)(train)
    app()


if __name__ == "__main__":
    main()
