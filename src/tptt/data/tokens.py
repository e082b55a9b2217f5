"""Token ids of documents. A text is tokenized once: its ids are kept in the cache of `datasets`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

from tptt.progress import report_progress

from .documents import Documents, fingerprint

_FORM = 1  # of what is kept
_INT32 = "i"  # as `array` calls it
_BATCH = 1 << 20  # characters that are tokenized at a time: a tokenizer takes about 200 bytes for a token
_BATCH_DOCUMENTS = 64
BEGINNING = 2_000_000
"""Characters of the documents that are kept beside the ids."""


class TokenizedText(NamedTuple):
    """A text as token ids.

    Args:
        ids: [n] int32, memory-mapped; each document, or piece of one, ends with the end-of-sequence token.
        beginning: the first two million characters of the documents.
    """

    ids: torch.Tensor
    beginning: str


def tokenize(tokenizer, documents: Iterable[str], limit: int | None = None) -> torch.Tensor:
    """Token ids ``[n]`` of int64, in memory; each document ends with the end-of-sequence token.

    Args:
        tokenizer: any tokenizer of Hugging Face.
        documents: read as far as ``limit`` needs.
        limit: the most tokens; None is all of them.
    """
    found = [torch.tensor(ids) for ids in _batches(tokenizer, documents, limit)]
    return torch.cat([torch.empty(0, dtype=torch.long), *found]).long()


def tokenize_once(
    tokenizer, documents: Sequence[str] | Documents, limit: int | None = None, name: str = "tokenizing the text"
) -> TokenizedText:
    """Token ids of ``documents``, from the cache where they were tokenized before.

    The cache is a folder in that of `datasets` (``HF_DATASETS_CACHE``, ``HF_HOME``). What is found there was made of
    the same text by the same tokenizer with the same ``limit``. Ids are written as they are made and take no memory.
    A process that is interrupted leaves nothing that would be taken for whole. Of several processes one tokenizes, and
    the others wait for it.

    Args:
        tokenizer: any tokenizer of Hugging Face.
        documents: read as far as ``limit`` needs.
        limit: the most tokens; None is all of them.
        name: what to call this where progress is reported.

    Raises:
        OSError: the cache cannot be written; the message says how to choose another one.
    """
    root = cache_folder()
    parts = [_FORM, fingerprint(documents), tokenizer_fingerprint(tokenizer), limit]
    folder = root / hashlib.blake2b(json.dumps(parts).encode("utf-8"), digest_size=16).hexdigest()
    if not folder.is_dir():
        _make(root)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _write(folder, tokenizer, documents, limit, name)
    beginning = (folder / "beginning.txt").read_bytes().decode("utf-8")
    return TokenizedText(_mapped(folder / "ids"), beginning)


def cache_folder() -> Path:
    """Where the ids of texts are kept."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "tptt-tokens"


def tokenizer_fingerprint(tokenizer) -> str:
    """Tokenizers with the same one make the same ids of a text."""
    if not tokenizer.is_fast:
        from datasets.fingerprint import Hasher

        return Hasher.hash(tokenizer)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    for left_by_last_call in ("truncation", "padding"):
        core.pop(left_by_last_call, None)
    parts = json.dumps([core, tokenizer.eos_token_id, tokenizer.split_special_tokens])
    return hashlib.blake2b(parts.encode("utf-8"), digest_size=16).hexdigest()


def _batches(tokenizer, documents: Iterable[str], limit: int | None) -> Iterator[array[int]]:
    """Ids of the documents, those of some megabytes of text at a time, ``limit`` in all."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    left = math.inf if limit is None else limit
    groups = _groups(documents)
    while left > 0 and (group := next(groups, None)) is not None:
        # verbose=False: a text is cut into rows afterwards, so that its length is no cause for a warning
        found = tokenizer(group, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = array(_INT32, (i for ids in found for i in (*ids, *end)))
        ids = ids if len(ids) <= left else ids[: int(left)]
        left -= len(ids)
        yield ids


def _groups(documents: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= _BATCH or len(group) == _BATCH_DOCUMENTS:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Read:
    """Documents that are read once, the beginning of which is kept."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = iter(documents)
        self._kept: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        for document in self._documents:
            self._keep(document)
            yield document

    def beginning(self) -> str:
        """The first `BEGINNING` characters; reads on where fewer were read."""
        while self._size < BEGINNING and (document := next(self._documents, None)) is not None:
            self._keep(document)
        return "\n".join(self._kept)[:BEGINNING]

    def _keep(self, document: str) -> None:
        if self._size < BEGINNING:
            self._kept.append(document)
            self._size += len(document)


def _write(folder: Path, tokenizer, documents: Iterable[str], limit: int | None, name: str) -> None:
    """Tokenize into a folder of another name, which is renamed when all is there."""
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        read = _Read(documents)
        with report_progress(name, limit, "tokens") as progress, (unfinished / "ids").open("wb") as file:
            for ids in _batches(tokenizer, read, limit):
                ids.tofile(file)
                progress.advance(len(ids))
        (unfinished / "beginning.txt").write_bytes(read.beginning().encode("utf-8", "replace"))
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError("it cannot be written")
    except OSError as error:
        raise OSError(f"tokens are kept in {root}: {error}; HF_DATASETS_CACHE names another folder") from error


def _mapped(path: Path) -> torch.Tensor:
    size = path.stat().st_size // 4
    return torch.from_file(str(path), size=size, dtype=torch.int32) if size else torch.empty(0, dtype=torch.int32)
