"""Recorded episodes: Parquet files, a row an episode, written by the runner that played them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolagent.rollouts.episode_batch import EpisodeBatch, concatenate
from toolagent.tasks import Task

ROWS_PER_FILE = 50_000


class EpisodeRecorder:
    """Collects episode batches of one env runner and writes them by the file.

    Columns: `stage` (int8), what poses the problem again (`digits`: list of 5 ints, 0 where the
    stage shows none; or `expression`: string), `actions` (list of ints), `rewards` and
    `log_probabilities` (lists of floats), `solved` (bool), `explored` (bool: played by an
    explorer, not by the policy), `env_runner` (int). Lists are as long as the episode.

    Args:
        folder: made if it is missing; files of several runners and runs can share it.
        task: of the episodes.
        env_runner: the runner's index, part of the file names.
    """

    def __init__(self, folder: str | Path, task: Task, env_runner: int):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task = task
        self.env_runner = env_runner
        self._waiting: list[EpisodeBatch] = []
        self._rows = 0
        self._files = 0

    def add(self, batch: EpisodeBatch) -> None:
        """Takes a batch over; writes a file when enough have come together."""
        self._waiting.append(batch)
        self._rows += len(batch)
        if self._rows >= ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting; the file appears whole."""
        if not self._waiting:
            return
        table = record_table(concatenate(self._waiting), self.task, self.env_runner)
        name = f"{self.task.name}-{self.env_runner:04d}-{os.getpid()}-{self._files:06d}.parquet"
        partial = self.folder / f".{name}.partial"
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, self.folder / name)
        self._waiting, self._rows = [], 0
        self._files += 1


def record_table(batch: EpisodeBatch, task: Task, env_runner: int) -> pa.Table:
    """The rows of a batch as they are recorded (see `EpisodeRecorder`)."""
    steps = np.arange(batch.actions.shape[1]) < batch.lengths[:, None]  # (B, T)
    offsets = np.concatenate([[0], np.cumsum(batch.lengths, dtype=np.int32)]).astype(np.int32)

    def ragged(column: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(offsets, pa.array(column[steps]))

    posed = {  # texts as strings, several numbers a problem as lists
        name: pa.array(column if column.ndim == 1 else list(column))
        for name, column in task.read(batch.context).items()
    }
    return pa.table(
        {
            "stage": batch.stage,
            **posed,
            "actions": ragged(batch.actions),
            "rewards": ragged(batch.rewards),
            "log_probabilities": ragged(batch.log_probabilities),
            "solved": batch.solved,
            "explored": batch.explored,
            "env_runner": np.full(len(batch), env_runner, np.int32),
        }
    )
