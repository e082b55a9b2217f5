"""Reads a text and says how much memory that took: memory_worker.py PATH LIMIT. Prints JSON.

Memory is the growth of the largest resident set, of the kernel's account, from a small text to this one.
"""

import json
import resource
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs as a script
from tests.data.files import jsonl, texts, write  # noqa: E402
from tptt.assets import BASE  # noqa: E402
from tptt.data import load_text, tokenize_once  # noqa: E402


def read(tokenizer, path, limit):
    split = load_text(str(path))
    return [len(tokenize_once(tokenizer, part, limit).ids) for part in (split.train.shuffled(0), split.held_out)]


def peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    path, limit = Path(sys.argv[1]), int(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    small = path.with_name(f"small{path.suffix}")
    read(tokenizer, write(small, jsonl(texts(999)) if path.suffix == ".jsonl" else "".join(texts(999))), 10_000)
    before, begun = peak(), time.perf_counter()
    train, held_out = read(tokenizer, path, limit or None)
    seconds = time.perf_counter() - begun
    found = {"before": before, "growth": peak() - before, "train": train, "held_out": held_out, "seconds": seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
