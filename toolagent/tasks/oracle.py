"""The exact oracle: what programs of tool tokens can do, found by exhaustive search.

A *program* is a sequence of tokens that ends with `ANS` and is played blindly, the same for every
problem. The search knows nothing of the machines: it only calls `start` and `step`. Programs that
leave the same registers in all problems are one behaviour, and of those there are few: a few
hundred where there are 18**6 programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolagent.tasks.base import Problems, Task
from toolagent.vocabulary import ANS, NUM_TOKENS

Program = tuple[int, ...]

PROBES = 256  # problems that tell programs apart before the survivors see all of them
RACE_PROBES = 4096  # more, where a share of problems is estimated on them
RACE_FAILURE = 1e-9  # probability that the race in `best_program` drops the best behaviour
CHUNK = 8192  # problems stepped at once: more are no faster, and take more memory

_TOOLS = [token for token in range(NUM_TOKENS) if token != ANS]


@dataclass
class _Behaviour:
    """All programs of one length that leave the same registers in every problem looked at."""

    registers: Any
    parents: list[tuple[_Behaviour, int]] = field(default_factory=list)  # (prefix, last token)

    def programs(self) -> Iterator[Program]:
        """Every one of its programs, without `ANS`."""
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
        max_length: the most tokens, `ANS` included; None for the task's own limit.
        prefix: what the programs begin with, counted in their length; it has no `ANS`.

    Returns:
        Programs with their final `ANS`; [] if none of up to `max_length` tokens solves the stage.

    Raises:
        ValueError: not a stage of the task, one that cannot be enumerated, or `max_length` is not
            in 1..`task.max_actions`.
    """
    stage, length, _ = _checked(task, stage, max_length)
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


def best_program(task: Task, stage: int, max_length: int | None = None) -> tuple[Program, float]:
    """The program that solves the largest share of the stage's problems, and that share.

    Behaviours are told apart, and their shares estimated, on n probe problems. They are then
    counted on all problems in descending order of the estimate, until an estimate p is so low
    that the best exact share s cannot be reached: p + m < s, where by Hoeffding's inequality
    m = sqrt(ln(behaviours / 1e-9) / 2n) errs with probability 1e-9. In a stage of up to n
    problems the probes are all of them. The share returned is exact, counted on every problem;
    of equal shares the shorter program wins, then the one with the lower tokens.

    Raises:
        ValueError: as for `shortest_programs`.
    """
    stage, length, total = _checked(task, stage, max_length)
    probes = (
        task.problems(stage, 0, total)
        if total <= RACE_PROBES
        else _probes(task, stage, RACE_PROBES)
    )
    entries: list[tuple[float, Program]] = []
    for layer in _walk(task, probes, length, prune=True):
        for behaviour in layer:
            share = float(_answered(task, probes, behaviour.registers).mean())
            entries.append((share, (*min(behaviour.programs()), ANS)))
    entries.sort(key=lambda entry: (-entry[0], len(entry[1]), entry[1]))

    margin = np.sqrt(np.log(len(entries) / RACE_FAILURE) / (2 * len(probes)))
    best: tuple[float, int, Program] | None = None  # (-share, length, program)
    for estimate, program in entries:
        if best is not None and estimate + margin < -best[0]:
            break
        solved = sum(int(_play(task, chunk, program).sum()) for chunk in _chunks(task, stage))
        contender = (-solved / total, len(program), program)
        best = contender if best is None else min(best, contender)
    assert best is not None  # the empty program with ANS is always an entry
    return best[2], -best[0]


def shortest_lengths(task: Task, problems: Problems) -> np.ndarray:
    """The least number of actions, `ANS` included, that solves each problem on its own.

    Coincidences count: 0*7+0 is solved by `MUL ANS`. It is a lower bound on what an agent that
    reads can do, where `shortest_programs` is what one that does not read can do.

    Args:
        task: any task.
        problems: (B,) problems of that task.

    Returns:
        (B,) int8: 0 where no program of up to `task.max_actions` tokens solves the problem.
    """
    lengths = np.zeros(len(problems), np.int8)
    for start in range(0, len(problems), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(problems)))
        unsolved = problems.take(rows)
        layer = [_Behaviour(task.start(unsolved))]
        earlier: list[_Behaviour] = []
        for length in range(1, task.max_actions + 1):
            solved = np.zeros(len(rows), bool)
            for behaviour in layer:
                solved |= _answered(task, unsolved, behaviour.registers)
            lengths[rows[solved]] = length
            going = np.flatnonzero(~solved)
            if not len(going) or length == task.max_actions:
                break
            # What is solved leaves, so the later and larger layers are played on few problems.
            rows, unsolved = rows[going], unsolved.take(going)
            for behaviour in (*earlier, *layer):
                behaviour.registers = behaviour.registers.take(going)
            earlier += layer
            layer = _longer(task, unsolved, layer, {_key(b.registers) for b in earlier})
    return lengths


def _walk(
    task: Task, problems: Problems, length: int, prune: bool, prefix: Program = ()
) -> Iterator[list[_Behaviour]]:
    """The behaviours of 0, 1, ... `length` - 1 tokens behind the prefix, a list for each.

    `prune` leaves out what a shorter program does as well. That is exact only where `problems` are
    all that matters: on probes, two programs of different length may be alike by chance, and the
    shorter one wrong elsewhere.
    """
    layer = [_Behaviour(_after(task, problems, prefix))]
    seen: set[bytes] = set()
    for depth in range(length):
        yield layer
        if depth + 1 < length:
            if prune:
                seen.update(_key(behaviour.registers) for behaviour in layer)
            layer = _longer(task, problems, layer, seen)


def _longer(
    task: Task, problems: Problems, layer: list[_Behaviour], known: set[bytes]
) -> list[_Behaviour]:
    """The behaviours of all programs one token longer, without the known ones."""
    found: dict[bytes, _Behaviour] = {}
    for prefix in layer:
        for token in _TOOLS:
            actions = np.full(len(problems), token)
            registers = task.step(problems, prefix.registers, actions).registers
            key = _key(registers)
            if key not in known:
                found.setdefault(key, _Behaviour(registers)).parents.append((prefix, token))
    return list(found.values())


def _key(registers: Any) -> bytes:
    """The registers' content but for the step counter, which every token changes."""
    return b"".join(column.tobytes() for name, column in registers.columns() if name != "steps")


def _answered(task: Task, problems: Problems, registers: Any) -> np.ndarray:
    """(B,) bool: `ANS` now would be right."""
    return task.step(problems, registers, np.full(len(problems), ANS)).solved


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
    for layer in _walk(task, problems, length - len(prefix), prune=False, prefix=prefix):
        programs = [
            (*prefix, *program, ANS)
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
    for start in range(0, _total(task, stage), CHUNK):
        yield task.problems(stage, start, start + CHUNK)


def _probes(task: Task, stage: int, size: int) -> Problems:
    """Random problems; the seed is fixed, so that a search can be repeated exactly."""
    return task.sample(np.random.default_rng(0), np.full(size, stage, np.int8))


def _total(task: Task, stage: int) -> int:
    total = task.num_problems(stage)
    if total is None:
        raise ValueError(f"the problems of stage {stage} of task '{task.name}' cannot be listed")
    return total


def _checked(task: Task, stage: int, max_length: int | None) -> tuple[int, int, int]:
    """The stage, the most tokens and the number of the stage's problems."""
    length = task.max_actions if max_length is None else max_length
    if not 1 <= length <= task.max_actions:
        raise ValueError(
            f"max_length is {length}; an episode of task '{task.name}' has "
            f"1..{task.max_actions} actions"
        )
    stage = int(task.check_stage(stage))
    return stage, length, _total(task, stage)
