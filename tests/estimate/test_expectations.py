import json

import pytest

from tptt.assets import shipped_curves
from tptt.cli.dry_run import changed_recipe, expectations
from tptt.estimate.expectations import FAILED, MEASURES, Curves, NoCurvesError, expect
from tptt.run.options import RunOptions
from tptt.train import TrainingSettings


def point(tokens, recall, ratio):
    return {
        "tokens": tokens,
        "recall_trained": [recall, 0.02],
        "recall_2x": [recall - 0.1, 0.04],
        "recall_4x": None,
        "recall_unseen": [recall / 2, 0.1],
        "perplexity_ratio": [ratio, 0.01],
    }


@pytest.fixture
def written():
    base = {"name": "made up", "parameters": 1_000_000}
    points = [point(1_048_576, 0.9, 1.1), point(262_144, 0.5, 1.3)]
    return {"base": base, "length": 512, "window": 64, "machine": "m", "commit": "c", "points": points}


@pytest.fixture
def file(written, tmp_path):
    path = tmp_path / "curves.json"
    path.write_text(json.dumps(written))
    return path


@pytest.fixture
def curves(file):
    return Curves.load(file)


def test_between_two_budgets_it_is_linear_in_log_tokens(curves):
    found = expect(curves, 524_288, 1_000_000, 512, 64)
    assert not found.extrapolates
    assert found.values["recall_trained"] == pytest.approx((0.7, 0.02))
    assert found.values["perplexity_ratio"][0] == pytest.approx(1.2)
    assert "recall_4x" not in found.values  # what was not measured is not said
    assert expect(curves, 262_144, 1_000_000, 512, 64).values["recall_unseen"] == (0.25, 0.1)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ((2_097_152, 1_000_000, 512, 64), "measured were 1,048,576 at most: the values of the last point are shown"),
        ((1_000, 1_000_000, 512, 64), "measured were 262,144 at least: the values of the first point"),
        ((524_288, 2_100_000, 512, 64), "a base of 2,100,000 parameters, the measured one has 1,000,000"),
        ((524_288, 1_000_000, 2048, 256), "rows of 2048 tokens, the measured ones have 512"),
        ((524_288, 1_000_000, 512, 16), "a window of 1/32 of a row, the measured one has 1/8"),
        ((524_288, 1_000_000, 512, None), "no softmax window"),
    ],
)
def test_it_says_when_and_why_it_extrapolates(curves, run, reason):
    found = expect(curves, *run)
    assert found.extrapolates and any(reason in r for r in found.reasons), found.reasons


def test_nothing_is_invented_beyond_the_last_point(curves):
    assert expect(curves, 10**12, 1_000_000, 512, 64).values == dict(curves.points[-1][1])
    assert expect(curves, 1, 1_000_000, 512, 64).values == dict(curves.points[0][1])


def test_twice_as_large_is_still_the_same(curves):
    assert not expect(curves, 524_288, 2_000_000, 1024, 64).extrapolates


def test_the_curves_that_are_shipped_cover_the_default_run():
    shipped = Curves.nearest(shipped_curves(), 1)
    settings = TrainingSettings()
    found = expect(shipped, settings.tokens, shipped.parameters, shipped.length, shipped.window)
    assert not found.extrapolates and set(found.values) == set(MEASURES)
    assert all(0 <= mean <= 1 for name, (mean, _) in found.values.items() if name.startswith("recall"))
    assert 1 <= found.values["perplexity_ratio"][0] < 1.3


def test_a_run_is_held_against_the_measured_base_that_comes_nearest():
    small, large = (Curves.nearest(shipped_curves(), n) for n in (1, 10**12))
    assert small.parameters < 2_000_000 < 20_000_000 < large.parameters
    assert Curves.nearest(shipped_curves(), 2 * small.parameters) == small
    assert Curves.nearest(shipped_curves(), large.parameters // 2) == large


@pytest.fixture
def real(written, tmp_path):
    path = tmp_path / "curves-real.json"
    base = {"name": "a real base", "parameters": 135_000_000, "real": True}
    path.write_text(json.dumps(written | {"base": base}))
    return path


@pytest.mark.parametrize(
    ("parameters", "name"),
    [(1_000_000, "made up"), (2_000_000, "made up"), (2_100_000, "a real base"), (10**10, "a real base")],
)
def test_a_real_base_goes_before_a_small_one_of_another_size(file, real, parameters, name):
    assert Curves.nearest([file, real], parameters).base == name


def test_what_small_bases_say_of_others_has_failed(file, real):
    larger = type("Larger", (Estimate,), {"parameters": type("P", (), {"base": 135_000_000})})
    assert expectations(OPTIONS, larger, [file])[-1] == FAILED
    assert FAILED not in expectations(OPTIONS, Estimate, [file])
    assert not any(FAILED in line for line in expectations(OPTIONS, larger, [file, real]))


def test_one_run_has_no_spread(written, curves, tmp_path):
    written["points"][0]["recall_trained"][1] = None
    path = tmp_path / "one.json"
    path.write_text(json.dumps(written))
    found = Curves.load(path)
    assert found.at(524_288)["recall_trained"] == (pytest.approx(0.7), None)
    assert found.at(262_144) == curves.at(262_144)
    assert "recall beyond the window 0.90 (one run), at twice" in expectations(OPTIONS, Estimate, [path])[0]


def test_without_a_file_it_says_so(tmp_path):
    with pytest.raises(NoCurvesError, match="there are no measured curves at .*none.json"):
        Curves.load(tmp_path / "none.json")
    with pytest.raises(NoCurvesError, match="no measured curves are shipped with this installation"):
        Curves.nearest([], 10**6)
    assert expectations(OPTIONS, Estimate, []) == [
        "what to expect: no measured curves are shipped with this installation"
    ]


def test_a_file_of_another_form_is_refused(written, tmp_path):
    path = tmp_path / "curves.json"
    for bad, message in (
        (written | {"points": []}, "holds no measured point"),
        ({"points": []}, "has no 'base'"),
        ([], "no file of"),
        (written | {"base": written["base"] | {"real": "yes"}}, "base.real must be true or false, got 'yes'"),
        (written | {"points": [written["points"][0] | {"recall_2x": [1, 2, 3]}]}, "no file of"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            Curves.load(path)


class Estimate:
    tokens, length = 4_194_304, 512
    parameters = type("P", (), {"base": 1_000_000})


OPTIONS = RunOptions().changed(max_self_attn_length=64)


def test_the_lines_that_are_printed(file):
    first, second = expectations(OPTIONS, Estimate, [file])
    assert "recall beyond the window 0.90 +- 0.02" in first and "extrapolation: 4,194,304 tokens" in second
    assert "recipe" not in second


def test_another_recipe_is_another_run(file):
    same = OPTIONS.changed(
        per_device_train_batch_size=8, out="elsewhere", seed=3, tokens=524_288, seq_len=512, data="texts"
    )
    assert changed_recipe(same) == {}
    other = same.changed(recall_share=0.0, long_context_weight=1.0, operator="kda", lora_r=4)
    assert changed_recipe(other) == {"recall_share": 0.0, "long_context_weight": 1.0, "operator": "kda", "lora_r": 4}
    lines = expectations(other, Estimate, [file])
    assert (
        "another recipe than the measured one, lora_r: 4, operator: kda, recall_share: 0.0, long_context_weight: 1.0"
        in lines[1]
    )
