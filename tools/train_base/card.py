"""The model card of the embedded base, written from the record of its training."""

from __future__ import annotations

from pathlib import Path

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, recall]
---
# tptt base

A {parameters:,}-parameter Llama ({layers} layers of width {hidden}, {heads} query and {kv} key/value heads, context
{length}) with its own byte-level BPE tokenizer of {vocabulary} tokens. It exists so that `tptt quickstart` and the
tests have a real pretrained model without a network. It writes standard-library prose and code, looks facts up in its
context, and is good for nothing else.

## Training
`python -m tools.train_base.train` (seed {seed}): {tokens:,} tokens in {steps:,} steps, {minutes} minutes on {device},
bf16 autocast, Muon on the matrices and AdamW on the rest. Text: the language reference, docstrings and sources of
CPython's standard library ({unique_text_tokens:,} tokens; the PSF licence covers the text); {recall_share:.0%} of the
rows are recall rows
(`tptt.data`): facts stated in running text in nine formats and asked for again.{earlier}

## Scores
On modules of the standard library that were held out of training:

| model | perplexity |
| --- | --- |
| this model | {perplexity} |
| 3-gram (Witten-Bell) | {trigram_perplexity} |
| unigram | {unigram_perplexity} |

Share of answers recalled in a context of {length} tokens of held-out text with 8 facts in it, by format
(`tptt.data.FORMATS`):

| format | recall |
| --- | --- |
{by_format}
"""


def _earlier(record: dict) -> str:
    return f" It went on (`--init`) from a model of {record['tokens']:,} tokens, {record['minutes']} minutes."


def write_card(folder: Path, config, record: dict) -> None:
    """Write ``README.md`` into ``folder``."""
    by_format = "\n".join(f"| {k} | {v:.3f} |" for k, v in record["recall_by_format"].items())
    text = _CARD.format(
        **{k: v for k, v in record.items() if k not in ("recall_by_format", "earlier")},
        earlier=_earlier(record["earlier"]) if "earlier" in record else "",
        by_format=by_format,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv=config.num_key_value_heads,
        vocabulary=config.vocab_size,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
