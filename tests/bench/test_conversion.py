"""A cell is trained and measured once for each code, and shown as what it is."""

import json
from dataclasses import replace

import pytest

from benchmarks.conversion import arms
from benchmarks.conversion.__main__ import bench_of, main
from benchmarks.conversion.bench import Bench, Effort
from benchmarks.conversion.cells import UNDIVIDED, Legend, cells_of, of_base, recall, unclaimed
from benchmarks.conversion.curves import curves, write_curves
from benchmarks.conversion.plot import plot
from benchmarks.conversion.report import Report, over_seeds, ratios
from benchmarks.held_out import PARTS
from benchmarks.record import FIELDS, ROOT, provenance
from benchmarks.runs import Runs, as_found
from tptt.assets import BASE
from tptt.data import FORMATS, stdlib_text
from tptt.estimate.expectations import MEASURES, Curves

TOKENS = 1024
RESULTS = ROOT / "benchmarks" / "conversion" / "results.jsonl"


@pytest.fixture(scope="module")
def text():
    return stdlib_text()


@pytest.fixture
def small_bench(tmp_path, text):
    runs = Runs(tmp_path / "runs" / "conversion.jsonl", "conversion")
    bench = Bench(BASE, 128, 16, 128, runs, Effort(answers=12, text=1024, corpus=20_000))
    bench.text = text
    return bench


def test_a_cell_is_trained_once_and_reported(small_bench, tmp_path):
    wanted = {"default": 1, "without passkey": 1, "window alone": 2, "default, records": 1, "512 features": 1}
    small_bench.untrained()
    for name, seeds in wanted.items():
        for seed in range(seeds):
            arm = arms.ARMS[name]
            row = small_bench.trained(arm, TOKENS, seed)
            assert tuple(row["provenance"]) == FIELDS and set(row["parts"]) == set(arm.parts)
            for part in row["parts"].values():
                formats = {"all"} if name == "default, records" else set(arms.FORMATS)
                assert set(part["recall"]) == {"1", "2", "4", "8"} and set(part["recall"]["8"]) == formats
                assert min(n for _, n in part["recall"]["1"].values()) >= 12
                assert sum(n for _, n in part["recall"]["8"].values()) >= 12
            assert row["train_seconds"] > 0 and ("branches" in row) is (name != "window alone")
    alone = [small_bench.trained(arms.ARMS["window alone"], TOKENS, seed)["parts"]["test"] for seed in range(2)]
    assert _asked(alone[0]) != _asked(alone[1])  # answers are drawn anew for each seed
    default = small_bench.trained(arms.ARMS["default"], TOKENS, 0)
    assert _asked(default["parts"]["test"]) == _asked(alone[0])  # and are the same for each arm
    assert _asked(default["parts"]["test"]) != _asked(default["parts"]["development"])

    assert len(small_bench.runs.all()) == 1 + sum(wanted.values())  # what is there is not made again
    cells = cells_of(small_bench, [TOKENS, 2 * TOKENS], [0, 1, 2])
    counts = {name: {tokens: len(rows) for tokens, rows in by_tokens.items()} for name, by_tokens in cells.items()}
    assert counts == {name: {TOKENS: seeds} for name, seeds in wanted.items()}

    text = Report(small_bench, cells).text()
    for title in ("References", "Key-value records alone", "A format never trained", "One ingredient changed"):
        assert f"### {title}" in text
    assert "older code" not in text and UNDIVIDED not in text.split("### References")[1]
    assert f"commit {default['provenance']['commit']} (code {default['provenance']['code']}" in text
    assert plot(small_bench, cells, tmp_path / "plot.png").stat().st_size > 10_000
    _check_curves(small_bench, cells, tmp_path / "curves.json")


def _asked(part):
    """How many answers of each distance were asked."""
    return {
        (times, name, distance): asked
        for times, by_format in part["by_distance"].items()
        for name, bins in by_format.items()
        for distance, (_, asked) in bins.items()
    }


def _check_curves(bench, cells, path):
    def found():
        write_curves(path, curves(bench, cells, "embedded"))
        return Curves.load(path)

    assert found().parameters == bench.of_itself()["parameters"]
    assert found().commit == provenance("conversion")["commit"]
    assert set(found().at(TOKENS)) == set(MEASURES) - {"recall_unseen"}  # of one format alone
    cells |= {name: cells["without passkey"] for name in arms.HELD_OUT}
    assert set(found().at(TOKENS)) == set(MEASURES)


def test_other_recipes_are_kept_apart(small_bench):
    keys = [str(small_bench.key(arm, 1024, 0)) for arm in arms.ARMS.values()]
    assert len(set(keys)) == len(keys)
    assert small_bench.key(arms.ARMS["default"], 1024, 0) != small_bench.key(arms.ARMS["default"], 1024, 1)


def test_arms_are_compared_on_the_development_part_alone():
    assert all(arm.parts == ("development",) for arm in arms.INGREDIENTS.values())
    reported = arms.REFERENCES | arms.RECORDS | arms.HELD_OUT
    assert all("test" in arm.parts for arm in reported.values())
    assert arms.ARMS["default"].parts == PARTS


def test_a_base_that_is_gone_is_known_by_its_results(small_bench, tmp_path):
    small_bench.untrained()
    again = Bench(tmp_path / "gone", small_bench.length, small_bench.window, 128, small_bench.runs)
    assert again.weights == small_bench.weights and again.of_itself() == small_bench.untrained()


PART = {
    "perplexity": {str(t): 10.0 * t for t in (1, 2, 4, 8)},
    "recall": {str(t): {f: [0.5, 200] for f in FORMATS} for t in (1, 2, 4, 8)},
    "by_distance": {str(t): {f: {"32": [100, 200]} for f in arms.FORMATS} for t in (1, 2, 4, 8)},
    "generated": {f: [0.25, 200] for f in arms.FORMATS},
    "by_position": {"128": 12.0},
}


def _row(bench, key, where, parts):
    """A result of ``key`` that was measured elsewhere."""
    return {
        "key": as_found(key),
        "provenance": provenance("conversion") | where,
        "parts": parts,
        "parameters": 5,
        "train_seconds": 60.0,
        "branches": {"both": [0.5, 200]},
        "mu": [0.25],
    }


def _write(bench, rows):
    bench.runs.file.parent.mkdir(parents=True, exist_ok=True)
    bench.runs.file.write_text("".join(json.dumps(row) + "\n" for row in rows))


OLD = {"code": "0123456789ab", "commit": "aaaaaaaaaa", "machine": "Machine A"}
OLDER = {"code": "ba9876543210", "commit": "bbbbbbbbbb", "machine": "Machine B"}


def test_the_report_says_where_each_row_was_measured_and_nothing_of_itself(small_bench, monkeypatch):
    """Two rows of two machines and commits, neither of them this one."""
    default, alone = (small_bench.key(arms.ARMS[name], TOKENS, 0) for name in ("default", "window alone"))
    rows = [
        _row(small_bench, small_bench.base_key, OLD, {"test": PART}),
        _row(small_bench, default, OLD, {"test": PART, "development": PART}),
        _row(small_bench, alone, OLDER, {"test": PART}),
    ]
    _write(small_bench, rows)
    monkeypatch.setattr("benchmarks.record.processor", lambda device="cpu": "Machine of the report")
    text = Report(small_bench, cells_of(small_bench, [TOKENS], [0])).text()
    here = provenance("conversion")
    assert here["machine"].startswith("Machine of the report") and "Machine of the report" not in text
    assert here["commit"] not in text and here["code"] not in text
    lines = {line.split(" |")[0]: line for line in text.splitlines() if "(older code) |" in line}
    assert lines["| default"].endswith("| a (older code) |") and lines["| window alone"].endswith("| b (older code) |")
    legend = text.split("### Where the rows were measured")[1].strip().splitlines()
    assert legend[0].startswith("- a: commit aaaaaaaaaa (code 0123456789ab") and "Machine A" in legend[0]
    assert legend[1].startswith("- b: commit bbbbbbbbbb (code ba9876543210") and "Machine B" in legend[1]
    assert all(line.endswith("; the code has changed since.") for line in legend)
    assert "0.50 (n 600, se 0.020)" in lines["| default"]  # sqrt(3 * .25 / 200) / 3


def test_results_of_older_code_are_no_results_of_today(small_bench):
    key = small_bench.key(arms.ARMS["default"], TOKENS, 0)
    _write(small_bench, [_row(small_bench, key, OLD, {"test": PART})])
    assert (
        small_bench.runs.current(key) is None and small_bench.runs.latest(key)["provenance"]["commit"] == "aaaaaaaaaa"
    )
    made = small_bench.runs.once(key, lambda: {"parts": {"test": PART}})
    assert made["provenance"] == provenance("conversion") | {"utc": made["provenance"]["utc"]}
    assert small_bench.runs.latest(key) == small_bench.runs.current(key) == made
    assert len(small_bench.runs.all()) == 2  # the older one stays


def test_code_of_today_and_older_code_are_never_averaged(small_bench):
    keys = [small_bench.key(arms.ARMS["default"], TOKENS, seed) for seed in range(3)]
    old = [_row(small_bench, key, OLD, {UNDIVIDED: PART}) for key in keys]
    now = _row(small_bench, keys[1], {}, {"test": PART})
    _write(small_bench, [*old, now])
    assert cells_of(small_bench, [TOKENS], [0, 1, 2])["default"][TOKENS] == [now]
    _write(small_bench, old)
    assert cells_of(small_bench, [TOKENS], [0, 1, 2])["default"][TOKENS] == old


def test_a_perplexity_is_compared_on_the_same_part_of_the_text(small_bench):
    whole = PART | {"perplexity": {str(t): 5.0 for t in (1, 2, 4, 8)}}
    key = small_bench.key(arms.ARMS["default"], TOKENS, 0)
    rows = [
        _row(small_bench, small_bench.base_key, OLD, {UNDIVIDED: whole}),
        _row(small_bench, small_bench.base_key, {}, {"test": PART}),
        _row(small_bench, key, OLD, {UNDIVIDED: PART}),
    ]
    _write(small_bench, rows)
    assert ratios(small_bench, rows[2:], "test", 1) == [2.0]
    assert of_base(small_bench, "test")["perplexity"]["1"] == 10.0 and of_base(small_bench, "development") is None


def test_older_seeds_that_were_asked_the_same_answers_share_their_error(small_bench):
    rows = [_row(small_bench, {}, OLD, {UNDIVIDED: PART}) for _ in range(3)]
    assert over_seeds(rows, lambda x: recall(x, "test", 1)) == "0.50 ± 0.00 (n 600, se 0.020)"
    rows = [_row(small_bench, {}, OLD, {"test": PART}) for _ in range(3)]
    assert over_seeds(rows, lambda x: recall(x, "test", 1)) == "0.50 ± 0.00 (n 1800, se 0.012)"
    assert over_seeds(rows, lambda x: recall(x, "development", 1)) == ""


def test_legends_name_every_place_once(small_bench):
    legend = Legend("conversion")
    rows = [_row(small_bench, {}, OLD | {"commit": f"{i:010d}"}, {}) for i in range(28)]
    assert legend.mark([rows[0], rows[1], rows[0]]) == "a b (older code)"
    assert legend.mark(rows[25:]) == "c d e (older code)"
    assert legend.mark([_row(small_bench, {}, {}, {})]) == "f"
    assert len(legend.text().splitlines()) == 6


def test_results_that_no_arm_claims_are_counted(small_bench):
    strange = small_bench.key(replace(arms.ARMS["default"], rank=3), TOKENS, 0)
    rows = [_row(small_bench, key, OLD, {"test": PART}) for key in (small_bench.base_key, strange)]
    _write(small_bench, rows)
    assert unclaimed(small_bench) == 1
    assert "1 results of this base belong to no arm" in Report(small_bench, {}).text()


@pytest.mark.parametrize(("base", "results"), [("embedded", 137), ("second", 8), ("large", 9)])
def test_shipped_results_are_still_found(base, results, tmp_path):
    """A setting that gets another name without its results would leave the tables empty."""
    bench = bench_of(base, tmp_path, RESULTS, train=False)
    assert unclaimed(bench) == 0
    cells = cells_of(bench, [round(b * 2**20) for b in (0.0625, 0.25, 0.5, 1, 2, 4)], [0, 1, 2])
    assert sum(len(rows) for by_tokens in cells.values() for rows in by_tokens.values()) >= results


def test_shipped_results_say_where_they_are_from():
    rows = Runs(RESULTS, "conversion").all()
    assert len(rows) >= 157
    for row in rows:
        found = row["provenance"]
        assert tuple(found) == FIELDS or set(found) >= {"commit", "recorded_in"}


def test_the_command_prints_what_is_there(tmp_path, capsys):
    main(["--report", "--bases", "second", "--runs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "### References" in printed and "measured on the whole held-out text" in printed
    assert (tmp_path / "conversion-second.png").stat().st_size > 10_000
