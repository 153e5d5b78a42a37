"""Datasets that can't be learned from, and folders that can't be recorded into: one clear line."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal
from test_recorder import record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where commands are run, with one folder of each kind."""
    tmp_path = tmp_path_factory.mktemp("records")
    record(tmp_path / "good")
    (sound,) = (tmp_path / "good").rglob("*.parquet")
    table = pq.read_table(sound, partitioning=None)
    record(tmp_path / "expressions", "expression")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")

    def write(name, table):
        (tmp_path / name).mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name / "x.parquet")

    def cut(name, begin, end):
        (tmp_path / name).mkdir()
        data = sound.read_bytes()
        (tmp_path / name / "x.parquet").write_bytes(data[:begin] + bytes(end - begin) + data[end:])

    size = sound.stat().st_size
    cut("torn", size - 50, size)
    cut("torn-inside", 4, 700)
    write("foreign", pa.table({"price": [1.0, 2.0]}))
    metadata = dict(table.schema.metadata)
    versioned = metadata | {b"toolagent.schema_version": b"99"}
    write("other-version", table.replace_schema_metadata(versioned))
    write("other-task", table.replace_schema_metadata(metadata | {b"toolagent.task": b"chess"}))
    write("without-actions", table.drop_columns(["actions"]))
    position = table.schema.get_field_index("actions")
    wide = table["actions"].cast(pa.list_(pa.int64()))
    write("other-type", table.set_column(position, "actions", wide))
    wrong = pa.array([[99]] * len(table), pa.list_(pa.int8()))
    rewards = table.schema.get_field_index("rewards")
    one = pa.array([[0.0]] * len(table), pa.list_(pa.float32()))
    write(
        "odd-action",
        table.set_column(position, table.schema.field("actions"), wrong).set_column(
            rewards, table.schema.field("rewards"), one
        ),
    )
    long = pa.array([[1] * 8] * len(table), pa.list_(pa.int8()))
    write("too-long", table.set_column(position, table.schema.field("actions"), long))
    digits = table.schema.get_field_index("digits")
    odd = pa.array([[1, 2, 3, 4, 50]] * len(table), pa.list_(pa.int8()))
    write("odd-digit", table.set_column(digits, table.schema.field("digits"), odd))
    write("no-rows", table.slice(0, 0))
    write("failed", table.filter(pa.compute.invert(table["solved"])))
    write("mixed-with-foreign", table)
    pq.write_table(pa.table({"price": [1.0]}), tmp_path / "mixed-with-foreign" / "y.parquet")
    return tmp_path


@pytest.fixture
def refused(folder, monkeypatch, capfd):
    """Calls `run`, which must refuse, and name the given parts."""
    monkeypatch.chdir(folder)

    def call(arguments, *named):
        refusal(capfd, "run", ["--output-dir", "new", *arguments], named)

    return call


# A row for each check of a data set: its folder, and what must be named.
SOURCES = [
    ("missing", "missing"),
    ("empty", "empty", "*.parquet"),
    ("torn", "x.parquet", "torn"),
    ("torn-inside", "x.parquet", "torn"),
    ("foreign", "x.parquet"),
    ("mixed-with-foreign", "y.parquet"),
    ("other-version", "version 99", "version 1"),
    ("other-task", "'chess'"),
    ("expressions", "'expression'", "'calculator'"),
    ("without-actions", "'actions'"),
    ("other-type", "'actions'", "int64"),
    ("odd-action", "action", "0..17"),
    ("too-long", "1 to 7 actions"),
    ("odd-digit", "digits", "0..9"),
    ("no-rows", "empty"),
    ("failed", "--config marwil"),
    ("nonsense://somewhere", "nonsense"),
]


@pytest.mark.parametrize("row", SOURCES, ids=lambda row: row[0])
def test_what_cannot_be_learned_from_is_refused(refused, row):
    source, *named = row
    arguments = ["--config", "bc", "--set", f"offline_data.input_={source}"]
    refused(arguments, "offline_data.input_: ", *named)


@pytest.mark.parametrize("target", ["file", "torn", "foreign", "other-version", "nonsense://x"])
def test_what_cannot_be_recorded_into_is_refused(refused, target):
    refused(["--record-episodes", target], f"--record-episodes {target}: ")


SETTINGS = [
    ("training.beta=0.5", "training.beta", "MARWIL"),
    ("training.max_episodes=0", "training.max_episodes"),
    ("training.min_program_success=80", "training.min_program_success"),
    ("training.min_program_success=0.999", "min_program_success=0.999"),
    ("training.max_episodes=1", "1 episodes"),
    ("env_runners.num_env_runners=2", "env_runners.num_env_runners"),
    ("run.record_episodes=new-episodes", "record"),
]


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0])
def test_settings_that_cannot_work_are_refused(refused, row):
    setting, *named = row
    source = ["--set", "offline_data.input_=good"]
    refused(["--config", "bc", *source, "--set", setting], *named)
