"""Recorded episodes: their schema, limits and files, and playing them again exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from trained import ROOT, noisy_network, untrained_expression_network

import toolagent.envs  # noqa: F401  registers the ids
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import PlayDetails, play
from toolagent.rollouts.recorder import EpisodeRecorder, Recording
from toolagent.rollouts.records import check_recording_folder, count_episodes, read_episodes
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS

NETWORKS = {
    "calculator": lambda: noisy_network(0.2),
    "tutorial": lambda: noisy_network(0.2),
    "expression": lambda: untrained_expression_network(1),
}
POSED_BY = {"calculator": "digits", "tutorial": "digits", "expression": "expression"}
TYPES = {
    "stage": pa.int8(),
    "digits": pa.list_(pa.int8()),
    "expression": pa.string(),
    "actions": pa.list_(pa.int8()),
    "rewards": pa.list_(pa.float32()),
    "log_probabilities": pa.list_(pa.float32()),
    "values": pa.list_(pa.float32()),
    "answer": pa.int64(),
    "solved": pa.bool_(),
    "explored": pa.bool_(),
    "policy_version": pa.int32(),
    "run_id": pa.string(),
    "env_runner": pa.int32(),
}


def played(name, count, seed=0):
    task = get_task(name)
    rng = np.random.default_rng(seed)
    stages = rng.integers(task.stages[0], task.stages[-1] + 1, count).astype(np.int8)
    details = PlayDetails.empty(count, task.max_actions)
    generator = torch.Generator().manual_seed(seed)
    problems = task.sample(rng, stages)
    return play(NETWORKS[name](), task, problems, generator, observer=details), details


def recorder_in(folder, name="calculator", env_runner=3, num_env_runners=3, **options):
    recording = Recording(str(folder), "run-1", **options)
    return EpisodeRecorder(recording, get_task(name), env_runner, num_env_runners, seed=0)


def record(folder, name="calculator", count=70, **options):
    """Two batches of `count` episodes each, and the recorder's status."""
    recorder = recorder_in(folder, name, **options)
    batches = [played(name, count, seed) for seed in (0, 1)]
    for version, (batch, details) in enumerate(batches):
        recorder.add(batch, details, 5 + version)
    recorder.flush()
    recorder.flush()  # nothing is left to write
    return batches, recorder.status()


@pytest.fixture(params=list(NETWORKS))
def recorded(request, tmp_path):
    """The task's name, its episodes and the table that was written."""
    name = request.param
    batches, status = record(tmp_path / "episodes", name)
    (file,) = (tmp_path / "episodes" / f"task={name}").iterdir()
    assert file.name == "run-1-0003-000000.parquet"
    assert (status.episodes, status.files, status.bytes) == (140, 1, file.stat().st_size)
    return name, batches, pq.read_table(file, partitioning=None)


def test_columns_have_their_types(recorded):
    name, _, table = recorded
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == TYPES
    assert table.schema.metadata[b"toolagent.schema_version"] == b"1"
    assert table.schema.metadata[b"toolagent.task"] == name.encode()


def test_rows_are_the_episodes_in_their_order(recorded):
    _, batches, table = recorded
    rows = table.to_pylist()
    assert len(rows) == 140
    episodes = [
        (batch, details, row, 5 + version)
        for version, (batch, details) in enumerate(batches)
        for row in range(len(batch))
    ]
    for recorded_row, (batch, details, row, version) in zip(rows, episodes, strict=True):
        length = batch.lengths[row]
        for column, values in (
            ("actions", batch.actions),
            ("rewards", batch.rewards),
            ("log_probabilities", batch.log_probabilities),
            ("values", details.values),
        ):
            assert recorded_row[column] == values[row, :length].tolist()
        assert recorded_row["stage"] == batch.stage[row]
        assert recorded_row["solved"] == batch.solved[row]
        assert recorded_row["policy_version"] == version
        assert (recorded_row["env_runner"], recorded_row["run_id"]) == (3, "run-1")


def replay(table, name):
    """Plays every row in the Gymnasium environment; how many actions the episodes have."""
    env = gym.make(f"toolagent/{name.capitalize()}-v0").unwrapped
    lengths = set()
    for row in table.to_pylist():
        posed_by = POSED_BY[name]
        env.reset(options={"stage": row["stage"], posed_by: row[posed_by]})
        rewards, done, info = [], False, {}
        for action in row["actions"]:
            assert not done
            _, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            done = terminated or truncated
        assert done
        np.testing.assert_array_equal(np.float32(rewards), np.float32(row["rewards"]))
        assert info["solved"] == row["solved"]
        assert row["answer"] == (info["acc"] if row["actions"][-1] == ANS else None)
        lengths.add(len(rewards))
    return lengths


def test_a_row_played_again_gives_the_same_episode(recorded):
    name, _, table = recorded
    assert len(replay(table, name)) > 3
    assert 0 < table["answer"].null_count < len(table)


def test_values_are_the_network_s_before_each_action(recorded):
    name, batches, _ = recorded
    for batch, details in batches:
        _, values = NETWORKS[name]().unroll_episodes(
            *map(torch.from_numpy, (batch.context, batch.stage, batch.actions, batch.lengths))
        )
        np.testing.assert_allclose(
            details.values[:, : values.shape[1]], values.detach().numpy(), atol=1e-4
        )
        assert np.abs(details.values).max() > 0.01


def test_recorded_episodes_are_read_back_as_they_were_played(recorded, tmp_path):
    name, batches, _ = recorded
    read = read_episodes(str(tmp_path / "episodes"), name)
    whole = EpisodeBatch.concatenate([batch for batch, _ in batches])
    for column in ("stage", "context", "actions", "lengths", "rewards", "solved"):
        np.testing.assert_array_equal(getattr(read, column), getattr(whole, column), column)


def test_two_tasks_share_a_folder_and_read_as_one_table(tmp_path):
    record(tmp_path, "calculator")
    record(tmp_path, "expression")
    table = pq.read_table(tmp_path)
    assert set(table.column_names) == {*TYPES, "task"}
    tasks = table["task"].to_pylist()
    assert [tasks.count(name) for name in ("calculator", "expression")] == [140, 140]
    assert all((text is None) == (name == "calculator") for text, name in zip(
        table["expression"].to_pylist(), tasks, strict=True
    ))  # fmt: skip
    assert len(read_episodes(str(tmp_path), "expression")) == 140


@pytest.mark.slow  # pyarrow reads the same folder in the tests above
def test_pandas_polars_duckdb_and_ray_data_read_the_same(tmp_path):
    """The commands of the README."""
    import duckdb
    import pandas as pd
    import polars as pl

    batches, _ = record(tmp_path)
    whole = EpisodeBatch.concatenate([batch for batch, _ in batches])
    expected = {stage: whole.solved[whole.stage == stage].mean() for stage in range(3)}

    frame = pd.read_parquet(tmp_path)
    by_pandas = frame.groupby("stage")["solved"].mean().to_dict()
    lazy = pl.scan_parquet(f"{tmp_path}/**/*.parquet", hive_partitioning=True)
    by_polars = dict(lazy.group_by("stage").agg(pl.col("solved").mean()).collect().iter_rows())
    by_duckdb = dict(
        duckdb.sql(
            "SELECT stage, avg(solved::INT) FROM "
            f"read_parquet('{tmp_path}/**/*.parquet', hive_partitioning=true) GROUP BY stage"
        ).fetchall()
    )
    for found in (by_pandas, by_polars, by_duckdb):
        assert found == pytest.approx(expected)
    assert set(frame["task"]) == {"calculator"}
    assert lazy.collect()["actions"].to_list() == frame["actions"].map(list).to_list()
    ((steps,),) = duckdb.sql(
        f"SELECT sum(len(actions)) FROM read_parquet('{tmp_path}/**/*.parquet')"
    ).fetchall()
    assert steps == whole.env_steps

    # Ray in a process of its own: other tests have their clusters.
    code = (
        'import ray; ray.init("local", num_cpus=1, include_dashboard=False)\n'
        f"data = ray.data.read_parquet({str(tmp_path)!r})\n"
        "print('rows', data.count(), data.sum('solved'), sorted(data.schema().names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert f"rows 140 {whole.solved.sum()} {sorted([*TYPES, 'task'])}" in done.stdout, done.stderr


# Shares, limits, files --------------------------------------------------------------------


def test_a_share_is_drawn_and_the_rest_is_not_recorded(tmp_path):
    _, status = record(tmp_path, count=2000, share=0.25)
    assert 850 < status.episodes < 1150  # 1000 expected, standard deviation 27
    assert not status.full


def test_the_number_of_episodes_is_limited_over_all_runners(tmp_path):
    # 100 for three runners: 34, 33 and 33.
    statuses = [
        record(tmp_path, env_runner=runner, max_episodes=100)[1] for runner in (1, 2, 3)
    ]  # fmt: skip
    assert [status.episodes for status in statuses] == [34, 33, 33]
    assert all(status.full for status in statuses)
    assert count_episodes(str(tmp_path), "run-1")[0] == 100


def test_the_bytes_are_limited_over_all_runners(tmp_path):
    (unlimited,) = [record(tmp_path / "all", count=5000, num_env_runners=1)[1]]
    limit = unlimited.bytes // 2
    for runner in (1, 2):
        status = record(
            tmp_path, count=5000, env_runner=runner, num_env_runners=2, max_bytes=limit
        )[1]
        assert status.full and limit / 4 < status.bytes <= limit / 2
        assert 1000 < status.episodes < 5000
    assert count_episodes(str(tmp_path / "task=calculator"), "run-1")[1] <= limit


def test_a_recreated_runner_continues_where_its_predecessor_was_lost(tmp_path):
    record(tmp_path, num_env_runners=1, max_episodes=200)
    (tmp_path / "task=calculator" / ".run-1-0003-000001.parquet.partial").write_bytes(b"PAR1")
    _, status = record(tmp_path, num_env_runners=1, max_episodes=200)
    assert (status.episodes, status.files, status.full) == (200, 2, True)
    assert len(list((tmp_path / "task=calculator").iterdir())) == 2
    assert not recorder_in(tmp_path, num_env_runners=1, max_episodes=200).active


def test_files_are_cut_by_episodes_and_by_time(tmp_path):
    batch, details = played("calculator", 100)
    recorder = recorder_in(tmp_path, episodes_per_file=250, episodes_per_row_group=60)
    for _ in range(6):
        recorder.add(batch, details, 1)
    recorder.flush()
    files = sorted(tmp_path.rglob("*.parquet"))
    metadata = [pq.read_metadata(file) for file in files]
    assert [(part.num_rows, part.num_row_groups) for part in metadata] == [(300, 5), (300, 5)]
    recorder = recorder_in(tmp_path, env_runner=1, seconds_per_file=0.05)
    recorder.add(batch, details, 1)
    time.sleep(0.06)
    recorder.add(batch, details, 1)
    recorder.flush()
    assert pq.read_metadata(next(tmp_path.rglob("run-1-0001-*.parquet"))).num_rows == 200


def test_a_disk_that_is_gone_ends_the_recording_and_nothing_else(tmp_path):
    recorder = recorder_in(tmp_path / "episodes")
    (tmp_path / "episodes").rename(tmp_path / "elsewhere")
    batch, details = played("calculator", 10)
    recorder.add(batch, details, 1)
    recorder.flush()
    assert not recorder.active and "No such file" in recorder.status().fault
    recorder.add(batch, details, 1)  # taken by nobody
    assert recorder.status().episodes == 0


def test_a_uri_is_as_good_as_a_path(tmp_path):
    folder = (tmp_path / "episodes").as_uri()
    record(folder)
    assert len(read_episodes(folder, "calculator")) == 140
    check_recording_folder(folder)


WRITER = """
import sys
sys.path.insert(0, "tests")
from test_recorder import played, recorder_in
batch, details = played("calculator", 4000)
recorder = recorder_in(sys.argv[1], episodes_per_file=4000)
while True:
    recorder.add(batch, details, 1)
    print("written", recorder.status().files, flush=True)
"""


@pytest.mark.full
def test_what_a_killed_run_has_written_is_whole(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if int(line.split()[1]) >= 5:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    files = list(tmp_path.rglob("*.parquet"))
    assert len(files) >= 5
    tables = [pq.read_table(file, partitioning=None) for file in files]
    assert {len(table) for table in tables} == {4000}
    assert len(read_episodes(str(tmp_path), "calculator")) == 4000 * len(files)
    assert pq.read_table(tmp_path).num_rows == 4000 * len(files)
    replay(tables[-1].slice(0, 300), "calculator")
