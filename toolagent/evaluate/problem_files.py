"""Files of problems: CSV with a header, a problem a line.

The header is `stage` and the task's `problem_columns`: `stage,a,b,c,d,e` for tasks of several
numbers (those that a stage does not show may be empty), `stage` and one column where a problem is
one number, `expression` where the problems are texts that tell their stage (a `stage` column is
allowed, and must agree). A task that is posed by several values has a column for each, a list of
numbers being written with spaces between them; where it can do without one of them, behind the
first, the cell may be empty or the column missing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolagent.errors import UserError, nearest
from toolagent.tasks import Task
from toolagent.tasks.fields import NUMBER, Field

STAGE = "stage"


def read_problems(file: Path, task: Task) -> Any:
    """The problems of a CSV file, in its order.

    Raises:
        UserError: the file, or a line of it, is not as it should be.
    """
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    if not task.can_be_posed:
        raise UserError(
            f"problem file {file}: task '{task.name}' can't be given problems: it defines no `pose`"
        )
    columns: list[str] | None = None
    lines: list[int] = []
    stages: list[int | None] = []
    problems: list[dict[str, Any]] = []
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            cells = [cell.strip() for cell in row]
            if not row or (cells == [""] and row != [""]):  # a blank line, which '""' is not
                continue
            if columns is None:
                columns = _check_header(where, cells, task)
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{where}: {len(cells)} values; expected {len(columns)}: {','.join(columns)}"
                )
            named = dict(zip(columns, cells, strict=True))
            stage = _stage(where, named[STAGE], task) if STAGE in named else None
            lines.append(reader.line_num)
            stages.append(stage)
            problems.append(
                {
                    field.name: value
                    for field in task.fields
                    if (value := _value(where, named, stage, field, task)) is not None
                }
            )
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not CSV ({error})") from error
    if columns is None:
        raise UserError(f"{file}, line 1: empty; expected the header {_header(task)}")
    if not problems:
        raise UserError(f"{file}, line {reader.line_num + 1}: no problem after the header")
    return _posed(file, lines, stages, problems, task)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"problem file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text") from error


def _posed(
    file: Path,
    lines: Sequence[int],
    stages: Sequence[int | None],
    problems: Sequence[dict[str, Any]],
    task: Task,
) -> Any:
    """All problems as one batch; if that fails, the first line that can't be posed is named."""

    def pose(rows: Sequence[int]) -> Any:
        stage = None if stages[0] is None else np.array([stages[row] for row in rows])
        names = problems[rows[0]]
        return task.pose(stage, **{name: [problems[row][name] for row in rows] for name in names})

    alike: dict[tuple[str, ...], list[int]] = {}  # the rows that have the same fields
    for row, given in enumerate(problems):
        alike.setdefault(tuple(given), []).append(row)
    try:
        posed = [pose(rows) for rows in alike.values()]
    except ValueError:
        for row, line in enumerate(lines):
            try:
                pose([row])
            except ValueError as error:
                raise UserError(f"{file}, line {line}: {error}") from None
        raise
    order = np.argsort(np.concatenate([*alike.values()]))
    return type(posed[0]).concatenate(posed).take(order)


def _header(task: Task, columns: tuple[str, ...] | None = None) -> str:
    columns = columns or task.problem_columns
    return ",".join(columns if task.problem_tells_stage else (STAGE, *columns))


def _check_header(where: str, cells: list[str], task: Task) -> list[str]:
    known = (STAGE, *task.problem_columns)
    for cell in cells:
        if cell not in known:
            raise UserError(f"{where}: unknown column '{cell:.40}'; {nearest(cell, known)}")
        if cells.count(cell) > 1:
            raise UserError(f"{where}: column '{cell}' occurs {cells.count(cell)} times")
    for column in _header(task, task.fields[0].columns).split(","):
        if column not in cells:
            raise UserError(f"{where}: no column '{column}'; expected the header {_header(task)}")
    return cells


def _stage(where: str, cell: str, task: Task) -> int:
    known = [str(stage) for stage in task.stages]
    if cell not in known:
        raise UserError(
            f"{where}: stage is '{cell:.20}'; task '{task.name}' has stages {_listed(known)}"
        )
    return int(cell)


# A line's problem, as `Task.pose` takes it ------------------------------------------------------


def _value(
    where: str, named: dict[str, str], stage: int | None, field: Field, task: Task
) -> Any | None:
    """A field's value; None where it is left out. `Task.pose` knows which values are possible."""
    if len(field.columns) > 1:
        assert stage is not None
        return _numbers(where, named, task.shown_columns(stage), stage, field)
    column = "".join(field.columns)
    cell = named.get(column, "")
    if not cell and field != task.fields[0]:
        return None
    return _parsed(where, column, cell, field)


def _numbers(
    where: str, named: dict[str, str], shown: tuple[str, ...], stage: int, field: Field
) -> list[int]:
    """A number of each column, 0 for those left empty."""
    for column in field.columns:
        if named[column] == "" and column in shown:
            raise UserError(f"{where}: {column} is empty; stage {stage} shows {_listed(shown)}")
    one = replace(field, kind=NUMBER, length=None)
    return [_parsed(where, column, named[column] or "0", one) for column in field.columns]


def _parsed(where: str, column: str, cell: str, field: Field) -> Any:
    try:
        value = field.parse(cell)
        if field.is_list:
            field.check_length(value)
        return value
    except ValueError as error:
        raise UserError(f"{where}: {column}: {error}") from None


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
