"""Data sets as the hub has them, here as folders of the same layout, and folders of save_to_disk."""

import pytest
from datasets import Dataset, DatasetDict, load_dataset_builder

from tests.data.files import texts, write
from tptt.data import load_text

CARD = """---
configs:
- config_name: raw
  data_files:
  - split: train
    path: raw/train-*.parquet
  - split: test
    path: raw/test-*.parquet
- config_name: clean
  data_files:
  - split: train
    path: clean/*.parquet
---
"""
ROWS = texts(90)


@pytest.fixture
def repository(tmp_path):
    """A data set of two configurations, the first of which has two splits."""
    write(tmp_path / "README.md", CARD)
    (tmp_path / "raw").mkdir()
    for shard in range(2):
        table = {"text": ROWS[shard * 20 : shard * 20 + 20], "number": list(range(20))}
        Dataset.from_dict(table).to_parquet(tmp_path / "raw" / f"train-{shard}.parquet")
    Dataset.from_dict({"text": ROWS[40:60], "number": list(range(20))}).to_parquet(tmp_path / "raw/test-0.parquet")
    (tmp_path / "clean").mkdir()
    Dataset.from_dict({"body": ROWS[60:]}).to_parquet(tmp_path / "clean" / "train.parquet")
    return tmp_path


@pytest.fixture(params=["folder", "hub"])
def source(request, repository, monkeypatch):
    """The data set as a folder, and as one of the hub that lies there."""
    if request.param == "folder":
        return str(repository)

    def builder(name, config_name):
        assert name == "somebody/some-set"
        return load_dataset_builder(str(repository), config_name)

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: ["raw", "clean"])
    return "somebody/some-set"


def read(split):
    return sorted([*split.train, *split.held_out])


def test_configuration_split_and_column(source):
    assert read(load_text(source, config_name="raw")) == sorted(ROWS[:40])
    assert read(load_text(source, config_name="raw", split="train")) == sorted(ROWS[:40])
    assert read(load_text(source, config_name="raw", split="test")) == sorted(ROWS[40:60])
    assert read(load_text(source, "body", config_name="clean")) == sorted(ROWS[60:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config_name": "nope"}, "has no configuration 'nope'; it has raw, clean"),
        ({"split": "train"}, "has several configurations: choose one of raw, clean"),
        ({"config_name": "raw", "split": "dev"}, "has no split 'dev'; it has train, test"),
        ({"config_name": "raw", "split": "train[:10%]"}, "has no split .*; it has train, test"),
        ({"config_name": "raw", "column": "words"}, "has no column 'words'; it has text, number"),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_text(source, **options)


def test_no_more_is_fetched_than_is_read(monkeypatch):
    """A data set without an end."""
    read = []

    class Endless:
        column_names, num_shards = ["text"], 3

        def select_columns(self, names):
            return self

        def shard(self, count, number):
            assert count == 3 and 0 <= number < 3
            return self

        def __iter__(self):
            for i in range(10**12):
                read.append(i)
                yield {"text": f"text {i}"}

    class Builder:
        hash, config_id, dataset_name = "a1b2", "default", "endless"

        def __init__(self, name, config_name):
            pass

        def as_streaming_dataset(self):
            return {"train": Endless()}

    monkeypatch.setattr("datasets.load_dataset_builder", Builder)
    split = load_text("somebody/endless")
    assert len(read) < 1100
    train, held_out = iter(split.train.shuffled(3)), iter(split.held_out)
    assert not {next(train) for _ in range(2000)} & {next(held_out) for _ in range(100)}
    assert len(read) < 7000
    assert split.train.fingerprint != split.held_out.fingerprint
    assert split.train.fingerprint == load_text("somebody/endless").train.fingerprint
    monkeypatch.setattr(Builder, "hash", "c3d4")  # another revision
    assert split.train.fingerprint != load_text("somebody/endless").train.fingerprint


def test_what_is_not_on_the_hub(monkeypatch):
    def unreachable(name, config_name):
        raise ConnectionError("no hub")

    monkeypatch.setattr("datasets.load_dataset_builder", unreachable)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: unreachable(name, None))
    with pytest.raises(FileNotFoundError, match="'a/b' is no file or folder here, and loading it .* failed: no hub"):
        load_text("a/b", config_name="c")


def test_a_folder_s_content_is_its_fingerprint(repository):
    before = load_text(str(repository), config_name="raw").train.fingerprint
    assert load_text(str(repository), config_name="raw").train.fingerprint == before
    write(repository / "raw" / "train-2.parquet", (repository / "raw" / "train-0.parquet").read_bytes())
    assert load_text(str(repository), config_name="raw").train.fingerprint != before


def test_a_saved_data_set(tmp_path):
    data = Dataset.from_dict({"text": ROWS, "number": list(range(90))})
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data.select(range(40)), test=data).save_to_disk(tmp_path / "several")
    DatasetDict(test=data).save_to_disk(tmp_path / "untrained")
    assert read(load_text(str(tmp_path / "one"))) == sorted(ROWS)
    assert read(load_text(str(tmp_path / "several"))) == sorted(ROWS[:40])
    assert read(load_text(str(tmp_path / "several"), split="test")) == sorted(ROWS)
    assert read(load_text(str(tmp_path / "several" / "test"))) == sorted(ROWS)
    assert list(load_text(str(tmp_path / "one")).train.shuffled(1)) != list(load_text(str(tmp_path / "one")).train)
    for name, options, message in (
        ("untrained", {}, "has no split 'train'; it has test"),
        ("one", {"column": "body"}, "no column 'body'; it has text, number"),
        ("one", {"split": "test"}, "has no split 'test'"),
        ("one", {"config_name": "raw"}, "has no configuration 'raw'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_text(str(tmp_path / name), **options)
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ValueError, match="one cannot be loaded as a saved data set"):
        load_text(str(tmp_path / "one"))


def test_a_saved_data_set_is_shuffled_as_a_whole(tmp_path):
    Dataset.from_dict({"text": [f"text {i}" for i in range(5000)]}).save_to_disk(tmp_path)
    first = [
        int(text.split()[1]) for text, _ in zip(load_text(str(tmp_path)).train.shuffled(0), range(200), strict=False)
    ]
    assert max(first) > 4000 and min(first) < 1000
