"""Recall and perplexity against the budget of keys and values: which layers keep their whole context.

python -m benchmarks.layers                       # every arm, budget and seed; goes on where it was stopped
python -m benchmarks.layers --write               # and puts table and plot where the documents have them
python -m benchmarks.layers --seeds 1             # on another core, into the same file; the first then finds it there

Arms choose the same number of layers in different ways: by the KL divergence that restoring them saves
(`tptt.convert.choose_layers`), evenly, the last ones, and, to see whether the ranking says anything, those that it ranks
last. The others have window and memory. A set of layers that several arms choose is trained once.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.runs import Runs
from benchmarks.timing import machine, write_section
from tptt import MemoryConfig, TpttConfig, TpttModel
from tptt.assets import BASE
from tptt.convert import choose_layers
from tptt.convert.lora import lora_config
from tptt.convert.window_only import window_alone
from tptt.evaluation import mag_weight, markdown_table, measured_size, perplexity, recall_accuracy, verify
from tptt.evaluation.perplexity import evaluating
from tptt.evaluation.verify import TOLERANCE
from tptt.hf import find_attention
from tptt.inference.snapshot import fingerprint
from tptt.quickstart.plots import new_figure, save
from tptt.train import Corpus, TrainingSettings, train
from tptt.train.auto_layers import first_rows
from tptt.train.loop import begin_memory, load_tokenizer

ROOT = Path(__file__).parents[1]
TITLE = "Layers that keep their whole context"
LENGTHS = (1, 2, 4)  # times the training length
_ROWS, _TEXT = 64, 32_768  # recall rows and tokens of text that are measured at each length
_FAR = 10**9  # tokens at which windows weigh nothing: there every budget is a number of layers

Layers = tuple[int, ...]


def evenly(order: Layers, count: int) -> Layers:
    """``count`` of the layers, in the middle of as many equal parts."""
    return tuple(int((i + 0.5) * len(order) / count) for i in range(count))


ARMS: dict[str, Callable[[Layers, int], Layers]] = {
    "by KL": lambda order, n: order[:n],
    "evenly": evenly,
    "last": lambda order, n: tuple(range(len(order) - n, len(order))),
    "ranked last by KL": lambda order, n: order[len(order) - n :],
}
COLORS = {"by KL": "#55a868", "evenly": "#4c72b0", "last": "#dd8452", "ranked last by KL": "#c44e52"}


class Bench:
    """One base, one training budget.

    Args:
        base: folder or hub id.
        tokens, length, window: of a training, of its rows, of the softmax of layers with a memory.
        runs: where the results are.
    """

    def __init__(self, base: str, tokens: int, length: int, window: int, runs: Runs) -> None:
        self.base, self.tokens, self.length, self.window, self.runs = base, tokens, length, window, runs
        self.corpora: dict[int, Corpus] = {}
        inner = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.layers = tuple(x.layer for x in find_attention(inner))
        self.name = Path(base).name if Path(base).is_dir() else base
        self.parameters = inner.num_parameters()
        self.weights = fingerprint(inner)[:12]  # another base in the same folder has results of its own
        self.lora = lora_config(inner)

    def key(self, kind: str, **more) -> dict[str, Any]:
        memory = MemoryConfig(max_self_attn_length=self.window)  # another default is another result
        fixed = {"base": self.name, "weights": self.weights, "memory": vars(memory)}
        return {"kind": kind, "settings": vars(self.settings(0))} | fixed | more

    def settings(self, seed: int) -> TrainingSettings:
        return TrainingSettings(tokens=self.tokens, seq_len=self.length, seed=seed, probe_steps=0)

    def corpus(self, seed: int) -> Corpus:
        if seed not in self.corpora:
            tokenizer = load_tokenizer(self.config())
            self.corpora[seed] = Corpus.of(tokenizer, None, self.tokens, LENGTHS[-1] * self.length, seed)
        return self.corpora[seed]

    def config(self, **options) -> TpttConfig:
        return TpttConfig(base_model_name=self.base, lora_config=self.lora, **options)

    def model(self, seed: int, whole: Iterable[int]) -> TpttModel:
        """Untrained: the layers ``whole`` as in the base, the others with window and memory; no memory where all are."""
        torch.manual_seed(seed)
        memory = [n for n in self.layers if n not in tuple(whole)]
        if not memory:
            return window_alone(TpttModel(self.config(mag_weight=0.0), dtype=torch.float32))
        model = TpttModel(self.config(layers=memory, max_self_attn_length=self.window), dtype=torch.float32)
        begin_memory(model, self.corpus(seed), self.settings(seed), self.length)
        return model

    def ranking(self, seed: int) -> dict[str, Any]:
        """All layers in the order in which they would be restored."""

        def make() -> dict[str, Any]:
            model = self.model(seed, ())
            rows = first_rows(self.corpus(seed), self.settings(seed), self.length)
            with mag_weight(model, 0.0):
                choice = choose_layers(model, rows, 1 - 1e-6, _FAR)
            return {"order": [*choice.whole, *choice.memory], "kl": [choice.start, *(x.kl[x.taken] for x in choice.rounds)],
                    "first": choice.rounds[0].kl if choice.rounds else {}}  # fmt: skip

        return self.runs.once(self.key("ranking", seed=seed), make)

    def trained(self, seed: int, whole: Layers) -> dict[str, Any]:
        """What a model with these whole layers has learned."""

        def make() -> dict[str, Any]:
            model = self.model(seed, whole)
            train(model, self.corpus(seed), self.settings(seed), self.length)
            return self.measured(model, seed)

        return self.runs.once(self.key("run", seed=seed, whole=sorted(whole)), make)

    def untrained(self) -> dict[str, Any]:
        """The base as it is."""
        return self.runs.once(self.key("base"), lambda: self.measured(self.plain(), 0))

    def plain(self):
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)

    def measured(self, model, seed: int) -> dict[str, Any]:
        """By length: perplexity, and recall inside and beyond the window; bytes of keys and values after one row.

        Raises:
            RuntimeError: reading through a cache does not give what one pass gives, or a token sees the future.
        """
        for check, found in verify(model, ("no future", "pieces")).items():
            if not isinstance(found, float) or found > TOLERANCE:
                raise RuntimeError(f"{check}: {found!r}")
        corpus, out = self.corpus(seed), {"perplexity": {}, "inside": {}, "beyond": {}}
        for times in LENGTHS:
            n = times * self.length
            score = recall_accuracy(model, corpus.recall(), n, self.window, _ROWS // times)
            out["perplexity"][str(times)] = perplexity(model, corpus.text(n, _TEXT))
            out["inside"][str(times)], out["beyond"][str(times)] = score.inside, score.beyond
        out["kv_bytes"] = self.held(model, corpus.held_out)
        return out

    def held(self, model, ids: torch.Tensor) -> int:
        """Bytes of keys and values after a row whose last token came alone: then a window is fullest."""
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with evaluating(model):
            for piece in ids[: self.length].split([self.length - 1, 1]):
                model(input_ids=piece[None], past_key_values=cache, use_cache=True)
        return measured_size(cache).kv_bytes


def run(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> None:
    """Every ranking and training that is not there yet."""
    total = len(bench.layers)
    bench.untrained()
    for seed in seeds:
        ranking = bench.ranking(seed)
        print(f"seed {seed}: order {ranking['order']}, KL {[round(x, 4) for x in ranking['kl']]}", flush=True)
        sets = dict.fromkeys(
            tuple(sorted(choose(tuple(ranking["order"]), n)))
            for n in numbers(budgets, total)
            for choose in ARMS.values()
        )
        for i, whole in enumerate(sets, 1):
            found = bench.trained(seed, whole)
            print(
                f"seed {seed}, {i}/{len(sets)}: whole {list(whole)}: perplexity {found['perplexity']['1']:.2f}, recall beyond "
                f"the window {', '.join(_share(x) for x in found['beyond'].values())} ({found['seconds']:.0f} s)",
                flush=True,
            )


def numbers(budgets: Sequence[float], total: int) -> list[int]:
    """How many of ``total`` layers each budget is."""
    return sorted({round(b * total) for b in budgets})


def _share(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def points(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> dict[str, dict[int, dict[str, Any]]]:
    """arm -> number of whole layers -> means over seeds, and the sets chosen."""
    base = bench.untrained()
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for arm, choose in ARMS.items():
        for n in numbers(budgets, len(bench.layers)):
            sets = [tuple(sorted(choose(tuple(bench.ranking(s)["order"]), n))) for s in seeds]
            lines = [bench.trained(s, w) for s, w in zip(seeds, sets, strict=True)]
            ratios = [[x["perplexity"][str(t)] / base["perplexity"]["1"] for x in lines] for t in LENGTHS]
            asked = [[x["beyond"][str(t)] for x in lines] for t in LENGTHS]
            beyond = [[math.nan if y is None else y for y in one] for one in asked]  # nothing asked is no recall of 0
            share = statistics.mean(x["kv_bytes"] / base["kv_bytes"] for x in lines)
            found[arm][n] = {"sets": sets, "share": share, "ratios": ratios, "beyond": beyond}
    return found


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def report(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> str:
    """The section for RESULTS.md."""
    base, found = bench.untrained(), points(bench, seeds, budgets)
    heads = ["", "layers", "keys and values"]
    heads += [f"perplexity at {t * bench.length} / base at {bench.length}" for t in LENGTHS]
    heads += [f"recall beyond W at {t * bench.length}" for t in LENGTHS]
    rows: list[list[str]] = []
    shown = set()
    for arm, by_number in found.items():
        for n, x in by_number.items():
            sets = " or ".join(str(list(s)) for s in dict.fromkeys(x["sets"])) if n else "none"
            name = {0: "window and memory everywhere", len(bench.layers): "whole everywhere, LoRA alone"}.get(n, arm)
            if name not in ARMS and name in shown:
                continue
            shown.add(name)
            rows.append([name, sets, f"{x['share']:.1%}", *map(_mean, x["ratios"]), *map(_mean, x["beyond"])])
    plain = [f"{base['perplexity'][str(t)] / base['perplexity']['1']:.2f}" for t in LENGTHS]
    rows.append(["base, untrained", "all", "100.0%", *plain, *(_share(base["beyond"][str(t)]) for t in LENGTHS)])
    ranked = [bench.ranking(s) for s in seeds]
    lines = [
        [f"seed {s}", " ".join(map(str, x["order"])), *(f"{k:.4f}" for k in x["kl"])]
        for s, x in zip(seeds, ranked, strict=True)
    ]
    counts = [f"{n} whole" for n in range(len(bench.layers))]
    return "\n\n".join([
        f"`python -m benchmarks.layers --tokens {bench.tokens} --seeds {' '.join(map(str, seeds))}` on {machine()}.",
        f"Base `{bench.name}`, {bench.parameters / 1e6:.2f} M parameters, {len(bench.layers)} layers; {bench.tokens:,} tokens of "
        "training in rows of "
        f"{bench.length}, W = {bench.window}, {len(seeds)} seeds (mean ± standard deviation). Keys and values: bytes held "
        f"after {bench.length} tokens over the base's, measured on the caches.",
        markdown_table(heads, rows),
        "### KL to the base in nats per token before training, layers restored one after another",
        markdown_table(["", "order", *counts], lines),
        "![recall and perplexity against keys and values](../docs/layers.png)",
    ])  # fmt: skip


def plot(bench: Bench, seeds: Sequence[int], budgets: Sequence[float], path: Path) -> Path:
    """Recall beyond the window at the training length and at the longest, and perplexity, against keys and values."""
    found = points(bench, seeds, budgets)
    figure, panels = new_figure(3)
    last = len(LENGTHS) - 1
    kinds = [("beyond", 0, "share right", f"recall beyond W at {bench.length}"),
             ("beyond", last, "share right", f"recall beyond W at {LENGTHS[last] * bench.length}"),
             ("ratios", 0, "times the base's", f"perplexity at {bench.length}")]  # fmt: skip
    for panel, (name, index, unit, title) in zip(panels, kinds, strict=True):
        for arm, by_number in found.items():
            x = [100 * p["share"] for p in by_number.values()]
            each = [p[name][index] for p in by_number.values()]
            y, spread = [statistics.mean(v) for v in each], [statistics.stdev(v) if len(v) > 1 else 0.0 for v in each]
            panel.errorbar(x, y, spread, marker="o", capsize=2, label=arm, color=COLORS[arm])
        panel.set(xlabel=f"keys and values held, % of the base's at {bench.length}", ylabel=unit, title=title)
    for panel in panels[:2]:
        panel.set_ylim(-0.02, 1.02)
    panels[0].legend(fontsize=8)
    return save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE), help="folder or hub id of the base")
    parser.add_argument("--tokens", type=int, default=524_288, help="of each training")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--window", type=int, default=64, help="W")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="parts of the layers kept whole"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "layers.jsonl", help="where results are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md and docs/layers.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(options.base, options.tokens, options.length, options.window, Runs(options.runs))
    run(bench, options.seeds, options.budgets)
    text = report(bench, options.seeds, options.budgets)
    print(text)
    place = ROOT / "docs" if options.write else options.runs.parent
    print(plot(bench, options.seeds, options.budgets, place / "layers.png"))
    if options.write:
        write_section(ROOT / "benchmarks" / "RESULTS.md", TITLE, text)


if __name__ == "__main__":
    main()
