"""Train the embedded base model: a small Llama on the standard library's text and key-value recall rows.

    python -m tools.train_base.train --out src/tptt/assets/base --minutes 40

Makes tokenizer, weights and model card. On a GPU batches can be larger, and processes draw them beside the training
(``--device cuda --rows 64 --recall-rows 28 --workers 8``). There the same script makes a larger base
(``--hidden-size``, ``--layers``) from more text (``--installed``). Muon trains the matrices and AdamW the rest; the
learning rates warm up, stay constant, and decay linearly over the last part.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.train_base.baselines import baselines
from tools.train_base.card import write_card
from tptt.data import (
    FORMATS,
    IGNORE,
    KeyValueRecall,
    Lexicon,
    RecallTask,
    RecallVocabulary,
    installed_text,
    stdlib_text,
    tokenize,
)
from tptt.evaluation import perplexity, recall_accuracy
from tptt.evaluation.perplexity import next_token_losses

INSTALLED = 50_000_000  # characters
COUNTED = 5_000_000  # tokens that the n-gram baselines count at most: more takes minutes
END = "<|endoftext|>"
PAD = "<|pad|>"


def build_tokenizer(documents: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``size`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


class Stage(NamedTuple):
    """One part of the curriculum, up to ``end`` of the training."""

    end: float
    shorter: int  # rows are this many times shorter, and as many times more
    recall: float | None  # share of recall rows; None takes the one asked for
    all_formats: float  # share of the recall rows that have facts of all formats; the others are dense records
    facts: tuple[int, ...]


# Lookup in the context emerges within a few hundred steps of short, dense rows in a model that has read text, and not
# at all in one that has not; once there, it carries over to longer rows and to other formats.
CURRICULUM = (
    Stage(0.30, 1, 0.0, 0.0, (4,)),
    Stage(0.40, 8, 0.5, 0.0, (4, 8)),
    Stage(0.45, 4, 0.5, 0.3, (4, 8)),
    Stage(0.65, 4, 0.5, 0.9, (2, 4, 8)),
    Stage(0.75, 2, 0.5, 0.9, (2, 4, 8, 16)),
    Stage(1.00, 1, None, 0.9, (2, 4, 8, 16, 32)),
)


class Batches(IterableDataset):
    """Rows of text and of recall in one batch, with the positions that count in the loss.

    Iterating never ends; `done`, shared with the processes that draw, says where in the curriculum the training is.
    """

    def __init__(
        self, stream: torch.Tensor, records: KeyValueRecall, task: RecallTask, args: argparse.Namespace
    ) -> None:
        self.stream, self.records, self.task = stream, records, task
        self.length, self.rows, self.recall_rows, self.seed = args.length, args.rows, args.recall_rows, args.seed
        self.done = torch.multiprocessing.Value("d", 0.0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        generator = torch.Generator().manual_seed(self.seed + (1_000_003 * worker.id if worker else 0))
        while True:
            yield self.draw(self.done.value, generator)

    def draw(self, done: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``(input_ids, weights)`` of equal shape; weights[t] is that of predicting token t; ``done`` in [0, 1]."""
        stage = next(s for s in CURRICULUM if done <= s.end)
        length, rows = self.length // stage.shorter, self.rows * stage.shorter
        recall_rows = self.recall_rows * stage.shorter if stage.recall is None else round(rows * stage.recall)
        starts = torch.randint(len(self.stream) - length, (rows - recall_rows,), generator=generator).tolist()
        text = torch.stack([self.stream[s : s + length] for s in starts]) if starts else torch.empty(0, length).long()
        mixed = round(recall_rows * stage.all_formats)
        parts = []
        if recall_rows - mixed:
            facts = _facts(stage, generator)
            parts.append(self.records.draw_without_filler(recall_rows - mixed, length, generator, facts))
        if mixed:
            parts.append(self.task.draw(mixed, length, generator, _facts(stage, generator)))
        if not parts:
            return text, torch.ones(text.shape)
        asked = torch.cat([p.answers for p in parts]) != IGNORE
        weights = torch.cat([torch.ones(text.shape), 0.02 + asked.float()])
        return torch.cat([text, *(p.input_ids for p in parts)]), weights


def _facts(stage: Stage, generator: torch.Generator) -> int:
    return stage.facts[int(torch.randint(len(stage.facts), (1,), generator=generator))]


def _alone(worker: int) -> None:
    """The tokenizer of a process that draws has no threads: it was forked from one that had."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def losses_of(model, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy of the text rows and the weighted one of the recall rows, in nats."""
    losses = next_token_losses(model(input_ids=ids, use_cache=False).logits, ids)
    weights = weights[:, 1:].to(losses.device)
    text = weights.amin(1) == 1
    zero = losses.new_zeros(())
    return (
        losses[text].mean() if text.any() else zero,
        zero if text.all() else (losses * weights)[~text].sum() / weights[~text].sum(),
    )


def optimizers(model, matrix_rate: float, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = set(map(id, inner))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(model, batches: Batches, args: argparse.Namespace) -> dict:
    """Train for ``args.minutes`` from ``args.begin`` in the curriculum to its end; the learning rates decay linearly to
    zero over the last 30 % of the time."""
    begin, minutes, device = args.begin, args.minutes, args.device
    matrix_rate, rate = args.matrix_rate, args.rate
    opts = optimizers(model, matrix_rate, rate)
    drawn = iter(DataLoader(batches, batch_size=None, num_workers=args.workers, worker_init_fn=_alone))
    start = time.monotonic()
    tokens = step = 0
    model.train()
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        factor = min(1.0, (step + 1) / 50) * min(1.0, max(0.0, (1 - done) / 0.3))
        for opt, base in zip(opts, (matrix_rate, rate), strict=True):
            opt.param_groups[0]["lr"] = base * factor
        batches.done.value = begin + (1 - begin) * done
        ids, weights = (x.to(device) for x in next(drawn))
        with torch.autocast(device, dtype=torch.bfloat16):
            text, recall = losses_of(model, ids, weights)
        (text + recall).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        tokens, step = tokens + ids.numel(), step + 1
        if step % 100 == 0:
            minutes_done = (time.monotonic() - start) / 60
            print(f"{step=} {tokens=} text={text:.3f} recall={recall:.3f} minutes={minutes_done:.1f}", flush=True)
    return {"tokens": tokens, "steps": step, "minutes": round((time.monotonic() - start) / 60, 1), "seed": args.seed}


def scores(model, rows: torch.Tensor, tokenizer, lexicon: Lexicon, held_out: torch.Tensor) -> dict:
    """Held-out perplexity, and recall by format, 8 facts in rows of the same length."""
    length = rows.shape[1]

    def recall(name: str) -> float:
        drawn = RecallTask(tokenizer, lexicon, held_out, name, facts=8)
        return round(recall_accuracy(model, drawn, length, window=length, rows=32, seed=1).inside or 0.0, 4)

    by_format = {name: recall(name) for name in FORMATS}
    return {
        "perplexity": round(perplexity(model, rows), 3),
        "recall": round(sum(by_format.values()) / len(by_format), 4),
        "recall_by_format": by_format,
    }


def new_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama of the shape asked for."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            num_key_value_heads=args.kv_heads,
            max_position_embeddings=args.length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--intermediate-size", type=int, default=384)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--recall-rows", type=int, default=3)
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw rows beside the training")
    parser.add_argument("--installed", action="store_true", help="read the installed packages beside the library")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--init", type=Path, help="go on from a model that this script made; its record is kept")
    parser.add_argument("--begin", type=float, default=0.0, help="where in the curriculum, of 1 in all")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    split = installed_text(INSTALLED) if args.installed else stdlib_text()
    if args.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.init)
    else:
        tokenizer = build_tokenizer(split.train, args.vocab_size)
    tokenizer.model_max_length = args.length
    stream, held_out = tokenize(tokenizer, split.train), tokenize(tokenizer, split.held_out)
    vocabulary = RecallVocabulary(tokenizer)
    print(
        f"{len(stream)} training and {len(held_out)} held-out tokens, {len(vocabulary.words)} recall words", flush=True
    )
    model = LlamaForCausalLM.from_pretrained(args.init) if args.init else new_model(args, tokenizer)
    model.to(args.device)
    task = RecallTask(tokenizer, Lexicon.of(split.train), stream)
    record = train(model, Batches(stream, KeyValueRecall(vocabulary, stream), task, args), args)
    rows = held_out[: len(held_out) // args.length * args.length].view(-1, args.length)[:256]
    record |= scores(model, rows, tokenizer, Lexicon.of(split.held_out), held_out)
    record |= baselines(stream[:COUNTED], rows, len(tokenizer))
    record |= {
        "parameters": model.num_parameters(),
        "unique_text_tokens": len(stream),
        "device": args.device,
        "recall_share": args.recall_rows / args.rows,
        "length": args.length,
    }
    if args.init:
        record["earlier"] = json.loads((args.init / "training.json").read_text(encoding="utf-8"))
    print(json.dumps(record, indent=1))
    save(model, tokenizer, record, args.out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict, folder: Path) -> None:
    """Write model, tokenizer, the record of the training and the model card into ``folder``."""
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_card(folder, model.config, record)


if __name__ == "__main__":
    main()
