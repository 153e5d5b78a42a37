"""Files of problems: CSV with a header, a problem a line.

The header is `stage` and the task's `problem_columns`: `stage,a,b,c,d,e` for tasks of several
numbers (those that a stage does not show may be empty), `stage` and one column where a problem is
one number, `expression` where the problems are texts that tell their stage (a `stage` column is
allowed, and must agree).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolagent.errors import UserError, nearest
from toolagent.tasks import Task

STAGE = "stage"


def read_problems(file: Path, task: Task) -> Any:
    """The problems of a CSV file, in its order.

    Raises:
        UserError: the file, or a line of it, is not as it should be.
    """
    read = _text_of
    if len(task.problem_columns) > 1:
        read = _numbers
    elif task.posed_by_numbers:
        read = _number
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    if not task.can_be_posed:
        raise UserError(
            f"problem file {file}: task '{task.name}' can't be given problems: it defines no `pose`"
        )
    columns: list[str] | None = None
    lines: list[int] = []
    stages: list[int | None] = []
    problems: list[Any] = []
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
            problems.append(read(where, named, stage, task))
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
    problems: Sequence[Any],
    task: Task,
) -> Any:
    """All problems as one batch; if that fails, the first line that can't be posed is named."""

    def pose(rows: slice) -> Any:
        stage = None if stages[0] is None else np.array(stages[rows])
        return task.pose(stage, **{task.posed_by: problems[rows]})

    try:
        return pose(slice(None))
    except ValueError:
        for row, line in enumerate(lines):
            try:
                pose(slice(row, row + 1))
            except ValueError as error:
                raise UserError(f"{file}, line {line}: {error}") from None
        raise


def _required(task: Task) -> tuple[str, ...]:
    return task.problem_columns if task.problem_tells_stage else (STAGE, *task.problem_columns)


def _header(task: Task) -> str:
    return ",".join(_required(task))


def _check_header(where: str, cells: list[str], task: Task) -> list[str]:
    known = (STAGE, *task.problem_columns)
    for cell in cells:
        if cell not in known:
            raise UserError(f"{where}: unknown column '{cell:.40}'; {nearest(cell, known)}")
        if cells.count(cell) > 1:
            raise UserError(f"{where}: column '{cell}' occurs {cells.count(cell)} times")
    for column in _required(task):
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


def _numbers(where: str, named: dict[str, str], stage: int | None, task: Task) -> list[int]:
    """All numbers, 0 for those left empty."""
    assert stage is not None
    shown = task.shown_columns(stage)
    for column in task.problem_columns:
        if named[column] == "" and column in shown:
            raise UserError(f"{where}: {column} is empty; stage {stage} shows {_listed(shown)}")
    return [_number_in(where, column, named[column] or "0") for column in task.problem_columns]


def _number(where: str, named: dict[str, str], stage: int | None, task: Task) -> int:
    """The one number."""
    return _number_in(where, task.problem_columns[0], named[task.problem_columns[0]])


def _number_in(where: str, column: str, cell: str) -> int:
    """A whole number; `Task.pose` knows which are possible."""
    if not re.fullmatch("-?[0-9]{1,18}", cell, re.ASCII):
        raise UserError(f"{where}: {column} is '{cell:.20}'; expected a whole number")
    return int(cell)


def _text_of(where: str, named: dict[str, str], stage: int | None, task: Task) -> str:
    """The text; `Task.pose` reads it."""
    return named[task.problem_columns[0]]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
