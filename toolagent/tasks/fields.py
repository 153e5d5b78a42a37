"""What a task's problems are given by: which values, and of which kind."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Kind = Literal["text", "number", "numbers", "digits"]
TEXT, NUMBER, NUMBERS, DIGITS = get_args(Kind)
_NUMBER = "-?[0-9]{1,18}"


@dataclass(frozen=True)
class Field:
    """One of the values that a problem is posed by (`Task.posed_by`)."""

    name: str  # the argument of `pose`, the flag of a command, the key in a request
    kind: Kind  # TEXT, NUMBER, NUMBERS, or DIGITS: numbers that may be written without separators
    length: int | None  # how many numbers there are; None where it is a text or one number
    columns: tuple[str, ...]  # in files of problems: one, or one for each number

    @property
    def is_list(self) -> bool:
        """Whether it is a list of numbers."""
        return self.length is not None

    def parse(self, text: str) -> Any:
        """What somebody wrote, as a text, a whole number or a list of them.

        Raises:
            ValueError: it is none.
        """
        if self.kind == TEXT:
            return text
        if self.kind == NUMBER:
            return _number(text)
        if self.kind == DIGITS and re.fullmatch("[0-9]{2,}", text, re.ASCII):
            return [int(digit) for digit in text]
        return [_number(part) for part in re.split(r"\s*[,;]\s*|\s+", text.strip())]

    def check_length(self, numbers: Sequence[Any]) -> None:
        """Raises ValueError for more or fewer numbers than there are."""
        if len(numbers) != self.length:
            raise ValueError(f"{len(numbers)} numbers; expected {self.length}")


def _number(text: str) -> int:
    if not re.fullmatch(_NUMBER, text, re.ASCII):
        raise ValueError(f"'{text:.20}' is no number; expected a whole one")
    return int(text)


@functools.cache  # every request asks for it
def fields_of(kind: type[Any]) -> tuple[Field, ...]:
    """The fields of a task (a class derived from `Task`), in the order of `posed_by`; of what kind
    each is, its example tells."""
    task = kind()
    told = task.posing(task.example())
    return tuple(_field(task, name, told.get(name)) for name in task.posed_by)


def _field(task: Any, name: str, told: Any) -> Field:
    columns = (name,) if len(task.posed_by) > 1 else task.problem_columns
    array = np.asarray("" if told is None else told)
    length = None
    if len(columns) > 1:
        length = len(columns)
    elif array.ndim == 2:
        length = array.shape[1]
    if length is not None:
        kind = DIGITS if name == DIGITS else NUMBERS
    else:
        kind = NUMBER if array.dtype.kind in "iu" else TEXT
    return Field(name, kind, length, columns)


def check_posed_by(given: type[Any]) -> str | None:
    """What is wrong with how a task says that it is posed; None if nothing is."""
    names, columns = given.posed_by, given.problem_columns
    for label, value in (("posed_by", names), ("problem_columns", columns)):
        if not isinstance(value, tuple) or not value or not all(map(_is_name, value)):
            return f"{label} is {value!r}; expected a tuple of names, such as ('problem',)"
    if len(names) > 1 and names != columns:
        return (
            f"posed_by is {names!r} and problem_columns is {columns!r}; of a task that is posed by "
            "several values they are the same"
        )
    return None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
