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

A {parameters:,}-parameter Llama ({layers} layers of width {hidden}, {heads} query and {kv} key/value heads, context {length}) with its
own byte-level BPE tokenizer of {vocabulary} tokens. It exists so that `tptt quickstart` and the tests have a real pretrained model
without a network. It writes standard-library prose and code, looks facts up in its context, and is good for nothing else.

## Training
`python -m tptt.assets.train_base` (seed {seed}): {tokens:,} tokens in {steps:,} steps, {minutes} minutes on {device}, bf16 autocast,
Muon on the matrices and AdamW on the rest. Text: the language reference, docstrings and sources of CPython's standard library
({unique_text_tokens:,} tokens; the PSF licence covers the text); {recall_share:.0%} of the rows are key-value recall rows
(`tptt.data.recall`): facts stated in running text and asked for again.{earlier}

## Scores
On modules of the standard library that were held out of training:

| model | perplexity |
| --- | --- |
| this model | {perplexity} |
| 3-gram (Witten-Bell) | {trigram_perplexity} |
| unigram | {unigram_perplexity} |

Recall of 32 facts anywhere in a context of {length} tokens of held-out text: {recall:.4f}. By distance in tokens between
statement and question:

| up to | recall |
| --- | --- |
{by_distance}
"""


def _earlier(record: dict) -> str:
    return f" It went on (`--init`) from a model of {record['tokens']:,} tokens, {record['minutes']} minutes."


def write_card(folder: Path, config, record: dict) -> None:
    """Write ``README.md`` into ``folder``."""
    by_distance = "\n".join(f"| {k} | {v:.4f} |" for k, v in record["recall_by_distance"].items())
    text = _CARD.format(
        **{k: v for k, v in record.items() if k not in ("recall_by_distance", "earlier")},
        earlier=_earlier(record["earlier"]) if "earlier" in record else "",
        by_distance=by_distance, layers=config.num_hidden_layers, hidden=config.hidden_size,
        heads=config.num_attention_heads, kv=config.num_key_value_heads, vocabulary=config.vocab_size,
    )  # fmt: skip
    (folder / "README.md").write_text(text)
