"""The `tptt` command."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from .console import Debug
from .quickstart import quickstart


class _Verbs(TyperGroup):
    """Verbs. The flags of `train` are fields of other rooms' classes, which are imported when it is called alone."""

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        if name == "train":
            from .train import train_command

            command = train_command()
        return name, command, rest


app = typer.Typer(
    name="tptt",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Give a pretrained transformer a linear-attention memory of fixed size.",
)
app.command("quickstart")(quickstart)


@app.callback()
def _main(context: typer.Context, debug: Debug = False) -> None:
    context.obj = debug


@app.command("train")
def _listed_train() -> None:
    """Convert a base and train it, from a YAML file and flags."""


if __name__ == "__main__":
    app()
