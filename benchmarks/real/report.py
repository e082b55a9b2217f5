"""Tables and plots of the answers, written into docs/.

python -m benchmarks.real report            # prints the tables
python -m benchmarks.real report --write    # puts them into docs/real.md, and the plots beside it
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.record import ROOT, described
from tptt.evaluation import markdown_table

from . import cache_bytes, perplexity, plots, skills, tables
from .answers import read_answers
from .bases import BASES, base_of
from .job import KIND
from .place import FOLDER, RESULTS, say
from .plain import plain_folder
from .plan import EQUAL_BYTES_LENGTHS, RULER_ROWS
from .rows import SPLITS
from .tables import Lines

DOCS = ROOT / "docs"
Arms = Mapping[str, Lines]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--base", default=next(iter(BASES)), help="name of the base")
    parser.add_argument("--arms", help="only these arms, by commas, in this order (default: all that have answers)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which rows")
    parser.add_argument("--write", action="store_true", help="into docs/ instead of the screen")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of real.md and of the plots")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the prepared folder")
    parser.add_argument("--base-folder", type=Path, help="the base as a plain folder, instead of the prepared one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the answers")


def run(args: argparse.Namespace) -> None:
    """Report on ``args.base``.

    Raises:
        SystemExit: There are no answers, or an arm has none, or the base is not there.
    """
    try:
        arms = read_arms(args.results / args.base, args.split, args.arms)
        base_folder = args.base_folder or plain_folder(base_of(args.base), args.folder)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise SystemExit(str(error)) from error
    if not args.write:
        say(report(args.base, arms, base_folder, {}))
        return
    made = write_plots(args.base, arms, base_folder, args.docs)
    write_block(args.docs / "real.md", args.base, report(args.base, arms, base_folder, made))
    say(f"wrote {args.docs / 'real.md'} and {', '.join(file.name for file in made.values())}")


def read_arms(folder: Path, split: str, names: str | None = None) -> dict[str, Lines]:
    """The answers of each arm of a base.

    Raises:
        FileNotFoundError: There are none, or none of a named arm.
    """
    there = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    chosen = _in_order(there) if names is None else [name.strip() for name in names.split(",")]
    if missing := [name for name in chosen if name not in there] or ([] if there else ["any arm"]):
        raise FileNotFoundError(
            f"{folder} has no answers of {', '.join(missing)}: `python -m benchmarks.real evaluate`"
        )
    found = {name: [x for x in read_answers(there[name]) if x["split"] == split] for name in chosen}
    return {name: lines for name, lines in found.items() if lines}


def _in_order(names: Mapping[str, Path]) -> list[str]:
    """The base first, presses last."""
    return sorted(names, key=lambda name: (not name.startswith("base"), "@" in name, name))


def write_plots(base: str, arms: Arms, base_folder: Path, docs: Path) -> dict[str, Path]:
    """The plots that there are answers for, by what they show."""
    made = {
        "ruler": plots.plot_ruler(arms, docs / f"real-{base}-ruler.png"),
        "equal bytes": plots.plot_equal_bytes(arms, docs / f"real-{base}-equal-bytes.png"),
        "perplexity": plots.plot_perplexity(arms, docs / f"real-{base}-perplexity.png"),
        "bytes": plots.plot_bytes(*cache_bytes.formulas(base_folder), arms, docs / f"real-{base}-bytes.png"),
    }
    return {name: file for name, file in made.items() if file is not None}


def report(base: str, arms: Arms, base_folder: Path, pictures: Mapping[str, Path]) -> str:
    """All tables as Markdown."""

    def picture(name: str, text: str) -> list[str]:
        return [f"![{text}]({pictures[name].name})"] if name in pictures else []

    def cost(*names: str) -> str:
        kept = [line for lines in arms.values() for line in lines if line["table"] in names]
        return f"Computing these answers took {tables.seconds_of(kept) / 3600:.1f} hours ({len(kept)} answers)."

    parts = [
        f"## {base}",
        "A cell is mean ± standard error (number of answers). "
        f"{tables.OLD} marks answers of older code, `{tables.MISSING}` what was not measured.",
        "### RULER by length",
        tables.ruler_means(arms),
        cost("ruler"),
        *picture("ruler", "RULER's mean score by length"),
    ]
    for length in RULER_ROWS:
        if any(tables.cell(lines, "ruler", None, length) for lines in arms.values()):
            parts += [f"### RULER's tasks at {length:,} tokens", tables.ruler_tasks(_without_presses(arms), length)]
    parts.append("### Equal bytes")
    for length in EQUAL_BYTES_LENGTHS:
        parts += [f"At {length:,} tokens:", tables.equal_bytes(arms, length)]
    parts += [
        "The answers are rows of RULER's tables as well, and their time is counted there. Peak is by how much the "
        "process's resident memory rose while the context was read, the cache included. Hidden pairs of KVzip are "
        "counted as dropped; kvpress keeps them in memory.",
        *picture("equal bytes", "Score against bytes of cache"),
        "### Perplexity of essays by position",
        f"Nats per token of the span that ends there, error over texts of {perplexity.BOUNDS[-1]:,} tokens.",
        tables.of_cells(
            arms, [(perplexity.TABLE, perplexity.TASK, n) for n in perplexity.BOUNDS], tables.nats_of, digits=3
        ),
        cost(perplexity.TABLE),
        *picture("perplexity", "Nats per token by position"),
        "### Passages with distance",
        tables.of_cells(arms, [("squad", "cut", 512), *(("hotpot", "distractors", n) for n in _HOTPOT)]),
        cost("squad", "hotpot"),
        "### Skills kept",
        tables.of_cells(arms, [("skills", "squad", 512), ("skills", "last_words", 512)]),
        tables.of_cells(arms, [(skills.TABLE, skills.TASK, skills.LENGTH)], tables.nats_of, digits=3),
        "`kl` is KL(base || arm) in nats per token of held-out paragraphs.",
        cost("skills"),
        "### Bytes of cache",
        _bytes_table(arms, base_folder),
        *picture("bytes", "Bytes of cache by length"),
        "### Where these figures come from",
        _origins(arms),
    ]
    return "\n\n".join(parts) + "\n"


_HOTPOT = (2048, 4096, 8192, 16384)


def _without_presses(arms: Arms) -> dict[str, Lines]:
    return {name: lines for name, lines in arms.items() if "@" not in name}


def _bytes_table(arms: Arms, base_folder: Path) -> str:
    base, converted = cache_bytes.formulas(base_folder)
    rows = []
    for n in cache_bytes.LENGTHS:
        whole, ours = base.after(n), converted.after(n)
        parts = [whole.bytes, ours.bytes, ours.kv_bytes, ours.memory_bytes]
        rows.append([f"{n:,}", *(f"{x / 1e6:.1f}" for x in parts), f"{whole.bytes / ours.bytes:.2f}"])
    head = ["tokens", "base, MB", "default memory, MB", "of it window", "of it states", "base / default memory"]
    worst, count = cache_bytes.worst_difference(base, arms.get("base", ()))
    check = f"The caches of {count} prompts of the base differ from the computed bytes by {100 * worst:.2f} % at most."
    note = "In float32, computed from the model's shapes. " + (check if count else "No cache was measured yet.")
    return f"{markdown_table(head, rows)}\n\n{note}"


def _origins(arms: Arms) -> str:
    """Per arm: time, and each place that its answers come from."""
    said = []
    for name, lines in arms.items():
        places: dict[str, list] = {}
        for line in lines:
            origin = line["origin"]
            places.setdefault(" ".join(str(v) for k, v in origin.items() if k != "utc"), []).append(origin)
        texts = [described(KIND, *found) for found in places.values()]
        said.append(f"- **{name}**, {tables.seconds_of(lines) / 3600:.1f} hours: {'; '.join(texts)}")
    return "\n".join(said)


def write_block(file: Path, base: str, text: str) -> None:
    """Put ``text`` between the base's marks in ``file``, behind what stands there if it has no such marks yet."""
    begin, end = (f"<!-- {word} of benchmarks.real report: {base} -->" for word in ("begin", "end"))
    old = file.read_text(encoding="utf-8") if file.exists() else "# A real pretrained model\n"
    block = f"{begin}\n{text}{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(new, encoding="utf-8")
