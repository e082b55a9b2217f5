"""The memory that a text takes does not depend on its size."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("memory_worker.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the resident set as Linux does")


def measured(path, limit):
    """What reading a text took, in MiB; ``limit`` 0 tokenizes all of it."""
    done = subprocess.run(
        [sys.executable, WORKER, path, str(limit)], capture_output=True, text=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


@pytest.fixture
def big(tmp_path):
    """make(mebibytes, suffix) -> a text of that size; it is deleted after the test."""
    path = tmp_path / "a.txt"

    def make(mebibytes, suffix=".txt"):
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(5000)]
        lines = [" ".join(rng.choices(words, k=12)) for _ in range(1 << 14)]
        block = "\n".join(lines if suffix == ".txt" else (json.dumps({"text": line * 30}) for line in lines)) + "\n"
        with path.with_suffix(suffix).open("w", encoding="utf-8") as file:
            while file.tell() < mebibytes << 20:
                file.write(block)
        return path.with_suffix(suffix)

    yield make
    for suffix in (".txt", ".jsonl"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_of_a_large_text_no_more_is_held_than_is_being_read(big, suffix):
    path = big(500, suffix)
    found = measured(path, 100_000)
    assert found["train"] == found["held_out"] == 100_000
    assert found["growth"] < 250, "MiB, where the file has 500"


@pytest.mark.slow
def test_all_of_a_text_is_tokenized_in_the_same_memory(big):
    path = big(200)
    found = measured(path, 0)
    tokens = found["train"] + found["held_out"]
    assert tokens > 40_000_000
    assert found["growth"] < 300, f"MiB, where {tokens} tokens in a list of Python have {36 * tokens >> 20}"
