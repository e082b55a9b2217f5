"""The benchmarks run, and what they write replaces what they wrote."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.conversion import arms, bench, half_life
from benchmarks.conversion import report as conversion_report
from benchmarks.families import examine, report
from benchmarks.generation import build, step_bytes
from benchmarks.layers import ARMS, numbers
from benchmarks.runs import Runs
from benchmarks.timing import interleaved, write_section
from tptt import TpttConfig, TpttModel
from tptt.assets import BASE
from tptt.convert.lora import lora_config
from tptt.estimate.expectations import MEASURES, Curves
from tptt.evaluation import markdown_table
from tptt.hf import memories
from tptt.memory.features import MAPS

ROOT = Path(__file__).parents[1]


def test_a_section_replaces_its_own_only(tmp_path):
    file = tmp_path / "RESULTS.md"
    write_section(file, "One", "first")
    write_section(file, "Two", "second\n\n### Inside")
    write_section(file, "One", "again")
    text = file.read_text()
    assert text.startswith("# Results\n") and text.count("## One") == 1
    assert "first" not in text and "again" in text and "second\n\n### Inside" in text


def test_contenders_take_turns():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3)
    assert set(times) == {"a", "b"} and all(t > 0 for t in times.values())
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")


def test_table():
    assert markdown_table(["", "ms"], [["x", "1"]]) == "|  | ms |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.slow
def test_operators_quick():
    done = subprocess.run([sys.executable, "-m", "benchmarks.ops", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times transformers" in done.stdout


@pytest.mark.slow
def test_generation_quick(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation", "--quick", "--plots", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "constant to the byte" in done.stdout and "8,192 tokens through `stream`" in done.stdout
    assert {f.name for f in tmp_path.iterdir()} == {"generation-speed.png", "generation-million.png"}


def test_arms_choose_as_many_layers_as_the_budget_is():
    order = (2, 3, 0, 1)
    assert numbers([0, 0.25, 0.3, 1], 4) == [0, 1, 4]
    found = {arm: choose(order, 2) for arm, choose in ARMS.items()}
    assert found == {"by KL": (2, 3), "evenly": (1, 3), "last": (2, 3), "ranked last by KL": (0, 1)}
    for choose in ARMS.values():
        assert [len(set(choose(order, n))) for n in range(5)] == list(range(5))


def test_a_result_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        runs = Runs(tmp_path / "runs" / "x.jsonl")
        found = [runs.once({"n": n}, lambda n=n: made.append(n) or {"by": {n: n}}) for n in (1, 2)]
        assert [x["by"] for x in found] == [{"1": 1}, {"2": 2}]
    assert made == [1, 2]


@pytest.mark.slow
def test_layers_quick(tmp_path):
    options = ["--tokens", "1024", "--length", "64", "--window", "8", "--seeds", "0", "--budgets", "0", "0.25", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.layers", *options, "--runs", str(tmp_path / "x.jsonl")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| by KL | [" in done.stdout and "whole everywhere, LoRA alone" in done.stdout
    assert (tmp_path / "layers.png").exists()


def test_a_family_is_judged():
    """One that works, one without attention, one that cannot be built small."""
    assert [examine(name).verdict for name in ("qwen2", "mamba", "blt")] == ["works", "refused", "not built"]
    text = report([examine("qwen2"), examine("mamba")])
    assert "1 families work, 0 are broken, 1 are refused" in text
    assert "| qwen2 | separate | yes | yes |" in text and "- mamba: MambaModel has no attention module" in text


def test_every_attention_layer_is_counted_among_the_bytes():
    arms = build()
    assert step_bytes(arms["base"], None, 2000) - step_bytes(arms["base"], None, 1000) == 1000 * 4 * 2 * 4 * 4 * 64
    assert step_bytes(arms["W = 64"], 64, 2000) == step_bytes(arms["W = 64"], 64, 1000)


@pytest.fixture
def small_bench(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_TOKENS", 512)
    monkeypatch.setattr(bench, "_TEXT", 1024)
    monkeypatch.setattr(bench, "_CORPUS", 20_000)
    return bench.Bench(BASE, 128, 16, 128, Runs(tmp_path / "runs" / "conversion.jsonl"))


def test_conversion_trains_a_cell_once_and_reports_it(small_bench, tmp_path, monkeypatch):
    tokens = 1024
    wanted = {"default": 2, "no passkey": 1, "window alone": 1, "default, records": 1}
    for name, seeds in wanted.items():
        for seed in range(seeds):
            cell = small_bench.trained(arms.ARMS[name], tokens, seed)
            formats = {"all"} if name == "default, records" else set(arms.FORMATS)
            assert set(cell["beyond"]) == {"1", "2", "4", "8"} and set(cell["beyond"]["8"]) == formats
            assert cell["train_seconds"] > 0 and ("branches" in cell) is (name != "window alone")
            assert 0 <= conversion_report.beyond(cell, 2, arms.ARMS[name].formats) <= 1
    monkeypatch.setattr(small_bench, "_train", None)  # what is there is not made again
    cells = conversion_report.cells_of(small_bench, [tokens, 2 * tokens], [0, 1, 2])
    assert {n: {t: len(c) for t, c in x.items()} for n, x in cells.items()} == {
        n: {tokens: m} for n, m in wanted.items()
    }
    assert cells["default"][tokens][0]["beyond"] == small_bench.trained(arms.ARMS["default"], tokens, 0)["beyond"]

    text = conversion_report.tables(small_bench, cells)
    assert "### A format never trained" in text and "### One ingredient changed" not in text
    assert (
        text.count("\n| default | ") == 3 and "### Key-value records alone" in text and "window alone" in text
    )  # results, what it is, by format
    assert conversion_report.plot(small_bench, cells, tmp_path / "plot.png").stat().st_size > 10_000

    def curves():
        found = conversion_report.curves(small_bench, cells, "embedded", "here, commit 1")
        conversion_report.write_curves(tmp_path / "curves.json", found)
        return Curves.load(tmp_path / "curves.json")

    assert curves().parameters == small_bench.untrained()["parameters"]
    assert set(curves().at(tokens)) == set(MEASURES) - {"recall_unseen"}  # of one format alone
    cells |= {name: cells["no passkey"] for name in arms.HELD_OUT}
    assert set(curves().at(tokens)) == set(MEASURES)


def test_conversion_keeps_other_recipes_apart(small_bench):
    keys = [str(small_bench.key(arm, 1024, 0)) for arm in arms.ARMS.values()]
    assert len(set(keys)) == len(keys)
    assert small_bench.key(arms.ARMS["default"], 1024, 0) != small_bench.key(arms.ARMS["default"], 1024, 1)


def remembering(**options):
    """The embedded base with small memories."""
    config = TpttConfig(base_model_name=str(BASE), max_self_attn_length=16, feature_width=64, **options)
    return TpttModel(config, dtype=torch.float32)


def test_a_convolution_begins_as_none():
    model, ids = remembering(), torch.arange(2, 50)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        arms.short_convolution(model)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before)
        memories(model)[1].key_features.kernel[2] = 0.5
        assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, before)
    features = memories(model)[0].key_features
    seen = torch.randn(1, 6, 2, 32)
    late = torch.cat([seen[:, :4], torch.randn(1, 2, 2, 32)], 1)
    assert torch.equal(features(seen)[:, :4], features(late)[:, :4])


def test_decays_begin_at_the_distance_that_the_base_looks_back(monkeypatch):
    even = torch.ones(1, 1, 4, 4).tril() / torch.arange(1, 5)[:, None]  # sees 0, 0.5, 1 and 1.5 tokens back
    assert half_life.mean_distances(even).tolist() == [0.75]
    straight = torch.diag(torch.ones(3), -1)[None, None].expand(2, 3, -1, -1)  # one back, where there is one
    assert half_life.mean_distances(straight).tolist() == [0.75] * 3
    monkeypatch.setattr(half_life, "_LENGTH", 64)
    lora = lora_config(AutoModelForCausalLM.from_pretrained(BASE))
    model = remembering(lora_config=lora, operator="gated_delta_rule")
    half_life.half_life_by_distance(model)
    for memory in memories(model):
        left = torch.sigmoid(memory.decay_gate.bias.detach())
        lives = -0.6931 / left.log()
        assert ((lives > 1) & (lives < 33)).all() and lives.shape == (memory.num_states,)
    assert len({round(memory.decay_gate.bias[0].item(), 3) for memory in memories(model)}) == 4
    assert model.backbone.config._attn_implementation == "sdpa"
    model(input_ids=torch.arange(2, 50)[None]).logits.sum().backward()


def test_a_second_write_begins_next_to_nothing_and_can_take_the_first_back():
    model, ids = remembering(), torch.arange(2, 50)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        arms.second_write(model)
        after = model(input_ids=ids, use_cache=False).logits
        assert 1e-2 < (after - before).abs().max() < 0.2 * before.abs().max()
        for memory in memories(model):
            memory.second_write.gate.bias.fill_(-50.0)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before, rtol=1e-3, atol=1e-3)
        memory = memories(model)[0]
        memory.second_write.gate.bias.fill_(50.0)
        memory.second_write.of_values.zero_()
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[1, 3:] = False
        width, hidden = memory.head_dim, memory.write_gate.weight.shape[1]
        k, v = torch.randn(2, 2, 5, memory.num_key_value_heads, width)
        writes = memory.update(torch.randn(2, 5, hidden), k, v, mask)
        assert writes.k.shape[2] == 2 and not writes.beta[1, 3:].any()
        for key in writes.k[:, 2:3, 0], writes.k[:, 2:3, 1]:  # of the last token that writes in both rows
            state = writes.map(lambda x: x[:, :3]).run(writes.k[:, :3, 0], None)[1]
            assert torch.einsum("bthk,bhkv->bthv", key, state).abs().max() < 1e-4


def test_clamped_sinks_are_as_far_as_in_a_cache_that_numbers_what_it_holds(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()  # fmt: skip
    base.save_pretrained(tmp_path)
    config = TpttConfig(base_model_name=str(tmp_path), max_self_attn_length=6, sink_tokens=2, mag_weight=0.0)
    model, ids = TpttModel(config, dtype=torch.float32).eval(), torch.randint(50, (2, 30))
    held = torch.cat([ids[:, :2], ids[:, -6:]], 1)
    with torch.no_grad():
        far = model(input_ids=ids, use_cache=False).logits[:, -1]
        arms.clamped_sinks(model)
        wanted, found = base(input_ids=held).logits[:, -1], model(input_ids=ids, use_cache=False).logits[:, -1]
        near = model(input_ids=held, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(near, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(far, wanted, atol=1e-3)


def test_full_rank_trains_what_lora_adds_to():
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    model = TpttModel(TpttConfig(base_model_name=str(BASE), lora_config=lora, feature_width=64), dtype=torch.float32)
    arms.full_rank(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".liza." not in n and "lora_" not in n}
    assert len(trained) == 4 and all("q_proj" in n for n in trained)


def test_a_base_that_is_gone_is_known_by_its_results(small_bench, tmp_path):
    small_bench.untrained()
    again = bench.Bench(tmp_path / "gone", small_bench.length, small_bench.window, 128, small_bench.runs)
    assert again.weights == small_bench.weights and again.untrained() == small_bench.untrained()
    assert again.untrained()["machine"]


def test_random_maps_know_nothing_of_the_base():
    model = TpttModel(TpttConfig(base_model_name=str(BASE), max_self_attn_length=16), dtype=torch.float32)
    begun = memories(model)[1].key_features.weight.clone()
    arms.random_maps(model)
    fresh = MAPS["fourier"](2, 32, 2048).weight
    assert torch.equal(memories(model)[1].key_features.weight, fresh) and not torch.allclose(begun, fresh)
