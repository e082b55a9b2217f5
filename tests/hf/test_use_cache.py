"""``use_cache`` holds by every road on which it can be set, as it does for a base."""

import json

import pytest
from transformers import AutoModelForCausalLM

from tests.families.models import build, tokens
from tptt import TpttConfig, TpttModel


@pytest.fixture
def base(tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def makes_a_cache(model) -> bool:
    return model.eval()(input_ids=tokens(1, 9)).past_key_values is not None


def converted(base, **settings):
    return TpttModel(TpttConfig(base_model_name=str(base), feature_width=32, **settings))


def test_by_the_configuration(base):
    assert makes_a_cache(converted(base))
    model = converted(base, use_cache=False)
    assert not makes_a_cache(model) and model.config.use_cache is False


def test_by_the_bases_own_file(base):
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_cache": False}))
    model = converted(base)
    assert not makes_a_cache(model) and model.config.use_cache is False
    assert makes_a_cache(converted(base, use_cache=True))


@pytest.mark.parametrize("loader", [TpttModel, AutoModelForCausalLM])
@pytest.mark.parametrize("merged", [False, True])
def test_by_the_call_that_loads_a_checkpoint(base, tmp_path, loader, merged):
    model = converted(base)
    (model.merge_and_unload() if merged else model).save_pretrained(tmp_path / "out")
    assert makes_a_cache(loader.from_pretrained(tmp_path / "out"))
    assert not makes_a_cache(loader.from_pretrained(tmp_path / "out", use_cache=False))


def test_later_as_a_trainer_sets_it_and_sets_it_back(base):
    model = converted(base)
    before = model.config.use_cache
    model.config.use_cache = False
    assert model.inner.config.use_cache is False and not makes_a_cache(model)
    model.config.use_cache = before
    assert makes_a_cache(model)


def test_a_given_base_may_say_no(base):
    plain = AutoModelForCausalLM.from_pretrained(base, use_cache=False)
    assert not makes_a_cache(TpttModel(TpttConfig(base_model_name=str(base), feature_width=32), base=plain))


def test_it_is_saved(base, tmp_path):
    converted(base, use_cache=False).save_pretrained(tmp_path / "out")
    assert TpttConfig.from_pretrained(tmp_path / "out").use_cache is False
    assert not makes_a_cache(TpttModel.from_pretrained(tmp_path / "out"))
