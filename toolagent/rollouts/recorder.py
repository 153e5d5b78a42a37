"""Recorded episodes: Parquet files, a row an episode, written by the runner that played them."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import PlayDetails
from toolagent.rollouts.record_schema import record_table
from toolagent.tasks import Task

RECORDING = "recording"  # the key in `env_config`, with a `Recording` as a dict
# Columns of few different values, as Parquet calls them; looking for repetitions among the others
# takes half of the time of writing and finds none.
_REPEATING: Any = [  # typed as a bool by pyarrow's stubs
    *("stage", "answer", "policy_version", "run_id", "env_runner"),
    *(f"{name}.list.element" for name in ("digits", "actions", "rewards")),
]
_SAMPLING_STREAM = 0x7265636F  # 'reco': what is recorded changes nothing in what is played


@dataclass(frozen=True)
class Recording:
    """What a run records, and where; plain values, which travel in `env_config`."""

    folder: str  # an absolute path, or a URI that `pyarrow.fs` takes
    run_id: str
    share: float = 1.0  # of the episodes, drawn at random
    max_episodes: int | None = None  # of all runners together
    max_bytes: int | None = None  # of all runners' files together
    episodes_per_file: int = 50_000
    episodes_per_row_group: int = 50_000
    seconds_per_file: float = 10.0  # a file is written no later

    def to_dict(self) -> dict[str, Any]:
        """For `env_config`."""
        return asdict(self)


@dataclass(frozen=True)
class RecorderStatus:
    """What a recorder has written so far."""

    episodes: int
    files: int
    bytes: int
    full: bool  # a limit is reached
    fault: str | None  # why it stopped, where it had to


class EpisodeRecorder:
    """Collects the episodes of one env runner and writes them by the file, in a thread.

    Files appear whole under `<folder>/task=<task>/`: on a disk they are written under another
    name, forced to it and renamed; an object store shows them when they are complete. A
    runner that is killed loses the episodes in memory, at most `episodes_per_file` or those of
    `seconds_per_file` seconds, and the file that is being written.

    Each of the runners has its part of `max_episodes` and `max_bytes`; a recreated one continues
    its predecessor's files. A disk that is full or gone ends the recording, not the run.

    Args:
        recording: what to record.
        task: of the episodes.
        env_runner: the runner's index: 0 is the local one, which plays where there is no other.
        num_env_runners: remote ones.
        seed: of the run; draws the share that is recorded.
    """

    def __init__(
        self,
        recording: Recording,
        task: Task,
        env_runner: int = 0,
        num_env_runners: int = 0,
        seed: int | None = None,
    ):
        self.recording, self.task, self.env_runner = recording, task, env_runner
        self._filesystem, root = fs.FileSystem.from_uri(recording.folder)
        self._local = isinstance(self._filesystem, fs.LocalFileSystem)
        self._folder = f"{root}/task={task.name}"
        self._stem = f"{recording.run_id}-{env_runner:04d}-"
        self._filesystem.create_dir(self._folder)
        runners, place = max(1, num_env_runners), max(0, env_runner - 1)
        self._max_episodes = _part(recording.max_episodes, runners, place)
        self._max_bytes = _part(recording.max_bytes, runners, place)
        self._rng = np.random.default_rng(
            np.random.SeedSequence(
                None if seed is None else (int(seed), env_runner, _SAMPLING_STREAM)
            )
        )
        self._waiting: list[tuple[EpisodeBatch, PlayDetails, int]] = []
        self._rows, self._since = 0, 0.0
        self._episodes = self._bytes = self._files = self._taken = 0
        self._full, self._fault = False, None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recorder")
        self._writing: Future[None] | None = None
        self._continue()

    @property
    def active(self) -> bool:
        """Whether more episodes are taken."""
        return not self._full and self._fault is None

    def add(self, batch: EpisodeBatch, details: PlayDetails, policy_version: int) -> None:
        """Takes a batch over; hands a file to the thread when enough have come together."""
        if not self.active:
            return
        if self.recording.share < 1:
            drawn = self._rng.random(len(batch)) < self.recording.share
            batch, details = batch.take(drawn), details.take(drawn)
        if self._max_episodes is not None and self._taken + len(batch) >= self._max_episodes:
            first = np.arange(self._max_episodes - self._taken)
            batch, details = batch.take(first), details.take(first)
            self._full = True
        if len(batch):
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting.append((batch, details, policy_version))
            self._rows += len(batch)
            self._taken += len(batch)
        late = time.monotonic() - self._since >= self.recording.seconds_per_file
        if self._waiting and (self._full or late or self._rows >= self.recording.episodes_per_file):
            self._hand_over()

    def flush(self) -> None:
        """Writes what is waiting, and returns when it is written."""
        if self._waiting:
            self._hand_over()
        self._join()

    def status(self) -> RecorderStatus:
        """What has been written."""
        return RecorderStatus(self._episodes, self._files, self._bytes, self._full, self._fault)

    def _hand_over(self) -> None:
        self._join()  # one file at a time: a runner that is faster than the disk waits
        waiting, self._waiting, self._rows = self._waiting, [], 0
        self._writing = self._thread.submit(self._write, waiting)

    def _join(self) -> None:
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:  # anything else is a bug, and raised
            self._fault = str(error)

    # In the thread ------------------------------------------------------------------------

    def _write(self, waiting: list[tuple[EpisodeBatch, PlayDetails, int]]) -> None:
        batches, details, versions = zip(*waiting, strict=True)
        table = record_table(
            EpisodeBatch.concatenate(batches),
            PlayDetails.concatenate(details),
            np.repeat(versions, [len(batch) for batch in batches]),
            self.task,
            self.recording.run_id,
            self.env_runner,
        )
        data = self._encoded(table)
        limit = self._max_bytes
        while limit is not None and self._bytes + data.size > limit:
            # As many rows as there is room for, by the size they had.
            self._full = True
            table = table.slice(0, int(0.98 * len(table) * (limit - self._bytes) / data.size))
            if not len(table):
                return
            data = self._encoded(table)
        self._put(f"{self._stem}{self._files:06d}.parquet", data)
        self._episodes += len(table)
        self._bytes += data.size
        self._files += 1

    def _encoded(self, table: pa.Table) -> pa.Buffer:
        """The table as the bytes of a Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=1,
            use_dictionary=_REPEATING,
            row_group_size=self.recording.episodes_per_row_group,
        )
        return sink.getvalue()

    def _put(self, name: str, data: pa.Buffer) -> None:
        """The file appears whole or not at all."""
        if not self._local:
            with self._filesystem.open_output_stream(f"{self._folder}/{name}") as stream:
                stream.write(data)
            return
        partial = f"{self._folder}/.{name}.partial"
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, f"{self._folder}/{name}")

    def _continue(self) -> None:
        """Counts what a runner of the same run and index has written before it was lost."""
        for info in self._filesystem.get_file_info(fs.FileSelector(self._folder)):
            if info.base_name.startswith(f".{self._stem}"):  # its half-written file
                self._filesystem.delete_file(info.path)
            elif info.base_name.startswith(self._stem):
                with self._filesystem.open_input_file(info.path) as file:
                    self._episodes += pq.read_metadata(file).num_rows
                self._bytes += int(info.size or 0)
                self._files += 1
        self._taken = self._episodes
        self._full = _reached(self._episodes, self._max_episodes) or _reached(
            self._bytes, self._max_bytes
        )


def _part(limit: int | None, runners: int, place: int) -> int | None:
    """The part of a limit that runner number `place` of so many has."""
    return None if limit is None else limit // runners + (place < limit % runners)


def _reached(value: int, limit: int | None) -> bool:
    return limit is not None and value >= limit


def recorder_of(env_runner: Any, task: Task) -> EpisodeRecorder | None:
    """The recorder that a runner's `env_config` asks for; training episodes only."""
    config = env_runner.config
    recording = config.env_config.get(RECORDING)
    if not recording or config.in_evaluation:
        return None
    return EpisodeRecorder(
        Recording(**recording),
        task,
        int(env_runner.worker_index or 0),
        int(config.num_env_runners or 0),
        config.seed,
    )
