"""How closely a memory follows softmax heads that look things up, by feature map: `python -m benchmarks.features`.

No conversion: the memory of each layer alone is trained to give out what the base's attention gives out where answers are
asked, from the base's own projections. Printed is what is left of that, on rows of held-out text: the squared distance over
the base's mean square.
Legend: N rows, T tokens, H heads, D head width.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tptt import MemoryConfig, attach_memory, calibrate
from tptt.assets import BASE
from tptt.config import FEATURE_MAPS
from tptt.data import IGNORE
from tptt.evaluation import markdown_table
from tptt.hf import as_base, attention_outputs, memories, memory_layers
from tptt.train import Corpus

LENGTH = 512


def captured(model, ids: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Of each layer its input, q, k, v [N, T, heads, D] and the base's attention output [N, T, H * D]."""
    inputs, projections = [], []
    handles = []
    for layer in memory_layers(model):
        module, split, parts = layer.attention, layer.geometry.split, layer.geometry.layout.projections
        kept: dict[str, torch.Tensor] = {}
        for name in parts:
            child = getattr(module, name)
            handles.append(
                child.register_forward_hook(
                    lambda m, a, o, kept=kept, name=name: kept.update({name: o, "hidden": a[0]})
                )
            )
        inputs.append((module, split, kept))
    with torch.no_grad(), as_base(model), attention_outputs(model) as outputs:
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for (module, split, kept), out in zip(inputs, outputs, strict=True):
        projections.append((kept["hidden"], *split(module, kept), out))
    return projections


def left_over(base: str, feature_map: str, steps: int, seed: int) -> list[float]:
    """Of each layer, what of the base's attention output at asked answers the trained memory does not give."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base).eval().requires_grad_(False)
    attach_memory(model, MemoryConfig(feature_map=feature_map, max_self_attn_length=LENGTH // 8))
    corpus = Corpus.of(AutoTokenizer.from_pretrained(base), None, 200_000, LENGTH, seed)
    calibrate(model, corpus.stream[: 4 * LENGTH].view(4, LENGTH), LENGTH)
    generator = torch.Generator().manual_seed(seed)
    drawn = corpus.recall().draw(40, LENGTH, generator)
    layers = captured(model, drawn.input_ids)
    asked = F.pad(drawn.answers[:, 1:] != IGNORE, (0, 1))
    found = []
    for memory, (hidden, q, k, v, target) in zip(memories(model), layers, strict=True):
        optimizer = torch.optim.AdamW(memory.parameters(), lr=1e-2, weight_decay=0.0)

        def distance(rows, memory=memory, hidden=hidden, q=q, k=k, v=v, target=target) -> torch.Tensor:
            out = memory(hidden[rows], q[rows], k[rows], v[rows], None).flatten(2)[asked[rows]]
            want = target[rows][asked[rows]]
            return (out - want).pow(2).mean() / want.pow(2).mean()

        for _ in range(steps):
            loss = distance(torch.randint(32, (4,), generator=generator))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found.append(float(distance(torch.arange(32, 40))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [[name, *(f"{x:.2f}" for x in left_over(args.base, name, args.steps, args.seed))] for name in FEATURE_MAPS]
    print(markdown_table(["feature map", *(f"layer {i}" for i in range(len(rows[0]) - 1))], rows))


if __name__ == "__main__":
    main()
