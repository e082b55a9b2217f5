"""How closely a memory follows softmax heads that look things up, by feature map.

python -m benchmarks.features

Nothing is converted. The memory of each layer is trained by itself, on the base's own projections, to give out what
the base's attention gives out where answers are asked. What is left is printed, for other rows: the squared distance
over the base's mean square. Legend: N rows, T tokens, H heads, D head width.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.record import section
from tptt import MemoryConfig, attach_memory, calibrate
from tptt.assets import BASE
from tptt.config import FEATURE_MAPS
from tptt.data import IGNORE, pack_rows
from tptt.evaluation import markdown_table
from tptt.hf import as_base, attention_outputs, memories, memory_layers
from tptt.memory import Tokens
from tptt.train import Corpus

LENGTH = 512
TRAINED, MEASURED = 32, 80  # rows


def captured(model, ids: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """For each layer its input, q, k, v [N, T, heads, D] and the base's attention output [N, T, H * D]."""
    layers, handles = [], []
    for layer in memory_layers(model):
        kept: dict[str, torch.Tensor] = {}
        for name in layer.geometry.layout.projections:

            def keep(module, args, out, kept=kept, name=name):
                kept.update({name: out, "hidden": args[0]})

            handles.append(getattr(layer.attention, name).register_forward_hook(keep))
        layers.append((layer, kept))
    with torch.no_grad(), as_base(model), attention_outputs(model) as outputs:
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return [
        (kept["hidden"], *layer.geometry.split(layer.attention, kept), out)
        for (layer, kept), out in zip(layers, outputs, strict=True)
    ]


def left_over(base: str, feature_map: str, steps: int, seed: int) -> tuple[list[float], int]:
    """What the trained memory of each layer does not give of the base's attention output at asked answers, and the
    number of answers that this was measured on."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base).eval().requires_grad_(False)
    attach_memory(model, MemoryConfig(feature_map=feature_map, max_self_attn_length=LENGTH // 8))
    corpus = Corpus.of(AutoTokenizer.from_pretrained(base), None, 200_000, LENGTH, seed)
    calibrate(model, pack_rows(corpus.stream[: 4 * LENGTH], LENGTH), LENGTH)
    generator = torch.Generator().manual_seed(seed)
    drawn = corpus.recall().draw(TRAINED + MEASURED, LENGTH, generator)
    layers = captured(model, drawn.input_ids)
    asked = F.pad(drawn.answers[:, 1:] != IGNORE, (0, 1))
    found = []
    for memory, layer in zip(memories(model), layers, strict=True):
        optimizer = torch.optim.AdamW(memory.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(steps):
            squared, size = distance(memory, layer, asked, torch.randint(TRAINED, (4,), generator=generator))
            (squared / size).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            parts = torch.arange(TRAINED, TRAINED + MEASURED).split(8)
            squares, sizes = zip(*(distance(memory, layer, asked, rows) for rows in parts), strict=True)
            found.append(float(sum(squares) / sum(sizes)))
    return found, int((drawn.number[TRAINED:].amax(1) + 1).sum())


def distance(
    memory, layer: tuple[torch.Tensor, ...], asked: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared distance of ``memory`` from the base's attention output at the ``asked`` [N, T] tokens of ``rows``,
    and the square of that output."""
    hidden, q, k, v, target = layer
    out = memory(q[rows], Tokens(hidden[rows], k[rows], v[rows], None)).flatten(2)[asked[rows]]
    want = target[rows][asked[rows]]
    return (out - want).pow(2).sum(), want.pow(2).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name in FEATURE_MAPS:
        found, answers = left_over(args.base, name, args.steps, args.seed)
        rows.append([name, *(f"{x:.2f}" for x in found), str(answers)])
    heads = ["feature map", *(f"layer {i}" for i in range(len(rows[0]) - 2)), "answers"]
    print(section("features", "python -m benchmarks.features", [markdown_table(heads, rows)]))


if __name__ == "__main__":
    main()
