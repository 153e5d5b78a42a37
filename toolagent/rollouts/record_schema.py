"""The one schema of recorded episodes, and episode batches as rows of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from toolagent import __version__
from toolagent.errors import UserError
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import PlayDetails
from toolagent.tasks import Task
from toolagent.tasks.registry import reference_of_task

SCHEMA_VERSION = 1
_POSING = ("digits", "expression")  # every file has them, whatever poses its task
RESPONSE = "response"  # the column of the tokens that each action was answered with
VERSION_KEY, TASK_KEY = b"toolagent.schema_version", b"toolagent.task"
_SOFTWARE_KEY = b"toolagent.version"

# One row an episode. Lists are as long as the episode. README: 'Recorded episodes'.
_COLUMNS = (
    pa.field("stage", pa.int8(), nullable=False),
    # What poses the problem again: of these two the one that the task has, the other is null.
    pa.field("digits", pa.list_(pa.int8())),
    pa.field("expression", pa.string()),
    pa.field("actions", pa.list_(pa.int8()), nullable=False),
    pa.field("rewards", pa.list_(pa.float32()), nullable=False),
    pa.field("log_probabilities", pa.list_(pa.float32()), nullable=False),
    pa.field("values", pa.list_(pa.float32()), nullable=False),
    pa.field("answer", pa.int64()),
    pa.field("solved", pa.bool_(), nullable=False),
    pa.field("explored", pa.bool_(), nullable=False),
    pa.field("policy_version", pa.int32(), nullable=False),
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("env_runner", pa.int32(), nullable=False),
)


def record_schema(task: Task) -> pa.Schema:
    """The schema of a task's files.

    It is the same for all tasks, so that a folder with several reads as one table; what else poses
    a task than digits or an expression has its own columns behind the others, and so have the
    responses where tools answer.

    Raises:
        UserError: one of the task's own columns has the name of another.
    """
    names = {RESPONSE, *(field.name for field in _COLUMNS)}
    example = task.example()
    posed = _posed(task, example.context, task.unseen(example))
    own = [
        pa.field(name, column.type, nullable=False)
        for name, column in posed.items()
        if name not in _POSING
    ]
    if taken := {field.name for field in own} & names:
        raise UserError(
            f"task '{task.name}': its read returns '{min(taken)}', a column that records have "
            "already; choose another name"
        )
    if task.response_length:
        answer = pa.list_(pa.int8(), task.response_length)
        own.append(pa.field(RESPONSE, pa.list_(answer), nullable=False))
    metadata = {
        VERSION_KEY: str(SCHEMA_VERSION).encode(),
        TASK_KEY: reference_of_task(task).encode(),
        _SOFTWARE_KEY: __version__.encode(),
    }
    return pa.schema([*_COLUMNS, *own], metadata)


def record_table(
    batch: EpisodeBatch,
    details: PlayDetails,
    policy_version: np.ndarray,
    task: Task,
    run_id: str,
    env_runner: int,
) -> pa.Table:
    """Episodes under `record_schema`; whole columns, no Python for each row.

    Args:
        batch: B finished episodes.
        details: of the same episodes.
        policy_version: (B,) integers: the number of the weights that played them.
        task: the machine they were played on.
        run_id: of all of them.
        env_runner: of all of them.
    """
    happened = np.arange(batch.actions.shape[1]) < batch.lengths[:, None]  # (B, T)
    offsets = np.zeros(len(batch) + 1, np.int32)
    np.cumsum(batch.lengths, dtype=np.int32, out=offsets[1:])

    def ragged(column: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(column[happened]))

    columns = _posed(task, batch.context, details.unseen) | {
        "stage": pa.array(batch.stage),
        "actions": ragged(batch.actions),
        "rewards": ragged(batch.rewards),
        "log_probabilities": ragged(batch.log_probabilities),
        "values": ragged(details.values),
        "answer": pa.array(details.answers, mask=~details.answered),
        "solved": pa.array(batch.solved),
        "explored": pa.array(batch.explored),
        "policy_version": pa.array(policy_version, pa.int32()),
        "run_id": pa.repeat(pa.scalar(run_id), len(batch)),
        "env_runner": pa.repeat(pa.scalar(env_runner, pa.int32()), len(batch)),
    }
    if task.response_length:
        answers = batch.response[happened]  # (steps, R)
        columns[RESPONSE] = pa.ListArray.from_arrays(
            pa.array(offsets),
            pa.FixedSizeListArray.from_arrays(pa.array(answers.reshape(-1)), answers.shape[1]),
        )
    schema = record_schema(task)
    return pa.Table.from_arrays(
        [
            columns[field.name] if field.name in columns else pa.nulls(len(batch), field.type)
            for field in schema
        ],
        schema=schema,
    )


def read_back(task: Task, context: np.ndarray) -> dict[str, Any]:
    """What poses the problems of (B, L) contexts again, as far as they show it; the contexts of a
    task that can't be posed."""
    return task.read(context) if task.can_be_posed else {"context": context}


def _posed(task: Task, context: np.ndarray, unseen: dict[str, np.ndarray]) -> dict[str, Any]:
    """What poses problems again as columns: texts, or one integer or several a problem."""
    result = {}
    for name, column in (read_back(task, context) | unseen).items():
        if column.ndim == 1:
            result[name] = pa.array(column)
            continue
        width = column.shape[1]
        offsets = np.arange(0, len(column) * width + 1, width, dtype=np.int32)
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        result[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return result
