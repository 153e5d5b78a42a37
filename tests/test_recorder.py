"""Recorded episodes: the Parquet columns of each task, and playing them again exactly."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from trained import noisy_network, untrained_expression_network

import toolagent.envs  # noqa: F401  registers the ids
from toolagent.rollouts.play import play
from toolagent.rollouts.recorder import EpisodeRecorder
from toolagent.tasks import get_task
from toolagent.tokens import EOS

NETWORKS = {
    "calculator": lambda: noisy_network(0.2),
    "expression": lambda: untrained_expression_network(1),
}
POSED = {
    "calculator": {"digits": pa.list_(pa.int8())},
    "expression": {"expression": pa.string()},
}


def played(name, count, seed=0):
    task = get_task(name)
    rng = np.random.default_rng(seed)
    stages = rng.integers(task.stages[0], task.stages[-1] + 1, count).astype(np.int8)
    generator = torch.Generator().manual_seed(seed)
    return play(NETWORKS[name](), task, task.sample(rng, stages), generator)


@pytest.fixture(params=list(NETWORKS))
def recorded(request, tmp_path):
    """The task's name, its episodes and the table that was written."""
    name = request.param
    recorder = EpisodeRecorder(tmp_path / "episodes", get_task(name), env_runner=3)
    batches = [played(name, 70, seed) for seed in (0, 1)]
    for batch in batches:
        recorder.add(batch)
    recorder.flush()
    recorder.flush()  # nothing is left to write
    (file,) = (tmp_path / "episodes").iterdir()
    assert file.name.startswith(f"{name}-0003-") and file.suffix == ".parquet"
    return name, batches, pq.read_table(file)


def test_columns_have_their_types(recorded):
    name, _, table = recorded
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "stage": pa.int8(),
        **POSED[name],
        "actions": pa.list_(pa.int8()),
        "rewards": pa.list_(pa.float32()),
        "log_probabilities": pa.list_(pa.float32()),
        "solved": pa.bool_(),
        "explored": pa.bool_(),
        "env_runner": pa.int32(),
    }


def test_rows_are_the_episodes_in_their_order(recorded):
    _, batches, table = recorded
    rows = table.to_pylist()
    assert len(rows) == 140
    episodes = [(batch, row) for batch in batches for row in range(len(batch))]
    for recorded_row, (batch, row) in zip(rows, episodes, strict=True):
        length = batch.lengths[row]
        assert recorded_row["actions"] == batch.actions[row, :length].tolist()
        assert (batch.actions[row, length:] == EOS).all()
        assert recorded_row["stage"] == batch.stage[row]
        assert recorded_row["solved"] == batch.solved[row]
        assert recorded_row["env_runner"] == 3


def test_a_row_played_again_gives_the_same_episode(recorded):
    name, _, table = recorded
    env = gym.make(f"toolagent/{name.capitalize()}-v0").unwrapped
    lengths = set()
    for row in table.to_pylist():
        env.reset(options={"stage": row["stage"], **{key: row[key] for key in POSED[name]}})
        rewards, done, info = [], False, {}
        for action in row["actions"]:
            assert not done
            _, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            done = terminated or truncated
        assert done
        np.testing.assert_array_equal(np.float32(rewards), np.float32(row["rewards"]))
        assert info["solved"] == row["solved"]
        lengths.add(len(rewards))
    assert len(lengths) > 3
