"""The exact oracle: what programs of tool tokens can do, found by exhaustive search.

A *program* is a sequence of tokens that ends with the answer token and is played blindly, the same
for every problem. The search knows nothing of the machines: it only calls `start` and `step`.
Programs that leave the same registers in all problems are one behaviour, and of those there are
few: a few hundred where there are 18**6 programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolagent.tasks.base import Problems, Task

Program = tuple[int, ...]

PROBES = 256  # problems that tell programs apart before the survivors see all of them
CHUNK = 8192  # problems stepped at once: more are no faster, and take more memory


@dataclass
class _Behaviour:
    """All programs of one length that leave the same registers in every problem looked at."""

    registers: Any
    parents: list[tuple[_Behaviour, int]] = field(default_factory=list)  # (prefix, last token)

    def programs(self) -> Iterator[Program]:
        """Every one of its programs, without the answer token."""
        if not self.parents:
            yield ()
        for prefix, token in self.parents:
            for program in prefix.programs():
                yield (*program, token)


def shortest_programs(
    task: Task, stage: int, max_length: int | None = None, prefix: Program = ()
) -> list[Program]:
    """All shortest programs that solve every problem of the stage, in ascending order.

    Solved is judged by the *stated* target (`Transition.solved`). The search runs on a few probe
    problems, where it joins programs of equal length that leave equal registers but forgets none
    of them; a program that solves the stage solves the probes, so none is missed. The survivors
    are run on every problem. If all of them fail somewhere, those problems become probes too.

    Args:
        task: one in which a program played blindly may solve a stage, and the stage can be
            enumerated. (Behaviours are too many where a program can push numbers of its own.)
        stage: the stage.
        max_length: the most tokens, the answer included; None for the task's own limit.
        prefix: what the programs begin with, counted in their length; no answer token among them.

    Returns:
        Programs with their final answer token; [] if none of up to `max_length` tokens solves the
        stage.

    Raises:
        ValueError: not a stage of the task, one that cannot be enumerated, or `max_length` is not
            in 1..`task.max_actions`.
    """
    stage, length = _checked(task, stage, max_length)
    probes = _probes(task, stage, PROBES)
    while True:
        survivors = _solving_all(task, probes, length, prefix)
        counterexamples = [_first_unsolved(task, stage, program) for program in survivors]
        correct = [
            program
            for program, counterexample in zip(survivors, counterexamples, strict=True)
            if counterexample is None
        ]
        if correct or not survivors:
            return sorted(correct)
        found = [problem for problem in counterexamples if problem is not None]
        probes = type(probes).concatenate([probes, *found])


def _walk(
    task: Task, problems: Problems, length: int, prefix: Program = ()
) -> Iterator[list[_Behaviour]]:
    """The behaviours of 0, 1, ... `length` - 1 tokens behind the prefix, a list for each.

    What a shorter program does as well is kept: `problems` are a sample, and two programs of
    different length may be alike in it by chance, and the shorter one wrong elsewhere.
    """
    layer = [_Behaviour(_after(task, problems, prefix))]
    for depth in range(length):
        yield layer
        if depth + 1 < length:
            layer = _longer(task, problems, layer)


def _longer(task: Task, problems: Problems, layer: list[_Behaviour]) -> list[_Behaviour]:
    """The behaviours of all programs one token longer."""
    found: dict[bytes, _Behaviour] = {}
    for prefix in layer:
        for token in range(task.vocabulary.num_actions):
            if token == task.vocabulary.answer_token:
                continue
            actions = np.full(len(problems), token)
            registers = task.step(problems, prefix.registers, actions).registers
            key = _key(registers)
            found.setdefault(key, _Behaviour(registers)).parents.append((prefix, token))
    return list(found.values())


def _key(registers: Any) -> bytes:
    """The registers' content but for the step counter, which every token changes."""
    return b"".join(column.tobytes() for name, column in registers.columns() if name != "steps")


def _answered(task: Task, problems: Problems, registers: Any) -> np.ndarray:
    """(B,) bool: an answer now would be right."""
    return task.step(
        problems, registers, np.full(len(problems), task.vocabulary.answer_token)
    ).solved


def _play(task: Task, problems: Problems, program: Program) -> np.ndarray:
    """(B,) bool: the program solves the problem."""
    return _answered(task, problems, _after(task, problems, program[:-1]))


def _after(task: Task, problems: Problems, tokens: Program) -> Any:
    """The registers that the tokens leave."""
    registers = task.start(problems)
    for token in tokens:
        registers = task.step(problems, registers, np.full(len(problems), token)).registers
    return registers


def _solving_all(
    task: Task, problems: Problems, length: int, prefix: Program = ()
) -> list[Program]:
    """All shortest programs of up to `length` tokens that solve all of the given problems."""
    for layer in _walk(task, problems, length - len(prefix), prefix=prefix):
        programs = [
            (*prefix, *program, task.vocabulary.answer_token)
            for behaviour in layer
            if _answered(task, problems, behaviour.registers).all()
            for program in behaviour.programs()
        ]
        if programs:
            return programs
    return []


def _first_unsolved(task: Task, stage: int, program: Program) -> Problems | None:
    """One problem of the stage (as a batch of one) that the program does not solve, if any."""
    for chunk in _chunks(task, stage):
        unsolved = np.flatnonzero(~_play(task, chunk, program))
        if len(unsolved):
            return chunk.take(unsolved[:1])
    return None


def _chunks(task: Task, stage: int) -> Iterator[Problems]:
    total = _total(task, stage)
    for start in range(0, total, CHUNK):
        yield task.problems(stage, start, min(start + CHUNK, total))


def _probes(task: Task, stage: int, size: int) -> Problems:
    """Random problems; the seed is fixed, so that a search can be repeated exactly."""
    return task.sample(np.random.default_rng(0), np.full(size, stage, np.int8))


def _total(task: Task, stage: int) -> int:
    total = task.num_problems(stage)
    if total is None:
        raise ValueError(f"the problems of stage {stage} of task '{task.name}' cannot be listed")
    return total


def _checked(task: Task, stage: int, max_length: int | None) -> tuple[int, int]:
    """The stage, whose problems can be listed, and the most tokens."""
    length = task.max_actions if max_length is None else max_length
    if not 1 <= length <= task.max_actions:
        raise ValueError(
            f"max_length is {length}; an episode of task '{task.name}' has "
            f"1..{task.max_actions} actions"
        )
    stage = int(task.check_stage(stage))
    _total(task, stage)
    return stage, length
