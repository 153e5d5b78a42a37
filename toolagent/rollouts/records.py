"""Reading recorded episodes back: which files are there, whether they are sound, and as columns."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from toolagent import __version__
from toolagent.errors import UserError
from toolagent.outside import is_outside
from toolagent.rollouts.record_schema import (
    RESPONSE,
    SCHEMA_VERSION,
    TASK_KEY,
    VERSION_KEY,
    read_back,
    record_schema,
)
from toolagent.tasks import TASKS, Task, get_task
from toolagent.tasks.columns import Columns

_SUFFIX = ".parquet"
_UNREADABLE = (pa.ArrowException, OSError, ValueError)  # ValueError: a footer's texts
_READ = ("stage", "actions", "rewards", "solved")


@dataclass
class RecordedEpisodes(Columns):
    """B recorded episodes: what can be learned from."""

    stage: np.ndarray  # (B,) int8
    context: np.ndarray  # (B, L) int8
    actions: np.ndarray  # (B, T) int8, `answer` after the end
    lengths: np.ndarray  # (B,) int8
    rewards: np.ndarray  # (B, T) float32, 0 after the end
    response: np.ndarray  # (B, T, R) int8, `pad` after the end
    solved: np.ndarray  # (B,) bool


@functools.lru_cache(maxsize=1)
def read_episodes(path: str, task_name: str) -> RecordedEpisodes:
    """All recorded episodes of a task; the latest call's are kept, a second one costs nothing.

    Args:
        path: a folder, a Parquet file, or a URI of one that `pyarrow.fs` takes.
        task_name: the episodes' task.

    Raises:
        UserError: there are none, or a file is torn, foreign or of another version or task.
    """
    task = get_task(task_name)
    filesystem, files = _sound_files(path)
    others = sorted({name for _, name in files} - {task_name})
    mine = [file for file, name in files if name == task_name]
    if not mine:
        raise UserError(
            f"{path}: holds recorded episodes of task {_listed(others)}, not '{task_name}'"
        )
    parts = [_read(filesystem, file, task) for file in mine]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise UserError(f"{path}: its files of recorded episodes are all empty")
    return RecordedEpisodes.concatenate(parts)


def check_recording_folder(path: str) -> None:
    """Refuses to record into a folder that holds other Parquet files than recorded episodes.

    Raises:
        UserError: with the file and what it is.
    """
    filesystem, root = _filesystem(path)
    if filesystem.get_file_info(root).type == fs.FileType.NotFound:
        return
    for file in _parquet_files(filesystem, root):
        _task_of(filesystem, file)


def count_episodes(path: str, run_id: str) -> tuple[int, int]:
    """(episodes, bytes) that a run has recorded, by its files' footers."""
    filesystem, root = _filesystem(path)
    episodes = size = 0
    for file in _parquet_files(filesystem, root):
        if file.rsplit("/", 1)[-1].startswith(f"{run_id}-"):
            episodes += _footer(filesystem, file).num_rows
            size += int(filesystem.get_file_info(file).size or 0)
    return episodes, size


def _sound_files(path: str) -> tuple[fs.FileSystem, list[tuple[str, str]]]:
    """The filesystem, and each Parquet file there with its task."""
    filesystem, root = _filesystem(path)
    kind = filesystem.get_file_info(root).type
    if kind == fs.FileType.NotFound:
        raise UserError(f"{path}: there is no such folder of recorded episodes")
    files = [root] if kind == fs.FileType.File else _parquet_files(filesystem, root)
    if not files:
        raise UserError(
            f"{path}: holds no recorded episodes (*{_SUFFIX}); record some with "
            "'python -m toolagent.run --record-episodes DIR'"
        )
    return filesystem, [(file, _task_of(filesystem, file)) for file in files]


def _filesystem(path: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, root = fs.FileSystem.from_uri(recording_uri(path))
        filesystem.get_file_info(root)  # ArrowInvalid for what can be no path
        return filesystem, root
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"{path}: {_condensed(error)}") from None


def recording_uri(path: str) -> str:
    """The path as `pyarrow.fs` takes it: URIs as they are, anything else as an absolute path."""
    from pathlib import Path

    return path if "://" in path else str(Path(path).absolute())


def _parquet_files(filesystem: fs.FileSystem, root: str) -> list[str]:
    """In the order of their names; hidden ones are being written."""
    try:
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{root}: {_condensed(error)}") from None
    return sorted(
        info.path
        for info in infos
        if info.is_file and info.path.endswith(_SUFFIX) and not info.base_name.startswith(".")
    )


def _footer(filesystem: fs.FileSystem, file: str) -> pq.FileMetaData:
    try:
        with filesystem.open_input_file(file) as stream:
            return pq.read_metadata(stream)
    except _UNREADABLE as error:
        raise UserError(f"{file}: is torn or no Parquet file ({_condensed(error)})") from None


def _task_of(filesystem: fs.FileSystem, file: str) -> str:
    """The task of a file of recorded episodes of this schema version."""
    footer = _footer(filesystem, file)
    metadata = footer.metadata or {}
    version = metadata.get(VERSION_KEY)
    if version is None:
        raise UserError(
            f"{file}: holds no recorded episodes of toolagent {__version__} (it names no schema "
            "version); name another folder"
        )
    if version != str(SCHEMA_VERSION).encode():
        raise UserError(
            f"{file}: has schema version {version.decode(errors='replace')}; toolagent "
            f"{__version__} reads and writes version {SCHEMA_VERSION}"
        )
    name = metadata.get(TASK_KEY, b"").decode(errors="replace")
    if name not in TASKS:
        if is_outside(name):  # another task's, which nobody asks for
            return name
        raise UserError(f"{file}: is of task '{name}', which there is none of; {_listed(TASKS)}")
    schema = footer.schema.to_arrow_schema()
    for field in record_schema(get_task(name)):
        if field.name not in schema.names:
            raise UserError(f"{file}: has no column '{field.name}'; is it from elsewhere?")
        if schema.field(field.name).type != field.type:
            raise UserError(
                f"{file}: column '{field.name}' is {schema.field(field.name).type}, not "
                f"{field.type}; is it from elsewhere?"
            )
    return name


def _read(filesystem: fs.FileSystem, file: str, task: Task) -> RecordedEpisodes | None:
    """The file's episodes; None if it has none."""
    example = task.example()
    shown, unseen = [*read_back(task, example.context)], [*task.unseen(example)]
    answered = [RESPONSE] if task.response_length else []
    try:
        with filesystem.open_input_file(file) as stream:
            table = pq.read_table(stream, columns=[*_READ, *shown, *unseen, *answered])
    except _UNREADABLE as error:
        raise UserError(f"{file}: is torn ({_condensed(error)})") from None
    if not len(table):
        return None
    try:
        return _episodes(table.combine_chunks(), task, shown, unseen)
    except ValueError as error:
        raise UserError(f"{file}: {_condensed(error)}") from None


def _episodes(table: pa.Table, task: Task, shown: list[str], unseen: list[str]) -> RecordedEpisodes:
    """The table's rows as columns; ValueError where they can be no episodes of the task."""
    stage = table["stage"].to_numpy()
    columns = {name: _flat(table, name) for name in ("actions", "rewards")}
    (actions, lengths), (rewards, reward_lengths) = columns["actions"], columns["rewards"]
    if (lengths < 1).any() or (lengths > task.max_actions).any():
        raise ValueError(f"an episode has not 1 to {task.max_actions} actions")
    if not np.array_equal(lengths, reward_lengths):
        raise ValueError("an episode has not one reward for each action")
    last, pad = task.vocabulary.num_actions - 1, task.vocabulary.pad_token
    if ((actions < 0) | (actions > last)).any():
        raise ValueError(f"an action is not in 0..{last}")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    happened = np.arange(task.max_actions) < lengths[:, None]  # (B, T)
    padded_actions = np.full(happened.shape, task.vocabulary.answer_token, np.int8)
    padded_actions[happened] = actions
    padded_rewards = np.zeros(happened.shape, np.float32)
    padded_rewards[happened] = rewards
    response = np.full((*happened.shape, task.response_length), padded_actions.dtype.type(pad))
    if task.response_length:
        values, counts = _flat(table, RESPONSE)
        if not np.array_equal(counts, lengths):
            raise ValueError("an episode has not one response for each action")
        response[happened] = _tokens(values, task).reshape(-1, task.response_length)
    return RecordedEpisodes(
        stage=stage,
        context=_contexts(table, stage, task, shown, unseen),
        actions=padded_actions,
        lengths=lengths.astype(np.int8),
        rewards=padded_rewards,
        response=response,
        solved=table["solved"].to_numpy(),
    )


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column's values one after the other, and (B,) how many each row has."""
    column = table[name]
    values = []
    for chunk in column.chunks:
        flat = chunk.flatten()
        while pa.types.is_fixed_size_list(flat.type):  # the tokens of a response
            flat = flat.flatten()
        values.append(flat.to_numpy(zero_copy_only=False))
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(values), np.concatenate(lengths).astype(np.int64)


def _contexts(
    table: pa.Table, stage: np.ndarray, task: Task, shown: list[str], unseen: list[str]
) -> np.ndarray:
    """(B, L) what the agent read. Where contexts show one text and nothing else, each text of
    a stage is parsed once: many are played in groups."""
    if shown == ["context"]:  # a task that can't be posed: recorded as it was read
        values, lengths = _flat(table, "context")
        if (lengths != task.context_length).any():
            raise ValueError(f"a context has not {task.context_length} tokens")
        return _tokens(values, task).reshape(-1, task.context_length)
    given: dict[str, Any] = {}
    rows, back = np.arange(len(table)), slice(None)
    for name in [*shown, *unseen]:
        column = table[name]
        if column.null_count:
            raise ValueError(f"column '{name}' has rows without a value")
        if pa.types.is_string(column.type):
            given[name] = texts = column.to_numpy()
            if shown == [name]:  # some texts are of several stages
                _, number = np.unique(texts.astype(str), return_inverse=True)
                _, rows, back = np.unique(
                    number * task.stages.stop + stage, return_index=True, return_inverse=True
                )
        elif not pa.types.is_nested(column.type):  # one number a problem
            given[name] = column.to_numpy()
        else:
            values, lengths = _flat(table, name)
            if (lengths != lengths[:1]).any():
                raise ValueError(f"column '{name}' has lists of different lengths")
            given[name] = values.reshape(len(table), -1)
    problems = task.pose(stage[rows], **{name: column[rows] for name, column in given.items()})
    if not np.array_equal(problems.stage[back], stage):
        raise ValueError("a problem is not of its row's stage")
    return problems.context[back]


def _tokens(values: np.ndarray, task: Task) -> np.ndarray:
    """The values as int8; ValueError for one that is no token of the task."""
    if ((values < 0) | (values >= len(task.vocabulary))).any():
        raise ValueError(f"a token is not in 0..{len(task.vocabulary) - 1}")
    return values.astype(np.int8)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _condensed(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
