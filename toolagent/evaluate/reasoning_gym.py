"""Problems of the package reasoning-gym, as far as an agent can be posed them, and its own scoring.

The package is an optional extra: `pip install -e '.[reasoning-gym]'`. Its datasets are
restricted to what the task has: single digits, `+ - *`, parentheses, and as many operands as there
are stages. A problem that even so can't be posed is passed over and counted.

What is measured is an agent that reads tokens of an expression and writes a program. It reads no
English, so its figures say nothing beside those of language models.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolagent.errors import UserError, nearest
from toolagent.installation import install_command
from toolagent.tasks import Task

PACKAGE = "reasoning-gym"
MAX_SEED = 2**31 - 1
_NEGATIVE = re.compile(r"(?:^|[-+*(]) *-")  # a minus with nothing to subtract from
_DRAWS_EACH = 5_000  # problems drawn for one that can be posed, before giving up


@dataclass(frozen=True)
class _Dataset:
    """One of the package's datasets."""

    question: re.Pattern[str]  # in which the expression is the one group
    options: dict[str, Any]  # that restrict it to what the task has
    restriction: str  # in words


DATASETS = {
    "basic_arithmetic": _Dataset(
        re.compile(r"Calculate ([-+*()0-9 ]+)\."),
        # Without parentheses it reads from left to right, so that 1 + 2 * 3 is 9 there, and its
        # single digits go up to 10.
        {"operators": ["+", "-", "*"], "allow_parentheses": True, "allow_negation": False},
        "single digits, + - *, parentheses",
    ),
    "chain_sum": _Dataset(
        re.compile(r"State the final answer to the following arithmetic problem: ([-+0-9 ]+) ="),
        {"allow_negation": False},
        "single digits, + -",
    ),
}


@dataclass
class Drawn:
    """Problems of one dataset that can be posed, the same number for each number of operands."""

    name: str
    version: str
    seed: int
    config: dict[str, Any]
    restriction: str
    problems: Any = None  # the task's
    entries: list[Any] = field(default_factory=list)  # the package's, in the order of the problems
    scorers: list[Any] = field(default_factory=list)  # the dataset that each comes from
    drawn: Counter[int] = field(default_factory=Counter)  # by number of operands
    passed_over: Counter[str] = field(default_factory=Counter)  # by what can't be posed


@dataclass(frozen=True)
class OperandScore:
    """The score on the problems with one number of operands."""

    operands: int
    problems: int
    drawn: int  # those that can't be posed included
    mean_score: float


@dataclass(frozen=True)
class Score:
    """What the package gives for the agent's answers.

    The package gives 1 for the right answer, and part of a point for a wrong one in whose text the
    right one occurs (15 for 5).
    """

    drawn: Drawn
    mean_score: float
    operands: tuple[OperandScore, ...]

    @property
    def mean_score_of_all_drawn(self) -> float:
        """What it would be with 0 for each problem that was passed over."""
        shares = [row.mean_score * row.problems / row.drawn for row in self.operands]
        return sum(shares) / len(shares)

    def record(self) -> dict[str, Any]:
        """As JSON files show it."""
        drawn = self.drawn
        return {
            "dataset": drawn.name,
            "version": drawn.version,
            "config": drawn.config,
            "restriction": drawn.restriction,
            "size": len(drawn.entries),
            "seed": drawn.seed,
            "mean_score": self.mean_score,
            "drawn": drawn.drawn.total(),
            "passed_over": dict(drawn.passed_over),
            "mean_score_of_all_drawn": self.mean_score_of_all_drawn,
            "operands": [vars(row) for row in self.operands],
        }


def draw(task: Task, name: str, size: int, seed: int) -> Drawn:
    """Problems of a dataset, numbers of operands in equal parts, as the dataset draws them itself.

    Args:
        task: one whose problems are expressions.
        name: in `DATASETS`.
        size: how many.
        seed: the dataset's.

    Raises:
        UserError: the task has other problems, the package is missing or asks in other words, or
            no dataset has that name.
    """
    if task.posed_by != ("expression",):
        names = " and ".join(task.posed_by)
        raise UserError(f"--reasoning-gym: task '{task.name}' is posed by {names}")
    if name not in DATASETS:
        raise UserError(f"--reasoning-gym: no dataset '{name}'; {nearest(name, DATASETS)}")
    package = _package()
    dataset = DATASETS[name]
    terms = [stage for stage in task.stages if stage >= 2]
    config = {"min_terms": terms[0], "max_terms": terms[-1], "min_digits": 1, "max_digits": 1}
    config |= dataset.options
    result = Drawn(
        name,
        importlib.metadata.version(PACKAGE),
        seed,
        config,
        f"{dataset.restriction}, {terms[0]} to {terms[-1]} operands in equal parts",
    )
    texts: list[str] = []
    for index, operands in enumerate(terms):
        wanted = size // len(terms) + (index < size % len(terms))
        source = package.create_dataset(
            name, **config | {"min_terms": operands, "max_terms": operands, "seed": seed}
        )
        texts += _posable(task, dataset, source, operands, wanted, result)
    result.problems = task.pose(None, expression=texts)
    return result


def score(drawn: Drawn, answers: Sequence[int | None]) -> Score:
    """The package's own scoring of the answers to the drawn problems, in their order."""
    scores = np.array(
        [
            scorer.score_answer(None if answer is None else str(answer), entry)
            for scorer, entry, answer in zip(drawn.scorers, drawn.entries, answers, strict=True)
        ]
    )
    operands = tuple(
        OperandScore(
            int(stage),
            int((drawn.problems.stage == stage).sum()),
            drawn.drawn[int(stage)],
            float(scores[drawn.problems.stage == stage].mean()),
        )
        for stage in np.unique(drawn.problems.stage)
    )
    return Score(drawn, float(scores.mean()), operands)


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError:
        raise UserError(
            f"--reasoning-gym: the package {PACKAGE} is not installed; {install_command(PACKAGE)}"
        ) from None


def _posable(
    task: Task, dataset: _Dataset, source: Any, operands: int, wanted: int, result: Drawn
) -> list[str]:
    """The first expressions of the source that can be posed; the rest goes into `result`."""
    texts: list[str] = []
    for index in range(_DRAWS_EACH * wanted):
        if len(texts) == wanted:
            break
        entry = source[index]
        text = _expression(dataset, entry["question"], result.version)
        result.drawn[operands] += 1
        fault = _fault(task, text)
        if fault is not None:
            result.passed_over[fault] += 1
            continue
        texts.append(text)
        result.entries.append(entry)
        result.scorers.append(source)
    if len(texts) < wanted:
        raise UserError(
            f"--reasoning-gym: only {len(texts)} of {result.drawn[operands]:,} problems of "
            f"{result.name} with {operands} operands can be posed; expected {wanted}"
        )
    return texts


def _expression(dataset: _Dataset, question: str, version: str) -> str:
    """The expression in a question."""
    match = dataset.question.fullmatch(question)
    if match is None:
        raise UserError(
            f"--reasoning-gym: {PACKAGE} {version} asks in other words than are understood: "
            f"{question!r:.80}"
        )
    return match[1]


def _fault(task: Task, text: str) -> str | None:
    """Why an expression can't be posed; None if it can."""
    if _NEGATIVE.search(text):
        return "negative numbers"
    try:
        task.pose(None, expression=[text])
    except ValueError:
        return "too many parentheses"  # which is all that is left
    return None
