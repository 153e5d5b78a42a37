"""Datasets that can't be learned from, and folders that can't be recorded into: one clear line."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_recorder import record

from toolagent import cli
from toolagent.run import __main__ as run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where commands are run, with one folder of each kind."""
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
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "x.parquet").write_bytes(b"")
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
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capfd, folder, *arguments):
    """The one line, without its 'error: '; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = cli.main(run.command, ["--output-dir", "new", *arguments])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return err.removeprefix("error: ")


SOURCES = [
    ("missing", "missing: there is no such folder of recorded episodes"),
    ("empty", "empty: holds no recorded episodes (*.parquet); record some with"),
    ("file", "is torn or no Parquet file"),
    ("torn", "x.parquet: is torn or no Parquet file"),
    ("torn-inside", "x.parquet: is torn"),
    ("nothing", "x.parquet: is torn or no Parquet file"),
    ("foreign", "x.parquet: holds no recorded episodes of toolagent"),
    ("mixed-with-foreign", "y.parquet: holds no recorded episodes of toolagent"),
    ("other-version", "has schema version 99; toolagent 0.1.0 reads and writes version 1"),
    ("other-task", "is of task 'chess'"),
    ("expressions", "holds recorded episodes of task 'expression', not 'calculator'"),
    ("without-actions", "has no column 'actions'"),
    ("other-type", "column 'actions' is list<element: int64>, not list<"),
    ("odd-action", "an action is not in 0..17"),
    ("too-long", "an episode has not 1 to 7 actions"),
    ("odd-digit", "digits are integers 0..9"),
    ("no-rows", "its files of recorded episodes are all empty"),
    ("failed", "episodes none is solved; use --config marwil"),
    ("nonsense://somewhere", "nonsense"),
]


@pytest.mark.full
@pytest.mark.parametrize(("source", "message"), SOURCES, ids=[row[0] for row in SOURCES])
def test_what_cannot_be_learned_from_is_refused(capfd, folder, source, message):
    line = refusal(capfd, folder, "--config", "bc", "--set", f"offline_data.input_={source}")
    assert line.startswith("offline_data.input_: ") and message in line


TARGETS = [
    ("file", "file is a file; name a folder"),
    ("torn", "is torn or no Parquet file"),
    ("foreign", "holds no recorded episodes of toolagent"),
    ("other-version", "has schema version 99"),
    ("nonsense://somewhere", "nonsense"),
]


@pytest.mark.parametrize(("target", "message"), TARGETS, ids=[row[0] for row in TARGETS])
def test_what_cannot_be_recorded_into_is_refused(capfd, folder, target, message):
    line = refusal(capfd, folder, "--record-episodes", target)
    assert line.startswith(f"--record-episodes {target}: ") and message in line


SETTINGS = [
    ("default", "recording.share=0", "must be greater than 0"),
    ("default", "recording.shar=0.5", "did you mean 'share'?"),
    ("default", "recording.max_bytes=1.5", "expected a valid integer"),
    ("default", "recording.max_episodes=0", "must be greater than or equal to 1"),
    ("bc", "training.beta=0.5", "behaviour cloning has 0, MARWIL more"),
    ("bc", "training.max_episodes=0", "it must be at least 1"),
    ("bc", "training.min_program_success=80", "it must be at least 0 and less than 1"),
    ("bc", "training.min_program_success=0.999", "reaches min_program_success=0.999, the best"),
    ("bc", "training.max_episodes=1", "of 1 episodes none is"),
    ("bc", "env_runners.num_env_runners=2", "recorded episodes are played already"),
    ("bc", "run.record_episodes=new-episodes", "learns from recorded episodes and plays none"),
    ("bc", "offline_data.inptu_=x", "did you mean 'input_'?"),
]


@pytest.mark.parametrize(("config", "setting", "message"), SETTINGS, ids=[r[1] for r in SETTINGS])
def test_settings_that_cannot_work_are_refused(capfd, folder, config, setting, message):
    source = [] if config == "default" else ["--set", "offline_data.input_=good"]
    assert message in refusal(capfd, folder, "--config", config, *source, "--set", setting)
