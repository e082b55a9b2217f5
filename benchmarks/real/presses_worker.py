"""Reads rows with a press of kvpress, in the environment of kvpress. `presses` starts it.

It takes a job as JSON in its argument, and rows as JSON on its standard input, one a line; it writes an answer to each
as JSON on its standard output. The context is read and pressed, then question and answer follow, at the positions that
they have in the whole prompt. Of this project it takes only files that need nothing but torch, by their paths.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent


def file_module(path: Path):
    """A Python file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


judge = file_module(HERE / "judge.py")
peak = file_module(HERE / "peak.py")
cache_size = file_module(HERE.parents[1] / "src" / "tptt" / "hf" / "cache_size.py")


def held(model, cache) -> int:
    """Bytes that the pressed cache holds. A press that only hides pairs (KVzip) is counted as if it had dropped
    them; what it read after the context, and cut off as a view, goes first."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
    total = cache_size.measured_size(cache).bytes
    for layer in model.model.layers:
        hidden = getattr(layer.self_attn, "masked_key_indices", None)
        if hidden is not None:
            keys = cache.layers[layer.self_attn.layer_idx].keys
            total -= 2 * len(hidden[0]) * keys.shape[-1] * keys.element_size()
    return total


def answer(model, tokenizer, press, asked: dict) -> dict:
    """The answer to a row."""
    context, question = (torch.tensor([asked[part]], dtype=torch.long) for part in ("context", "question"))
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    cache, start = DynamicCache(), time.perf_counter()
    with peak.peak_memory() as found, press(model):
        model.model(input_ids=context, past_key_values=cache)
    size = held(model, cache)
    place, piece, ids, stopped, text, read_at = context.shape[1], question, [], "", "", 0.0
    while not stopped:
        positions = torch.arange(place, place + piece.shape[1])[None]
        logits = model(
            input_ids=piece, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=1
        ).logits
        place += piece.shape[1]
        ids.append(int(logits[0, -1].argmax()))
        piece = torch.tensor([ids[-1:]])
        read_at = read_at or time.perf_counter()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if ids[-1] in ends:
            stopped = "end"
        elif judge.score(text, asked["answers"], asked["judge"]) == 1:
            stopped = "found"
        elif len(ids) >= asked["room"]:
            stopped = "room"
    return {
        "text": text,
        "tokens": len(ids),
        "stopped": stopped,
        "context_tokens": context.shape[1],
        "prompt_tokens": context.shape[1] + question.shape[1],
        "bytes_at_question": size,
        "peak_bytes": found.bytes,
        "prefill_seconds": read_at - start,
        "decode_seconds": time.perf_counter() - read_at,
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes where messages go
    disable_progress_bar()
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    press = getattr(kvpress, job["press"])(compression_ratio=1 - job["share"])
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "kvpress")}
    with torch.inference_mode():
        model(input_ids=torch.arange(8)[None])  # brings the weights into memory, which is no part of a row's peak
        for line in sys.stdin:
            found = answer(model, tokenizer, press, json.loads(line)) | {"versions": versions}
            answers.write(json.dumps(found) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
