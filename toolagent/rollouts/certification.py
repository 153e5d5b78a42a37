"""Exact accuracy: the greedy agent plays every problem of a finite stage.

A stage is *certified* if all of its problems were played and solved. Where the problems are too
many to be listed, the accuracy is *measured* on a fixed sample, the same for every agent.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.phases import timed
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.rollouts.programs import Programs, programs_of
from toolagent.tasks import Task

CHUNK = 2048  # problems of a part: more are no faster, and need more memory
_MOST_THREADS = 4  # parts played at once; they share one interpreter
SAMPLE_SIZE = 10_000  # problems of each split, where a stage has too many to be listed
# Larger than any run's seed (`config.settings.MAX_SEED`), so that no stream of a run is the
# sample's.
_SAMPLE_SEED = 0xCE271F1E

_Player = Callable[[Any], EpisodeBatch]  # plays problems greedily


@dataclass(frozen=True)
class StageAccuracy:
    """How many problems of a stage the greedy agent solves."""

    stage: int
    problems: int
    solved: int
    mean_return: float = 0.0  # the mean reward of an episode; never an accuracy
    solved_in: tuple[int, ...] = ()  # [n]: problems solved in n actions
    complete: bool = False  # these were all problems of the stage
    split: str | None = None  # the one that they were drawn from; None: whole, or as they came
    judged: dict[str, int] = field(default_factory=dict)  # name -> programs (`Task.judge`)
    # Counted apart: of a sample not in the figures above; where these are all problems of the
    # stage, a part of them.
    other_splits: tuple[StageAccuracy, ...] = ()
    programs: Programs | None = None  # what was written; `measure` counts them

    @property
    def accuracy(self) -> float:
        """The share of solved problems, 0..1."""
        return self.solved / self.problems

    @property
    def faultless(self) -> bool:
        """Every problem that was counted is solved."""
        return self.solved == self.problems

    @property
    def certified(self) -> bool:
        """Every problem was counted and every one is solved."""
        return self.complete and self.faultless

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageAccuracy:
        """The inverse of `dataclasses.asdict`."""
        programs = values["programs"]
        restored = {
            "programs": None if programs is None else Programs(**programs),
            "other_splits": tuple(cls.from_dict(other) for other in values["other_splits"]),
        }
        return cls(**{**values, **restored})

    def record(self) -> dict[str, Any]:
        """As JSON files show it: shares are 0..1, and each other split is a record in it."""
        result: dict[str, Any] = {
            "stage": self.stage,
            "problems": self.problems,
            "solved": self.solved,
            "accuracy": self.accuracy,
        }
        result |= {name: count / self.problems for name, count in self.judged.items()}
        if self.judged or self.split is not None:  # else given problems, or complete
            result["complete"] = self.complete
        for other in self.other_splits:
            hidden = ("stage", "complete")
            result[str(other.split)] = {
                name: value for name, value in other.record().items() if name not in hidden
            }
        return result


def certify(
    network: AgentNetwork,
    task: Task,
    stages: Iterable[int] | None = None,
    known: Mapping[int, StageAccuracy | None] | None = None,
) -> list[StageAccuracy]:
    """The given stages of the task; all by default.

    Args:
        network: the agent.
        task: the machine and its problems.
        stages: of the task.
        known: stage -> what `certify_if_solved` said of this network, which is not played again.
    """
    known = known or {}
    wanted = task.stages if stages is None else stages
    return [certify_stage(network, task, stage, known.get(stage)) for stage in wanted]


def certify_stage(
    network: AgentNetwork, task: Task, stage: int, known: StageAccuracy | None = None
) -> StageAccuracy:
    """Plays every problem of the stage greedily, or the fixed sample where they can't be listed.

    The figures of a listed stage are those of all its problems; `other_splits` tells of some of
    them apart: of all splits but the first, which is what training draws from. In a sample, the
    figures are those of the first split; `other_splits` holds the rest.
    """
    player = functools.partial(play, network, task)
    result = known or _certified(player, task, stage)
    if result.complete:
        return result
    others = [_sampled(player, task, stage, split) for split in task.splits_of(stage)[1:]]
    return replace(result, other_splits=tuple(others))


def certify_if_solved(
    network: AgentNetwork, task: Task, stage: int, failed: dict[int, Any] | None = None
) -> StageAccuracy | None:
    """As `certify_stage`, but None, and no further, where a problem is not solved; of a sample the
    first split only.

    Where the problems can't be listed that is no certificate: all of a sample are right.

    Args:
        network: the agent.
        task: the machine and its problems.
        stage: of the task.
        failed: stage -> problems of which the agent failed one when it was asked before; kept by
            the caller, changed here. They are played first: an agent in training often fails at
            the same ones some updates later, and asking it again and again then costs little.
    """
    failed = {} if failed is None else failed

    def player(problems: Any) -> EpisodeBatch:
        batch = play(network, task, problems)
        if not batch.solved.all():
            raise _NotSolved(problems)
        return batch

    try:
        if stage in failed:
            player(failed[stage])
        return _certified(player, task, stage)
    except _NotSolved as error:
        failed[stage] = error.problems
        return None


class _NotSolved(Exception):
    """Leaves the playing of a stage."""

    def __init__(self, problems: Any):
        super().__init__()
        self.problems = problems


def _certified(player: _Player, task: Task, stage: int) -> StageAccuracy:
    """A listed stage; of another one, the sample of its first split."""
    first, *others = task.splits_of(stage)
    if task.num_problems(stage) is None:
        return _sampled(player, task, stage, first)
    whole, apart = _Count(task), {split: _Count(task) for split in others}
    for problems, batch, judged in _played(player, task, _listed(task, stage)):
        whole.add(batch, judged)
        split_of = task.split_of(problems)
        for split, count in apart.items():
            rows = split_of == task.splits.index(split)
            count.add(batch.take(rows), {name: right[rows] for name, right in judged.items()})
    parts = tuple(
        count.result(stage, complete=True, split=split)
        for split, count in apart.items()
        if count.problems
    )
    return whole.result(stage, complete=True, other_splits=parts)


def _sampled(player: _Player, task: Task, stage: int, split: str) -> StageAccuracy:
    """The fixed sample of a split."""
    count = _Count(task)
    for _, batch, judged in _played(player, task, fixed_sample(task, stage, split)):
        count.add(batch, judged)
    return count.result(stage, split=split)


def fixed_sample(task: Task, stage: int, split: str) -> Iterator[Any]:
    """`SAMPLE_SIZE` problems in parts: always the same, whatever the seed of a run."""
    key = (stage, task.splits.index(split))
    rng = np.random.default_rng(np.random.SeedSequence(_SAMPLE_SEED, spawn_key=key))
    problems = task.sample(rng, np.full(SAMPLE_SIZE, stage, np.int8), split)
    for start in range(0, SAMPLE_SIZE, CHUNK):
        yield problems.take(np.arange(start, min(start + CHUNK, SAMPLE_SIZE)))


@timed("measure accuracy")
def measure(
    network: AgentNetwork,
    task: Task,
    stages: Sequence[int],
    rng: np.random.Generator,
    problems_per_stage: int,
) -> list[StageAccuracy]:
    """Greedy accuracy on fresh problems: an estimate, cheap enough for use during training.

    Args:
        network: the agent.
        task: the machine and its problems.
        stages: in ascending order.
        rng: a stream of its own, so that measuring changes nothing in training.
        problems_per_stage: how many are drawn, of the split that training draws from.
    """
    drawn = np.repeat(np.array(stages, np.int8), problems_per_stage)
    batch = play(network, task, task.sample(rng, drawn))
    result = []
    for stage in stages:
        rows = drawn == stage
        solved = int(batch.solved[rows].sum())
        mean_return = float(batch.returns[rows].mean())
        programs = programs_of(task, batch.actions[rows], batch.solved[rows], batch.lengths[rows])
        result.append(
            StageAccuracy(stage, problems_per_stage, solved, mean_return, programs=programs)
        )
    return result


def _listed(task: Task, stage: int) -> Iterator[Any]:
    """All problems of the stage, in parts."""
    total = task.num_problems(stage)
    assert total is not None
    for start in range(0, total, CHUNK):
        yield task.problems(stage, start, min(start + CHUNK, total))


def _played(
    player: _Player, task: Task, parts: Iterable[Any]
) -> Iterator[tuple[Any, EpisodeBatch, dict[str, np.ndarray]]]:
    """Parts of problems as they are played, several at once, and what is judged of the programs; in
    the order of the parts, of which a few are played ahead."""

    def work(problems: Any) -> tuple[Any, EpisodeBatch, dict[str, np.ndarray]]:
        batch = player(problems)
        return problems, batch, task.judge(problems, batch.actions, batch.lengths)

    free = len(os.sched_getaffinity(0)) // torch.get_num_threads()
    threads = max(1, min(free, _MOST_THREADS))
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for problems in parts:
                waiting.append(pool.submit(work, problems))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Count:
    """Counts what was solved and what was judged of episodes."""

    def __init__(self, task: Task):
        self.problems, self.returns = 0, 0.0
        self.solved_in = np.zeros(task.max_actions + 1, np.int64)
        self.judged = dict.fromkeys(task.judgements, 0)

    def add(self, batch: EpisodeBatch, judged: Mapping[str, np.ndarray]) -> None:
        """Counts some more."""
        self.problems += len(batch)
        self.returns += float(batch.returns.sum(dtype=np.float64))
        lengths = batch.lengths[batch.solved]
        self.solved_in += np.bincount(lengths, minlength=len(self.solved_in))
        for name, right in judged.items():
            self.judged[name] += int(right.sum())

    def result(self, stage: int, **known: Any) -> StageAccuracy:
        """What was counted, all of it of one stage."""
        return StageAccuracy(
            stage,
            problems=self.problems,
            solved=int(self.solved_in.sum()),
            mean_return=self.returns / self.problems,
            solved_in=tuple(self.solved_in.tolist()),
            judged=self.judged,
            **known,
        )
