"""report.md and the checkpoint's model card."""

from __future__ import annotations

from pathlib import Path

import torch

from tptt.evaluation import markdown_table

from .options import QuickstartOptions
from .results import Results


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def quality_table(results: Results) -> str:
    """Perplexity and recall of each arm at each length, as a Markdown table."""
    lengths = list(results.measures["base"].perplexity)
    heads = [f"perplexity at {n}" for n in lengths]
    heads += [f"recall {side} W at {n}" for side in ("inside", "beyond") for n in lengths]
    rows = []
    for arm, m in results.measures.items():
        cells = [f"{m.perplexity[n]:.2f}" for n in lengths]
        cells += [_percent(m.recall[n].inside) for n in lengths] + [_percent(m.recall[n].beyond) for n in lengths]
        rows.append([arm, *cells])
    return markdown_table(["arm", *heads], rows)


def format_table(results: Results) -> str:
    """Recall of each format in rows of the training length, as a Markdown table; "-" where no fact of it fits."""
    arms = results.by_format
    heads = [f"{arm}, {side} W" for arm in arms for side in ("inside", "beyond")]
    rows = []
    for name in arms["base"]:
        scores = [arms[arm][name] for arm in arms]
        rows.append([name, *(_percent(x) for s in scores for x in ((s.inside, s.beyond) if s else (None, None)))])
    return markdown_table(["format", *heads], rows)


def branch_tables(results: Results) -> str:
    """Who does the work in the converted model: its branches one by one, and mu and size of the memory by layer."""
    assert results.converted is not None
    use = results.converted.probe_results[-1].use
    rows = [
        [arm, _percent(score.inside), _percent(score.beyond), f"{use.perplexity[arm]:.2f}"]
        for arm, score in use.recall.items()
    ]
    arms = markdown_table(["branches", "recall inside W", "recall beyond W", "perplexity"], rows)
    scales = ["-" if layer.scale is None else f"{layer.scale:.2f}" for layer in use.layers]
    layers = markdown_table(
        ["", *(f"layer {i}" for i in range(len(use.layers)))],
        [["mean mu", *(f"{layer.mu:.2f}" for layer in use.layers)], ["size of memory / softmax", *scales]],
    )
    wrong = (
        "\n".join(f"- {text}" for text in results.converted.warnings)
        or "Nothing was found wrong with them during training."
    )
    return f"{arms}\n\n{layers}\n\n{wrong}"


def distance_table(results: Results) -> str:
    """Right / asked by distance at the longest length, as a Markdown table."""
    length = max(results.measures["base"].recall)
    scores = {arm: m.recall[length] for arm, m in results.measures.items()}
    bins = list(scores["base"].by_distance)
    rows = [[arm, *("{}/{}".format(*score.by_distance[b]) for b in bins)] for arm, score in scores.items()]
    table = markdown_table(["arm", *(f"<= {b}" for b in bins)], rows)
    return f"By distance in tokens, rows of {length} (right / asked):\n\n{table}"


def held_table(results: Results) -> str:
    """Bytes and keys held by each cache, as a Markdown table."""
    arms = list(results.held)
    heads = [f"{arm}: {what}" for arm in arms for what in ("KiB", "keys per layer")]
    rows = [
        [row[0].tokens, *(x for h in row for x in (f"{h.bytes / 1024:.0f}", h.entries))]
        for row in zip(*results.held.values(), strict=True)
    ]
    return markdown_table(["tokens read", *heads], rows)


def arm_lines(results: Results) -> list[str]:
    """Perplexity and recall of each arm at each length, and what the probes found wrong."""
    lines = []
    for arm, measures in results.measures.items():
        for length, score in measures.recall.items():
            shares = f"inside W {_percent(score.inside)}, beyond W {_percent(score.beyond)}"
            lines.append(
                f"{arm:<13} length {length:>5}: perplexity {measures.perplexity[length]:8.2f}, recall {shares}"
            )
    return lines


def held_lines(results: Results) -> list[str]:
    """What each cache holds after the longest text that was read."""
    return [
        f"{arm:<13} holds {h[-1].bytes / 1024:.0f} KiB after {h[-1].tokens} tokens ({h[-1].entries} keys per layer)"
        for arm, h in results.held.items()
    ]


def _counts(results: Results) -> str:
    scores = results.measures["base"].recall.values()
    return "; ".join(f"{s.length}: {s.inside_count} inside, {s.beyond_count} beyond" for s in scores)


def write_report(out: Path, results: Results, options: QuickstartOptions) -> Path:
    """Write ``out``/report.md and return its path."""
    parts = [
        *_run_part(results, options),
        *_quality_part(results),
        "## Branches",
        f"The converted model on a few rows of {results.seq_len} tokens: as it is, without its memory (mu = 0), and "
        "without its softmax (mu = 1).",
        branch_tables(results),
        *_plot_part(results, "## Training", "loss and mu", "training"),
        "## Memory held",
        "Bytes of all tensors that the cache of one sequence keeps, after so many tokens:",
        held_table(results),
        *_plot_part(results, None, "memory held", "memory"),
        *_reload_part(results),
        *_time_part(results),
    ]
    if results.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in results.notes)]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _plot_part(results: Results, head: str | None, words: str, name: str) -> list[str]:
    return [*([head] if head else []), f"![{words}](plots/{name}.png)"] if results.plots else []


def _run_part(results: Results, options: QuickstartOptions) -> list[str]:
    trained = ", ".join(f"{arm} {count:,}" for arm, count in results.trained.items())
    return [
        "# Quickstart report",
        f"Base: {_base(results, options)} ({results.parameters:,} parameters). Softmax window W = {results.window} "
        f"tokens. Training: {options.steps} steps, {results.tokens:,} tokens in rows of {results.seq_len}, seed "
        f"{options.seed}. "
        f'"window alone" and "converted" saw the same rows in the same order; trained parameters: {trained}.',
        "With mu = 0 and no window the base with its memory gives the base's logits bit for bit (checked in this run).",
    ]


def _base(results: Results, options: QuickstartOptions) -> str:
    return "the embedded one" if options.base_model is None else f"`{results.base_model}`"


def _quality_part(results: Results) -> list[str]:
    return [
        "## Quality",
        quality_table(results),
        f'"Beyond W" are answers stated more than {results.window} tokens before they are asked for. Answers asked, by '
        f"length: {_counts(results)}. Perplexity is that of held-out text.",
        distance_table(results),
        f"By format (`tptt.data.FORMATS`), in rows of {results.seq_len} tokens:",
        format_table(results),
        *_plot_part(results, None, "perplexity and recall", "quality"),
    ]


def _reload_part(results: Results) -> list[str]:
    found = results.reloaded
    return [
        "## Reloaded in a fresh process",
        f"`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` gave a {found['model']}. After "
        f"{found['tokens']} tokens it held {found['kv_entries']} keys per layer (window {found['window']}) and one "
        f"state per layer, the first of shape {found['state_shape']}. It wrote:",
        f"```text\n{results.generated.strip()}\n```",
    ]


def _time_part(results: Results) -> list[str]:
    seconds = results.seconds | {"all": sum(results.seconds.values())}
    return [
        "## Time",
        markdown_table(["stage", "seconds"], [[stage, f"{s:.1f}"] for stage, s in seconds.items()]),
        f"{torch.get_num_threads()} threads, torch {torch.__version__}.",
    ]


def write_card(checkpoint: Path, results: Results) -> Path:
    """Write the model card README.md into the ``checkpoint`` folder."""
    text = f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [tptt, linear-attention, memory]
---

# {Path(results.base_model).name} with a linear memory

`{results.base_model}` with a softmax window of {results.window} tokens and a delta-rule memory of fixed size in every
attention layer. The folder holds memory and LoRA; the base is loaded from where its name says
(`TpttModel.from_pretrained(folder, base_model_name=NEW_PLACE)` where it has moved).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)  # needs the tptt package, 1.0 or newer
```

Trained on {results.tokens:,} tokens of text and recall rows by `tptt quickstart`:

{quality_table(results)}

Recall: facts stated in running text in nine formats and asked for again, W = {results.window}. By format, in rows of
{results.seq_len} tokens:

{format_table(results)}

It recalls what looks like the rows that it was trained on; other forms of recall transfer weakly.
"""
    path = checkpoint / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
