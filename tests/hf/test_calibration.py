"""Start values measured on text: of a model that was saved before it was trained, and of one that was trained."""

import logging

import torch

from tptt import TpttModel, calibrate
from tptt.hf import memories

IDS = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(3))
OTHER = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(4))


def maps(model):
    return [f.weight.detach().clone() for m in memories(model) for f in (m.query_features, m.key_features)]


def test_a_model_that_was_saved_untrained_can_be_calibrated_again(tiny, tmp_path, caplog):
    model = calibrate(tiny(max_self_attn_length=8), IDS)
    model.save_pretrained(tmp_path)
    again = TpttModel.from_pretrained(tmp_path)
    assert all(map(torch.equal, maps(again), maps(model)))
    with caplog.at_level(logging.WARNING, "tptt"):
        calibrate(again, OTHER)
    assert all(map(torch.equal, maps(again), maps(calibrate(tiny(max_self_attn_length=8), OTHER))))
    assert not any(map(torch.equal, maps(again), maps(model))) and not caplog.records


def test_calibration_leaves_frozen_parts_in_eval_mode(tiny):
    model = tiny(max_self_attn_length=8).train()
    model.inner.model.layers[0].mlp.eval()
    before = [m.training for m in model.modules()]
    calibrate(model, IDS)
    assert [m.training for m in model.modules()] == before and len(set(before)) == 2


def test_maps_that_were_trained_stay_and_that_is_said(tiny, tmp_path, caplog):
    model = calibrate(tiny(max_self_attn_length=8), IDS)
    with torch.no_grad():
        memories(model)[1].key_features.weight.add_(0.01)
    model.save_pretrained(tmp_path)
    again, before = TpttModel.from_pretrained(tmp_path), maps(model)
    with caplog.at_level(logging.WARNING, "tptt"):
        calibrate(again, OTHER)
    assert [torch.equal(a, b) for a, b in zip(maps(again), before, strict=True)] == [False, False, False, True]
    assert "the feature maps of layers [1] have been trained and stay as they are" in caplog.text
