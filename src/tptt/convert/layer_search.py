"""Which layers keep their whole context: those whose restoring brings the model nearest to its base, under a budget.

A converted model has three kinds of layers: the base's own attention over the whole context, window and memory, memory
alone. Ranking by the Kullback-Leibler divergence that one restored layer saves follows fla-org/hybrid-distillation;
here layers are taken one after another, because what a layer saves depends on which are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch import nn

from tptt.evaluation import LayerKV, held_kv, layer_kv
from tptt.hf import NoMemory, memory_layers
from tptt.hf.patch import attention_body, can_leave_softmax_out
from tptt.progress import report_progress

from .divergence import Batch, Change, divergences
from .layer_choice import LayerChoice, Round, check_kv_budget

Measure = Callable[[Sequence[Change]], list[float]]


def choose_layers(
    model: nn.Module,
    batches: Sequence[Batch],
    kv_budget: float,
    length: int | None = None,
    memory_only: str | Collection[int] = (),
) -> LayerChoice:
    """Choose the layers that keep their whole context so that keys and values stay within ``kv_budget``.

    The model is measured as it is. Before training that is the base with a window in every layer (`windowed`), or a
    converted model at mu = 0; after some training a restored layer has neither window nor memory, and what the other
    memories have learned counts. The layer that saves most KL per byte is taken, then the next beside it, until none
    fits any more. If windows in every layer are over the budget already, the layers that miss their softmax least get
    memory alone instead, measured as if they gave nothing.

    It takes `passes` forward passes of each batch. In memory are the model and the logits of one batch.

    Args:
        model: with a window in every layer that may be chosen, and the base inside (LoRA or frozen).
        batches: ``input_ids`` [B, T] and, where tokens weigh differently, ``loss_weights`` [B, T] (see `MixedRows`). T
            has to lie beyond the window; rows that ask for facts say most.
        kv_budget: in [0, 1): bytes of keys and values over those of the base, for one sequence of ``length`` tokens.
        length: None is T of the first batch. At a longer one windows weigh less, so that more layers fit.
        memory_only: layers that hold no keys and values unless they are chosen, "all" or their numbers.

    Raises:
        ValueError: a value is out of its range, no layer has a window, ``length`` does not lie beyond it, or the base's
            own weights train.
    """
    if not batches:
        raise ValueError("choose_layers needs one batch or more to measure on")
    length = batches[0]["input_ids"].shape[1] if length is None else length
    kinds, total = _sizes(model, length), passes(model, kv_budget, length, memory_only) * len(batches)
    with report_progress("choosing layers", total, "forward passes") as progress:

        def measure(changes: Sequence[Change]) -> list[float]:
            return divergences(model, batches, changes, progress.advance)

        search = _Search(model, measure, kinds, kv_budget, length, memory_only)
        windows = [x.window for x in memory_layers(model) if x.layer in search.able and x.window is not None]
        if (longest := max(x["input_ids"].shape[1] for x in batches)) <= min(windows):
            raise ValueError(f"rows of {longest} tokens show nothing of what lies beyond a window of {min(windows)}")
        return search.run()


def count_layers(
    model: nn.Module, kinds: list[LayerKV], kv_budget: float, length: int, memory_only: str | Collection[int] = ()
) -> LayerChoice:
    """As many layers as `choose_layers` would choose, the first ones: which of them, only a measurement says."""
    return _Search(model, lambda changes: [0.0] * len(changes), kinds, kv_budget, length, memory_only).run()


def passes(model: nn.Module, kv_budget: float, length: int, memory_only: str | Collection[int] = ()) -> int:
    """About how many forward passes of a batch `choose_layers` takes: the base's own and one for each candidate, in
    each round. Exact where all layers hold as much as each other.
    """
    taken = 0

    def count(changes: Sequence[Change]) -> list[float]:
        nonlocal taken
        taken += 1 + len(changes)
        return [0.0] * len(changes)

    _Search(model, count, _sizes(model, length), kv_budget, length, memory_only).run()
    return taken


def _sizes(model: nn.Module, length: int) -> list[LayerKV]:
    """`layer_kv`, with the states that the memories of a windowed base will have."""
    planned = {
        x.layer: x.memory.planned.cached_bytes
        for x in memory_layers(model)
        if isinstance(x.memory, NoMemory) and x.memory.planned is not None
    }
    return [replace(x, state=planned.get(x.layer, x.state)) for x in layer_kv(model, length)]


class _Search:
    """Rounds of `choose_layers`."""

    def __init__(
        self,
        model: nn.Module,
        measure: Measure,
        kinds: list[LayerKV],
        kv_budget: float,
        length: int,
        memory_only: str | Collection[int],
    ) -> None:
        check_kv_budget(kv_budget)
        bounded = [x for x in kinds if x.window is not None]
        if not bounded:
            raise ValueError("choose_layers weighs windows against whole contexts: set max_self_attn_length")
        # layers that could keep more than their window
        self.able = [x.layer for x in bounded if x.window is not None and x.window < x.whole]
        if not self.able:
            raise ValueError(
                f"at {length} tokens no window is narrower than the base's own attention: count the budget at a longer "
                "length"
            )
        known = [x.layer for x in bounded]
        if isinstance(memory_only, str) and memory_only != "all":
            raise ValueError(f"memory_only must be 'all' or layer numbers, got {memory_only!r}")
        # layers that are to have no softmax unless they are chosen
        self.only = known if isinstance(memory_only, str) else list(memory_only)
        if strange := [n for n in self.only if n not in known]:
            raise ValueError(f"memory_only names layers {strange} that have no memory with a window; valid are {known}")
        self.model, self.measure, self.kinds, self.kv_budget, self.length = model, measure, kinds, kv_budget, length
        self.whole: list[int] = []
        self.muted: list[int] = []
        self.rounds: list[Round] = []
        self.kl = 0.0  # after the last of them
        self.base_bytes = sum(x.whole for x in kinds)

    def run(self) -> LayerChoice:
        (start,) = self.measure([((), ())])
        self.kl = start
        if self._bytes() > self._most:
            self._mute()
        else:
            self._restore()
        carried = [x for x in self.kinds if x.state and x.layer not in self.whole]
        memory = tuple(x.layer for x in carried)
        gone = (*self.only, *self.muted)
        return LayerChoice(
            kv_budget=self.kv_budget,
            length=self.length,
            whole=tuple(self.whole),
            memory=memory,
            memory_only=tuple(n for n in memory if n in gone),
            start=start,
            rounds=tuple(self.rounds),
            base_bytes=self.base_bytes,
            kv_bytes=self._bytes(),
            state_bytes=sum(x.state for x in carried),
        )

    @property
    def _most(self) -> float:
        return self.kv_budget * self.base_bytes

    def _bytes(self, *more: int) -> int:
        whole = (*self.whole, *more)
        return held_kv(self.kinds, whole, [n for n in (*self.only, *self.muted) if n not in whole])

    def _restore(self) -> None:
        """Give layers their whole context while the budget lasts; one at least keeps its memory."""
        while len(self.whole) + 1 < len(memory_layers(self.model)):
            fitting = [n for n in self.able if n not in self.whole and self._bytes(n) <= self._most]
            if not fitting:
                return
            now = self._bytes()
            changes = [((*self.whole, n), ()) for n in fitting]
            kl = dict(zip(fitting, self.measure(changes), strict=True))
            saved = {n: (self.kl - kl[n]) / (self._bytes(n) - now) for n in fitting}
            taken = max(saved, key=saved.__getitem__)
            self.rounds.append(Round(kl, taken))
            self.whole.append(taken)
            self.kl = kl[taken]

    def _mute(self) -> None:
        """Take the softmax of layers away until the rest fits the budget."""
        body = attention_body(self.model)
        able = [x.layer for x in memory_layers(self.model) if can_leave_softmax_out(x.attention, body)]
        while self._bytes() > self._most:
            left = [n for n in able if n not in (*self.muted, *self.only)]
            if not left:
                raise ValueError(
                    f"keys and values of {self._bytes() / self.base_bytes:.1%} of the base's are left at {self.length} "
                    f"tokens, over the kv_budget of {self.kv_budget:.1%}, in layers that cannot do without their "
                    "softmax: take a narrower window or a longer length"
                )
            changes = [((), (*self.muted, n)) for n in left]
            kl = dict(zip(left, self.measure(changes), strict=True))
            taken = min(kl, key=kl.__getitem__)
            self.rounds.append(Round(kl, taken))
            self.muted.append(taken)
