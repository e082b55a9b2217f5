"""Any order of reading, moving rows, taking back and going back to a snapshot gives what recomputation gives."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, MemorySnapshot, attach_memory
from tptt.inference.snapshot import new_cache

WINDOW = {"max_self_attn_length": 5, "sink_tokens": 2}
MODELS = {
    "full": ("llama", {}),
    "window": ("llama", WINDOW | {"operator": "gated_delta_rule"}),
    "history": ("qwen2", WINDOW | {"operator": "gated_delta_product", "write_gate": "kv", "states": "kv_head"}),
    "partial": ("gemma2", WINDOW | {"layers": [1]}),
    "memory only": ("llama", {"memory_only_layers": [0], "operator": "kda"}),
    "activated": ("llama", WINDOW | {"operator": "delta_rule_gelu", "state_activation_every": 3}),
    "latent": ("deepseek_v3", WINDOW),
}
MOST_ROWS = 4


@functools.cache
def model_of(name):
    family, options = MODELS[name]
    return randomize(attach_memory(tiny_model(family), MemoryConfig(**options)))


def rows(low=0, high=MOST_ROWS - 1, least=1, most=MOST_ROWS):
    return st.lists(st.integers(low, high), min_size=least, max_size=most)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 8)),
        st.tuples(st.just("reorder"), rows()),
        st.tuples(st.just("select"), rows()),
        st.tuples(st.just("repeat"), st.integers(2, 3)),
        st.tuples(st.just("take back"), st.integers(1, 6), st.integers(0, 6)),
        st.tuples(st.just("keep")),
        st.tuples(st.just("go back")),
        st.tuples(st.just("reset")),
    ),
    min_size=1,
    max_size=9,
)


class Conversation:
    """The cache, and beside it the ids that every row has read."""

    def __init__(self, model, padding):
        self.model, self.cache, self.seed, self.recording = model, new_cache(model), 0, False
        self.ids = torch.zeros(2, 0, dtype=torch.long)
        self.padding = torch.tensor([[0], [padding]])  # of each row, in front
        self.kept = None

    def read(self, n):
        self.seed += 1
        ids = tokens(len(self.ids), n, seed=self.seed)
        if not self.ids.shape[1]:  # the padding is read with the first tokens
            ids = torch.cat([torch.zeros(len(ids), int(self.padding.max()), dtype=torch.long), ids], 1)
        self.ids = torch.cat([self.ids, ids], 1)
        return self.forward(ids, self.cache)

    def forward(self, ids, cache):
        seen = self.ids.shape[1]
        mask = (torch.arange(seen) >= int(self.padding.max()) - (int(self.padding.max()) - self.padding)).long()
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        options = {} if cache is None else {"past_key_values": cache}
        with torch.no_grad():
            return self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=cache is not None, **options
            ).logits

    def reorder(self, index):
        self._rows(torch.tensor([i % len(self.ids) for i in index]), self.cache.reorder_cache)

    def select(self, index):
        self._rows(torch.tensor([i % len(self.ids) for i in index]), self.cache.batch_select_indices)

    def repeat(self, times):
        if len(self.ids) * times <= MOST_ROWS and self.ids.shape[1]:
            self.ids, self.padding = (x.repeat_interleave(times, 0) for x in (self.ids, self.padding))
            self.cache.batch_repeat_interleave(times)

    def _rows(self, index, function):
        if self.ids.shape[1]:
            self.ids, self.padding = self.ids[index], self.padding[index]
            function(index)

    def take_back(self, read, more):
        """Read tokens in two calls and forget the last of them, as assisted decoding does."""
        if not self.ids.shape[1]:
            return
        self.cache.activate_past_recording()
        self.recording = True
        before = self.ids
        self.read(read)
        if more:
            self.read(more)
        gone = 1 + (self.seed * 5) % (read + more)
        self.cache.crop(-gone)
        self.ids = self.ids[:, : self.ids.shape[1] - gone]
        assert self.ids.shape[1] >= before.shape[1]

    def keep(self):
        if self.ids.shape[1] and not self.recording:
            self.kept = (MemorySnapshot.of(self.model, self.cache), self.ids, self.padding)

    def go_back(self):
        if self.kept is not None:
            snapshot, self.ids, self.padding = self.kept
            self.cache, self.recording = snapshot.cache(self.model), False

    def reset(self):
        if not self.recording:
            self.cache.reset()
            self.ids = self.ids[:, :0]

    def check(self):
        got = self.read(3)[:, -3:]
        assert_near(got, self.forward(self.ids, None)[:, -3:], 5e-5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps, padding=st.integers(0, 4))
def test_interleavings(name, steps, padding):
    conversation = Conversation(model_of(name), padding)
    for kind, *arguments in steps:
        getattr(conversation, kind.replace(" ", "_"))(*arguments)
    conversation.check()
