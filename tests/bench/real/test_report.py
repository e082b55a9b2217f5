"""The report's means, errors and counts are those of the answers; what is missing or old is shown as such."""

import math

import pytest

from benchmarks.real import __main__ as bench
from benchmarks.real import cache_bytes, perplexity, skills
from benchmarks.real.lines import append
from benchmarks.real.plan import EQUAL_BYTES_TASKS
from benchmarks.real.report import write_block
from benchmarks.real.tables import Figure, ruler_figure, score_of, tasks_at
from benchmarks.record import provenance
from tptt import MemoryConfig, TpttConfig, TpttModel

from .models import NAME, row, write_base, write_prepared

NOW = provenance("real")
OLD = NOW | {"code": "0" * 12}


def line(task, length, seed, score, table="ruler", origin=NOW, held=1_000_000, **more):
    return {
        "base": NAME, "arm": "base", "table": table, "task": task, "length": length, "seed": seed, "split": "test",
        "answer": "", "score": score, "tokens": 3, "bytes_at_question": held, "peak_bytes": 3 * held,
        "prefill_seconds": 1.0, "decode_seconds": 0.5, "context_tokens": 100, "origin": origin, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def report(results, base_folder, docs, *more):
    given = ["report", "--base", NAME, "--base-folder", base_folder, "--results", results, "--docs", docs, *more]
    bench.main([str(x) for x in given])


def test_mean_error_and_count_by_hand():
    """Of 1, 0, 0.5 and 0.5: mean 0.5, variance 1/6, error sqrt(1/24)."""
    lines = [line("vt", 1024, seed, score) for seed, score in enumerate((1, 0, 0.5, 0.5))]
    found = Figure.of(lines, score_of)
    assert (found.mean, found.count, found.old) == (0.5, 4, False)
    assert found.error == pytest.approx(math.sqrt(1 / 24)) and found.text() == "0.50 ± 0.20 (4)"
    assert Figure.of([*lines, line("vt", 1024, 4, 0.5, origin=OLD)], score_of).text() == "0.50 ± 0.16 (5)†"
    assert Figure.of(lines[:1], score_of).text() == "1.00 (1)" and Figure.of([], score_of) is None


def test_the_mean_over_tasks_needs_all_tasks():
    tasks = tasks_at(1024)
    lines = [line(task, 1024, seed, seed) for task in tasks for seed in range(2)]
    found = ruler_figure(lines, 1024)
    assert len(tasks) == 13 and (found.mean, found.count) == (0.5, 26)
    assert found.error == pytest.approx(0.5 / math.sqrt(13))
    assert ruler_figure([x for x in lines if x["task"] != "vt"], 1024) is None
    assert tasks_at(32768) == ["niah_single_2", "niah_single_3", "niah_multikey_1", "vt", "cwe", "qa_1"]


def test_more_rows_than_the_plan_has_do_not_count():
    lines = [line(task, 8192, seed, float(seed >= 6)) for task in tasks_at(8192) for seed in range(10)]
    assert ruler_figure(lines, 8192).mean == 0.0


def test_a_report_is_written_and_written_again(base_folder, tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    for arm, score, held in (("base", 1.0, 4_000_000), ("snapkv@0.25", 0.25, 1_000_000)):
        file = results / NAME / f"{arm}.jsonl"
        for task in EQUAL_BYTES_TASKS:
            for seed in range(2):
                append(file, line(task, 4096, seed, score, held=held))
        append(file, line("essays", 512, 0, None, table="perplexity", nats=2.5, tokens=511))
    docs.mkdir()
    (docs / "real.md").write_text("# Title\n\nWords of ours.\n", encoding="utf-8")
    report(results, base_folder, docs, "--write")
    first = (docs / "real.md").read_text(encoding="utf-8")
    assert first.startswith("# Title\n\nWords of ours.\n") and "missing" in first
    assert "| base | 1.00 ± 0.00 (8) | 4.0 ± 0.0 (8) | 12 ± 0 (8) | 0.250 ± 0.000 (8) |" in first
    assert "| snapkv@0.25 | 0.25 ± 0.00 (8) | 1.0 ± 0.0 (8) |" in first
    assert first.index("| base | 1.00 ±") < first.index("| snapkv@0.25 | 0.25 ±")
    assert "| base | 2.500 (1) | missing |" in first and NOW["machine"] in first
    pictures = {"ruler": False, "equal-bytes": True, "perplexity": True, "bytes": True}
    for name, there in pictures.items():
        file = f"real-{NAME}-{name}.png"
        assert (docs / file).exists() == there == (f"({file})" in first)
    report(results, base_folder, docs, "--write")
    assert (docs / "real.md").read_text(encoding="utf-8") == first


def test_blocks_of_two_bases_stand_side_by_side(tmp_path):
    file = tmp_path / "real.md"
    for base, text in (("a", "one\n"), ("b", "two\n"), ("a", "three\\1\n")):
        write_block(file, base, text)
    text = file.read_text(encoding="utf-8")
    assert "one" not in text and text.index("three\\1") < text.index("two") and text.count("<!-- begin") == 2


def test_without_answers_the_command_is_named(base_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"no answers of any arm.*evaluate"):
        report(tmp_path, base_folder, tmp_path)


def test_computed_bytes_are_the_measured_ones(base_folder):
    base, converted = cache_bytes.formulas(base_folder, window=8)
    measured = base.after(100).bytes
    assert cache_bytes.worst_difference(base, [line("vt", 1024, 0, 1.0, held=measured)]) == (0.0, 1)
    assert cache_bytes.worst_difference(base, [line("vt", 1024, 0, 1.0, held=2 * measured)]) == (1.0, 1)
    assert converted.after(4096).bytes == converted.after(8192).bytes < base.after(8192).bytes


def test_short_form_of_the_bench(base_folder, tmp_path, monkeypatch):
    """Rows are answered by the base, a window and a converted model, and the report holds all three."""
    monkeypatch.setattr(perplexity, "BOUNDS", (32, 64))
    monkeypatch.setattr(skills, "LENGTH", 32)
    model = TpttModel(TpttConfig(base_model_name=str(base_folder), **vars(MemoryConfig(max_self_attn_length=8))))
    model.save_pretrained(tmp_path / "converted")
    rows = [row(seed, task) for task in tasks_at(1024) for seed in range(2)]
    rows += [row(0, "cut", 512, "squad"), row(0, "last_words", 512, "skills")]
    prepared, results, docs = write_prepared(tmp_path / "prepared", rows), tmp_path / "results", tmp_path / "docs"
    for arm in ("base", "window@8", f"converted={tmp_path / 'converted'}"):
        given = ["evaluate", "--base", NAME, "--base-folder", base_folder, "--arm", arm]
        bench.main([str(x) for x in (*given, "--folder", prepared, "--results", results)])
    report(results, base_folder, docs, "--write")
    text = (docs / "real.md").read_text(encoding="utf-8")
    for arm in ("base", "window@8", "converted"):
        table = text[text.index("### RULER by length") : text.index("### RULER's tasks")]
        assert any(x.startswith(f"| {arm} | ") and "(26) |" in x for x in table.splitlines()), table
    assert "0.00 % at most" in text and (docs / f"real-{NAME}-ruler.png").exists()
