from tptt.train.checkpoints import broken_checkpoints, last_checkpoint


def test_only_complete_checkpoints_count(tmp_path):
    for name, state in {
        "checkpoint-9": "{}",
        "checkpoint-10": "{}",
        "checkpoint-20": '{"step',
        "checkpoint-30": None,
    }.items():
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert broken_checkpoints(tmp_path) == ["checkpoint-20", "checkpoint-30"]
    assert last_checkpoint(tmp_path / "nowhere") is None
