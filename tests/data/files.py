"""Files for tests."""

import json
from pathlib import Path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def jsonl(texts, column: str = "text") -> str:
    return "".join(json.dumps({column: text}) + "\n" for text in texts)


def texts(number: int, words: int = 40) -> list[str]:
    """Texts of about the same length, all different."""
    return [" ".join(f"w{i * words + j:05}" for j in range(words)) + "\n" for i in range(number)]
