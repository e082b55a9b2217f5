"""Every family of causal language models that transformers has: does a memory work in it, and if not, why?

python -m benchmarks.families                # all, to the screen
python -m benchmarks.families gemma2 falcon  # some
python -m benchmarks.families --write        # all, to docs/families.md
"""

from __future__ import annotations

import argparse
import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.record import described, provenance
from benchmarks.tiny import randomize, tiny_model
from tptt import MemoryConfig, attach_memory, detach_memory, set_mag_weight
from tptt.evaluation import markdown_table
from tptt.evaluation.verify import CHECKS, TOLERANCE, NotApplicable, verify
from tptt.hf import UnsupportedAttentionError, memory_layers

FILE = Path(__file__).parents[1] / "docs" / "families.md"
WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}
IDENTITY, WINDOWED = "mu = 0", "window"
KIND = "families"
_HOW = """`python -m benchmarks.families --write` makes this file: it builds a small random model for every family in
transformers' registry of causal language models, gives it a memory and puts it to the checks of
`tptt.evaluation.verify`. *mu = 0*: the model is the base bit for bit, and again after `detach_memory`; *no
future*: no token sees a later one, in padded rows too; *pieces*: reading through a cache in pieces; *left
padding*; *greedy*, *beams*: decoding with a cache equals decoding without; *packed*: rows of several sequences;
*window*: the first four with a window of 6 and 2 sinks. "base": the family fails this check without a memory too;
"-": it has no such thing."""


@dataclass
class Family:
    """What was found about one family."""

    name: str
    verdict: str = "works"  # or "refused", "not built", "broken"
    reason: str = ""
    layout: str = ""
    checks: dict[str, str] = field(default_factory=dict)


def _with_memory(base, **settings):
    return randomize(attach_memory(copy.deepcopy(base), MemoryConfig(**settings)))


@torch.no_grad()
def _identity(base, model) -> bool:
    """mu = 0 is the base bit for bit, mu = 0.5 is not, and without the memory it is the base again."""
    ids = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    want, mixed = base(input_ids=ids).logits, model(input_ids=ids).logits
    set_mag_weight(model, 0.0)
    zero = model(input_ids=ids).logits
    gone = detach_memory(model)(input_ids=ids).logits
    return torch.equal(zero, want) and torch.equal(gone, want) and not torch.allclose(mixed, want)


def _judge(found, plain) -> str:
    """One cell: what a check found, beside what it found of the plain base."""
    if isinstance(found, NotApplicable):
        return "-"
    if isinstance(found, ValueError) and ("cannot be told" in str(found) or "cannot be bounded" in str(found)):
        return "refused"
    good = isinstance(found, float) and found <= TOLERANCE
    if good:
        return "yes"
    if not (isinstance(plain, float) and plain <= TOLERANCE):
        return "base"  # fails without a memory too
    return f"NO ({found if isinstance(found, float) else type(found).__name__ + ': ' + str(found)[:300]})"


def examine(name: str) -> Family:
    """Build a tiny model of the family, give it a memory, and check it."""
    family = Family(name)
    try:
        base = tiny_model(name)
        with torch.no_grad():
            copy.deepcopy(base)(input_ids=torch.randint(3, 60, (2, 20)))
    except Exception as error:  # noqa: BLE001 - a family's own trouble is what is reported
        family.verdict, family.reason = "not built", _short(error)
        return family
    try:
        model = _with_memory(base)
        family.layout = memory_layers(model)[0].geometry.layout.name
    except (UnsupportedAttentionError, ValueError) as error:
        family.verdict, family.reason = "refused", _short(error)
        return family
    plain = verify(base)
    family.checks = {k: _judge(v, plain[k]) for k, v in verify(model).items()}
    try:
        windowed = _with_memory(base, **WINDOW)
        cells = [
            _judge(v, plain[k]) for k, v in verify(windowed, ("no future", "pieces", "left padding", "greedy")).items()
        ]
        family.checks[WINDOWED] = next((c for c in cells if c.startswith("NO")), "yes" if "yes" in cells else "-")
    except UnsupportedAttentionError as error:
        family.checks[WINDOWED] = "refused"
        family.reason = _short(error)
    try:
        same = "yes" if _identity(base, model) else "NO"
    except Exception as error:  # noqa: BLE001
        same = f"NO ({error})"
    family.checks = {IDENTITY: same} | family.checks
    if any(c.startswith("NO") for c in family.checks.values()):
        family.verdict = "broken"
    return family


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).split("; known layouts")[0].replace("|", "/")
    return f"{text[:200]}..." if len(text) > 200 else text


def report(families: list[Family]) -> str:
    """The table, Markdown."""
    columns = [IDENTITY, *CHECKS, WINDOWED]
    worked = [f for f in families if f.verdict in ("works", "broken")]
    counts = {v: sum(f.verdict == v for f in families) for v in ("works", "broken", "refused", "not built")}
    lines = [
        "# Families",
        "",
        f"Measured at {described(KIND, provenance(KIND))}.",
        "",
        _HOW,
        "",
        f"{counts['works']} families work, {counts['broken']} are broken, {counts['refused']} are refused with a "
        f"reason, {counts['not built']} could not be built small here.",
        "",
        markdown_table(
            ["family", "layout", *columns],
            [[f.name, f.layout, *(f.checks.get(c, "") for c in columns)] for f in worked],
        ),
    ]
    for verdict, title in (("refused", "Refused"), ("not built", "Not built")):
        rows = [f"- {f.name}: {f.reason}" for f in families if f.verdict == verdict]
        lines += ["", f"## {title}", *rows] if rows else []
    rows = [f"- {f.name}: {f.reason}" for f in worked if f.reason]
    lines += ["", "## Windows refused", *rows] if rows else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="model types; none: all")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = []
    for name in arguments.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if name != "tptt":
            found.append(examine(name))
            print(name, found[-1].verdict, found[-1].layout, found[-1].checks, found[-1].reason, flush=True)
    if arguments.write:
        FILE.write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    main()
