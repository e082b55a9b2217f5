"""The `tptt` command."""

from __future__ import annotations

import typer

from .quickstart import quickstart
from .train import CONTEXT, train

app = typer.Typer(
    name="tptt", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Give a pretrained transformer a linear-attention memory of fixed size.",
)  # fmt: skip
app.command("quickstart")(quickstart)
app.command("train", context_settings=CONTEXT)(train)


@app.callback()
def _verbs() -> None:
    """Give a pretrained transformer a linear-attention memory of fixed size."""


if __name__ == "__main__":
    app()
