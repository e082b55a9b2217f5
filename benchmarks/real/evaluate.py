"""Answer the prepared rows with one arm, row by row; what is answered already is left out.

    python -m benchmarks.real evaluate --arm base --tables ruler --lengths 4096 --rows 10

Rows of all cells take turns, so that every table fills evenly and a run may be stopped at any time. Each answer is a
line of ``benchmarks/real/results/BASE/ARM.jsonl``. Decoding is greedy, in float32, and stops where the model ends its
answer, or where every reference is found, because more text never lowers a score.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .answers import answered, answers_file, open_rows
from .arms import Arm, Reader, load
from .bases import BASES, base_of
from .greedy import answer, warm_up
from .job import Job
from .judge import score
from .place import FOLDER, RESULTS, say
from .plain import plain_folder
from .plan import EQUAL_BYTES_LENGTHS, EQUAL_BYTES_ROWS, EQUAL_BYTES_TASKS, RULER_ROWS
from .presses import environment, press_answers
from .prompts import Prompt
from .rows import SPLITS, Row, cell_file, cells, read_rows
from .text_tables import measure_divergence, measure_perplexity

TABLES = ("ruler", "equal-bytes", "squad", "hotpot", "skills", "perplexity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--base", default=next(iter(BASES)), help="name of the base")
    parser.add_argument(
        "--arm",
        required=True,
        help="base, base-yarn, window@N, streaming@N, quantized, PRESS@SHARE or NAME=FOLDER; a wrong one lists them",
    )
    parser.add_argument("--tables", default=",".join(TABLES), help="which tables, by commas (default: all)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="test rows report, dev rows choose")
    parser.add_argument("--lengths", help="only rows of these lengths, by commas")
    parser.add_argument("--tasks", help="only these tasks, by commas")
    parser.add_argument("--rows", type=int, help="at most so many rows of a cell")
    parser.add_argument("--minutes", type=float, help="begin no row later than this")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the prepared folder")
    parser.add_argument("--base-folder", type=Path, help="the base as a plain folder, instead of the prepared one")
    parser.add_argument("--presses-python", type=Path, help="Python of an environment with kvpress (default: made)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the answers")


def run(args: argparse.Namespace) -> None:
    """Evaluate ``args.arm``.

    Raises:
        SystemExit: An argument is wrong, or a file, folder or package that it needs is missing.
    """
    try:
        evaluate(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError, ConnectionError) as error:
        raise SystemExit(str(error)) from error


def evaluate(args: argparse.Namespace) -> None:
    """As `run`, with the errors as they are."""
    from transformers import AutoTokenizer

    arm = Arm.read(args.arm)
    tables = _chosen(args.tables, TABLES, "tables")
    base_folder = args.base_folder or plain_folder(base_of(args.base), args.folder)
    job = Job(
        arm,
        args.base,
        base_folder,
        _context(args.base, base_folder),
        args.folder,
        args.split,
        answers_file(args.results, args.base, arm.name),
        None if args.minutes is None else time.monotonic() + 60 * args.minutes,
    )
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    rows = open_rows(wanted_rows(job, tables, args.lengths, args.tasks, args.rows), answered(job.file))
    say(f"{arm.name}: {len(rows)} rows to answer, {len(answered(job.file))} answers in {job.file.name}")
    if arm.kind == "press":
        rows = [row for row in rows if row.context]  # without a context there is nothing to press
        if rows:
            python = args.presses_python or environment(args.folder / "presses-environment")
            answer_rows(job, rows, _pressed(job, python, rows, tokenizer))
        return
    reader = load(arm, base_folder, job.context)
    answer_rows(job, rows, _read(reader, rows, tokenizer))
    if args.lengths is None and args.tasks is None:
        if "skills" in tables and arm.kind != "base":
            measure_divergence(job, reader, tokenizer, args.rows)
        if "perplexity" in tables:
            measure_perplexity(job, reader, tokenizer, args.rows)


def wanted_rows(
    job: Job, tables: tuple[str, ...], lengths: str | None = None, tasks: str | None = None, most: int | None = None
) -> list[Row]:
    """The prepared rows of ``tables``, each once.

    Raises:
        FileNotFoundError: No rows of the base are prepared; the message names the command.
        ValueError: A length or task has no rows.
    """
    prepared = cells(job.prepared, job.base, job.split)
    if not prepared and set(tables) != {"perplexity"}:
        raise FileNotFoundError(
            f"{job.prepared} holds no {job.split} rows of {job.base}: `python -m benchmarks.real prepare` writes them"
        )
    of_lengths = _chosen(lengths, [str(length) for *_, length in prepared], "lengths")
    of_tasks = _chosen(tasks, [task for _, task, _ in prepared], "tasks")
    found: list[Row] = []
    for table, task, length in prepared:
        if str(length) not in of_lengths or task not in of_tasks:
            continue
        if job.arm.kind == "base-yarn" and length <= job.context:
            continue  # there it is the base
        count = max((_rows_of(wanted, table, task, length) for wanted in tables), default=0)
        count = count if most is None else min(count, most)
        if count:
            found += read_rows(cell_file(job.prepared, job.base, job.split, table, task, length))[:count]
    return found


def _rows_of(wanted: str, table: str, task: str, length: int) -> int:
    """How many rows of a cell the table ``wanted`` takes."""
    everything = 1 << 30
    if wanted == "equal-bytes":
        here = table == "ruler" and task in EQUAL_BYTES_TASKS and length in EQUAL_BYTES_LENGTHS
        return EQUAL_BYTES_ROWS if here else 0
    if wanted != table:
        return 0
    return RULER_ROWS.get(length, everything) if table == "ruler" else everything


def answer_rows(job: Job, rows: list[Row], answers: Iterator[tuple[Row, dict[str, Any]]]) -> None:
    """Write the ``answers`` to ``rows`` as they come, until the time is over, and say how far it is."""
    begun, total, done = time.monotonic(), sum(row.length for row in rows), 0
    for number in range(len(rows)):
        if job.late:
            say(f"{job.arm.name}: the time is over, {len(rows) - number} rows are left")
            break
        row, found = next(answers)
        text = found.pop("text")
        right = score(text, row.answers, row.judge)
        key = dict(zip(("table", "task", "length", "seed", "split"), row.key, strict=True))
        versions = found.pop("versions", None)
        job.write(key | {"answer": text, "references": row.answers, "score": right, **found}, versions)
        done += row.length
        spent = time.monotonic() - begun
        say(
            f"{job.arm.name} {number + 1}/{len(rows)} {row.table} {row.task} {row.length:,} seed {row.seed}: "
            f"{right:.2f}, {found['prefill_seconds']:.1f} + {found['decode_seconds']:.1f} s; "
            f"about {spent / done * (total - done) / 60:.0f} minutes left"
        )
    answers.close()  # type: ignore[attr-defined]


def _read(reader: Reader, rows: list[Row], tokenizer: Any) -> Iterator[tuple[Row, dict[str, Any]]]:
    warm = None
    for row in rows:
        model = reader.model_for(row.length)
        if model is not warm:
            warm_up(model)
            warm = model

        def done(text: str, row: Row = row) -> bool:
            return score(text, row.answers, row.judge) == 1

        prompt, cache = Prompt.of(row, tokenizer), reader.new_cache(model)
        yield row, asdict(answer(model, tokenizer, prompt, row.max_new_tokens, cache, reader.chunk, done))


def _pressed(job: Job, python: Path, rows: list[Row], tokenizer: Any) -> Iterator[tuple[Row, dict[str, Any]]]:
    prompts = [(row, Prompt.of(row, tokenizer)) for row in rows]
    return press_answers(python, job.base_folder, job.arm.press, job.arm.share, prompts)


def _context(name: str, folder: Path) -> int:
    from transformers import AutoConfig

    if name in BASES:
        return BASES[name].context
    return AutoConfig.from_pretrained(folder).get_text_config(decoder=True).max_position_embeddings


def _chosen(text: str | None, known: Any, what: str) -> tuple[str, ...]:
    """The entries of ``text``, all of ``known`` for None.

    Raises:
        ValueError: One of them is not known.
    """
    known = list(dict.fromkeys(known))
    if text is None:
        return tuple(known)
    found = tuple(entry.strip() for entry in text.split(",") if entry.strip())
    if wrong := [entry for entry in found if entry not in known]:
        raise ValueError(f"there are no {what} {', '.join(wrong)}; there are {', '.join(known)}")
    return found
