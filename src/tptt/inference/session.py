"""A conversation whose past is a cache: text is read once, and asked about as often as one likes.

Where the cache is bounded, reading takes constant memory.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tptt.hf.compat import cache_keyword
from tptt.hf.modes import in_eval_mode
from tptt.hf.patch import stop_recording

from .options import check_options, chosen
from .rollback import RollbackPoint
from .snapshot import MemorySnapshot, new_cache
from .source import in_chunks, token_pieces

Progress = Callable[[int, float], None]
"""Called after each chunk with the tokens read by this call and the seconds since it began."""


class Session:
    """Reads and generates, and knows how far it has come. One sequence; not for training.

    The last token waits outside the cache, because `generate` has to be given one to go on from.

    Where a call fails or is interrupted (Ctrl-C), `generate`, `ask` and `restore` leave the session as it was before,
    and `read` as it is after the last chunk that was read whole: ``tokens`` says how many tokens that are.

    Whatever mode the model is in, a session computes in eval mode and without gradients: dropout would change what is
    remembered, and gradient checkpointing would lose it. Afterwards each part of the model is in its own mode again.

    Args:
        model: a converted model (TpttModel, or any causal language model after `attach_memory`).
        tokenizer: for text in and out; None: ids only.
        chunk_size: tokens read at once. The memory needed grows with it, the time per token falls.
    """

    def __init__(self, model, tokenizer=None, chunk_size: int = 512) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be an integer of 1 or more, got {chunk_size!r}")
        self.model, self.tokenizer, self.chunk_size = model, tokenizer, chunk_size
        with _computing(model):
            self.cache = new_cache(model)
        self._pending: tuple[int, ...] = ()  # part of the conversation, not in the cache yet
        self._limit, self._vocabulary = position_limit(model), vocabulary_size(model)

    @property
    def tokens(self) -> int:
        """Tokens of the conversation so far: read and generated."""
        return int(self.cache.get_seq_length()) + len(self._pending)

    def read(self, source: Any, progress: Progress | bool = False) -> Session:
        """Read text or token ids, however long, and return this session.

        Args:
            source: text; token ids [n] or [1, n] as a list, tuple, range, array or tensor of any integer type; what a
                tokenizer returns for one text, or a row of a data set (its ``input_ids``, without what
                ``attention_mask`` says is padding); or an iterable (a file opened as text, a generator, a list) of any
                of these, which are read one after another.
            progress: True shows a line with tokens and tokens per second; or a function to call after each chunk.

        Raises:
            TypeError: the source is none of these (bytes, several rows, numbers that are no integers, None, ...), or
                text comes without a tokenizer.
            ValueError: an id is negative or beyond the model's vocabulary, or an attention mask does not fit; or the
                base has a table of positions, and the text runs over its end. Ids that lie in memory are checked before
                any of them is read, those of an iterator piece by piece.
        """
        pieces = self._pieces(source)
        report, start, done = _reporter(progress), time.perf_counter(), 0
        try:
            for chunk in in_chunks(pieces, self.chunk_size):
                with _computing(self.model):  # not while the source runs, which may use the model itself
                    self._read_chunk(chunk)
                done += len(chunk)
                report(done, time.perf_counter() - start)
        finally:
            report(-1, time.perf_counter() - start)
        return self

    def _read_chunk(self, chunk: torch.Tensor) -> None:
        said = [*self._pending] + chunk.tolist()
        ids = torch.tensor([said[:-1]], dtype=torch.long, device=self.model.device)
        self._check_room(ids.shape[1])
        with self._whole_or_not_at_all():
            if ids.shape[1]:
                self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache_keyword(self.model, self.cache))
            self._pending = (said[-1],)

    def generate(self, prompt: Any = None, **options) -> torch.Tensor:
        """Go on with ``prompt`` (text or ids) and return the new ids [n]; both become part of the conversation.

        Args:
            prompt: what is said, as `read` takes it; None: the text read so far is continued.
            options: of transformers' ``generate``.

        Raises:
            TypeError: as `read`.
            ValueError: as `read`; or beams or several sequences are asked for, which no single conversation can go on
                from (`ask` takes them); or no cache, or more than ids; or there is nothing to go on from.
        """
        check_options(self.model, options)
        if (many := self._rows(options)) > 1:
            raise ValueError(
                f"{many} beams or sequences (in the call, its generation_config or the model's) cannot all be gone on "
                "from: use ask(), which leaves the session as it is, or set num_beams=1 and num_return_sequences=1"
            )
        ids, before = self._prompt(prompt), int(self.cache.get_seq_length())
        with self._whole_or_not_at_all():
            out = self._generate(self.cache, ids, options)[0, ids.shape[1] :]
            stop_recording(self.model, self.cache)
            unread = before + ids.shape[1] + len(out) - int(self.cache.get_seq_length())
            self._pending = tuple(out[len(out) - unread :].tolist())
        return out

    def ask(self, prompt: Any, **options) -> str | torch.Tensor:
        """The answer to ``prompt`` (as of `generate`); the session stays as it was.

        Returns:
            Text where there is a tokenizer, ids [n] where not; with ``num_return_sequences`` ids [N, n].

        Raises:
            TypeError: as `read`.
            ValueError: as `read`; or no cache is asked for, or more than ids; or there is nothing to go on from.
        """
        check_options(self.model, options)
        ids, cache = self._prompt(prompt), self._copied_cache()
        if (many := self._rows(options)) > 1:
            cache.batch_repeat_interleave(many)
        out = self._generate(cache, ids, options)[:, ids.shape[1] :]
        if len(out) > 1:
            return out
        return out[0] if self.tokenizer is None else self.tokenizer.decode(out[0], skip_special_tokens=True)

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Within, an exception takes the session back to where it was; else layers and ``tokens`` would disagree."""
        point, pending = RollbackPoint(self.cache), self._pending
        try:
            yield
        except BaseException:  # Ctrl-C is none of Exception
            point.go_back()
            self._pending = pending
            raise

    def _rows(self, options: dict) -> int:
        """Rows that `generate` makes of one."""
        return max(chosen(self.model, options, name) or 1 for name in ("num_beams", "num_return_sequences"))

    def _pieces(self, source: Any) -> Iterator[torch.Tensor]:
        return token_pieces(source, self.tokenizer, first=self.tokens == 0, vocabulary=self._vocabulary)

    def _copied_cache(self):
        with _computing(self.model):
            return copy.deepcopy(self.cache)

    def _prompt(self, prompt: Any) -> torch.Tensor:
        """[1, n] ids still to be read: what waits, and the prompt. At least one, which `generate` has to be given."""
        pieces = [] if prompt is None else list(self._pieces(prompt))
        ids = torch.cat([torch.tensor(self._pending, dtype=torch.long), *pieces])
        if not len(ids):
            raise ValueError("there is nothing to go on from: read something, or give a prompt")
        return ids[None].to(self.model.device)

    def _generate(self, cache, ids: torch.Tensor, options: dict) -> torch.Tensor:
        past = int(cache.get_seq_length())
        self._check_room(ids.shape[1])
        # of the whole conversation, which tells generate that ids are only what is new
        mask = torch.ones(1, past + ids.shape[1], dtype=torch.long, device=ids.device)
        if chosen(self.model, options, "pad_token_id") is None:
            options["pad_token_id"] = 0
        with _computing(self.model):
            return self.model.generate(ids, attention_mask=mask, **cache_keyword(self.model, cache), **options)

    def _check_room(self, more: int) -> None:
        read = int(self.cache.get_seq_length())
        if self._limit is not None and read + more > self._limit:
            raise ValueError(
                f"{type(self.model).__name__} has a table of {self._limit} positions: after {read} tokens it cannot "
                f"read {more} more. A base with rotary or ALiBi positions has no such end"
            )

    def snapshot(self) -> MemorySnapshot:
        """What the session holds now, as data that can be saved."""
        with _computing(self.model):
            return MemorySnapshot.of(self.model, self.cache, self._pending)

    def restore(self, snapshot: MemorySnapshot) -> Session:
        """Go back (or on) to ``snapshot``; returns this session.

        Raises:
            ValueError: it was taken from another model.
        """
        with _computing(self.model):
            self.cache, self._pending = snapshot.cache(self.model), snapshot.pending
        return self

    def fork(self) -> Session:
        """A second session that goes on from here by itself."""
        other = copy.copy(self)
        other.cache = self._copied_cache()
        return other

    def save(self, path: str | Path) -> Path:
        """Write a snapshot to ``path`` (safetensors); returns it."""
        return self.snapshot().save(path)

    @classmethod
    def load(cls, path: str | Path, model, tokenizer=None, chunk_size: int = 512) -> Session:
        """A session that goes on from what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: it is no snapshot, or one of another model.
        """
        return cls(model, tokenizer, chunk_size).restore(MemorySnapshot.load(path))


def stream(model, source: Any, tokenizer=None, chunk_size: int = 512, progress: Progress | bool = False) -> Session:
    """Read text or tokens without end through ``model``, and return the session to go on with.

    The memory that reading takes does not grow with the text where the cache is bounded: where the model has a window
    (``max_self_attn_length``) or no softmax at all. `Session.read` explains the arguments.

        session = tptt.stream(model, open("book.txt"), tokenizer, progress=True)
        print(session.ask("Who is the murderer?", max_new_tokens=50))
    """
    return Session(model, tokenizer, chunk_size).read(source, progress)


@contextmanager
def _computing(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` computes in eval mode and without gradients, and makes tensors that may be changed later: those
    made in the caller's inference mode could not be written to outside of it."""
    with in_eval_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


def vocabulary_size(model: nn.Module) -> int | None:
    """Rows of the model's embedding, which token ids lie below; None: unknown."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    rows = getattr(embedding, "num_embeddings", None)
    if rows is None and embedding is not None and getattr(embedding, "weight", None) is not None:
        rows = embedding.weight.shape[0]
    return rows or getattr(model.config.get_text_config(decoder=True), "vocab_size", None)


def position_limit(model: nn.Module) -> int | None:
    """Positions in the base's learned table; None where positions are rotary, ALiBi or none."""
    names = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "embed_position")
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names and isinstance(module, nn.Embedding):
            limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
            return min(limit or module.num_embeddings, module.num_embeddings)
    return None


def _reporter(progress: Progress | bool) -> Progress:
    """A function to call after each chunk, and with -1 at the end."""
    if callable(progress):
        return lambda done, seconds: None if done < 0 else progress(done, seconds)
    if not progress:
        return lambda done, seconds: None
    from rich.console import Console

    status = Console(stderr=True).status("reading")
    status.start()

    def show(done: int, seconds: float) -> None:
        if done < 0:
            status.stop()
        else:
            status.update(f"{done:,} tokens read, {done / seconds:,.0f} tokens/s")

    return show
