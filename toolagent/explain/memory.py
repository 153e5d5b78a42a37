"""Where the memory is: two experiments on the playing agent.

**The exchange.** Two greedy episodes, a and b, each on its own machine. Before one step of each,
the network's state h (or a part of it) is replaced by that of the other episode at its point:

    h_a[part] <- h_b[part]  before step t_a,    h_b[part] <- h_a[part]  before step t_b

and both go on, each with its own context, machine and registers. The *state's origin* of episode a
is b. With y_a and y_b the right answers of the two problems,

    follows_state   = share of the episodes that answer as the state's origin is asked:   a says y_b
    follows_machine = share of the episodes that answer as their own machine is asked:    a says y_a
    neither         = the rest, also those that do not answer
    control         = share of the episodes that are right if each is given its own state

Which pairs, and where:

- Where tools answer and the task has `siblings`, both episodes have the same context, and all that
  it does not show is different. Let s be the last action whose answer depends on which of the two
  problems it is asked of (the episode's own actions are run on the other problem to see that).
  The answer is observed at step s+1, and at no other; there the agent writes one token of its own.
  The exchange is before the next one: t = s+2. A pair counts only if that one token is the same in
  both episodes: then neither the context nor the previous token nor, since s, the machine has
  anything of the answer, and only the state can have it.
- Elsewhere the two problems are of one structure with other numbers (`variants`), and t is the
  middle of the program. The context still shows the numbers and the registers hold results, so
  following the machine is what a network does that has none of them in its state.

A pair counts only if both undisturbed episodes are right, both have the point, and y_a != y_b.

**The lie.** What the agent observes of the first answer that may be lied about (`Task.lies`; for
calls, the first calculation) is off by one. `follows_lie` is the share of the episodes that answer
what is right if the lie is true, `follows_truth` of those that answer what is right; `control`
tells the truth by the same means. Only episodes count that are right undisturbed, and in which the
two answers differ.

After: Vig et al. 2020, "Investigating gender bias in language models using causal mediation
analysis"; Geiger et al. 2021, "Causal abstractions of neural networks" (interchange interventions).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.errors import UserError
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import GivenTokens, Intervention, PlayDetails, play
from toolagent.rollouts.trajectory import response_text
from toolagent.tasks import Task

PAIRS = 500  # drawn for each stage
ALL = "all"  # the whole state, as a part
CLEARLY = 0.9  # of the episodes, for a statement in words


@dataclass(frozen=True)
class Exchange:
    """How many episodes of a stage answer what, with one part of the state exchanged."""

    stage: int | None  # None: all stages together
    part: str
    drawn: int  # pairs
    pairs: int  # that count; each is two episodes
    state: int  # episodes that follow the state
    machine: int  # episodes that follow the machine
    controls: int  # episodes that are right with their own state

    def record(self) -> dict[str, Any]:
        """As JSON: shares are 0..1, None where no pair counts."""
        episodes = 2 * self.pairs
        neither = episodes - self.state - self.machine
        return {
            "drawn": self.drawn,
            "pairs": self.pairs,
            "follows_state": _share(self.state, episodes),
            "follows_machine": _share(self.machine, episodes),
            "neither": _share(neither, episodes),
            "control": _share(self.controls, episodes),
        }


@dataclass(frozen=True)
class Lying:
    """How many episodes of a stage answer what, if they are lied to."""

    stage: int | None  # None: all stages together
    drawn: int  # episodes
    episodes: int  # that count
    lie: int  # follow the lie
    truth: int  # follow the truth
    controls: int  # are right if told the truth

    def record(self) -> dict[str, Any]:
        """As JSON: shares are 0..1, None where no episode counts."""
        return {
            "drawn": self.drawn,
            "episodes": self.episodes,
            "follows_lie": _share(self.lie, self.episodes),
            "follows_truth": _share(self.truth, self.episodes),
            "neither": _share(self.episodes - self.lie - self.truth, self.episodes),
            "control": _share(self.controls, self.episodes),
        }


@dataclass(frozen=True)
class MemoryReport:
    """Both experiments in each stage."""

    hides: bool  # the pairs are siblings, else variants
    parts: tuple[str, ...]  # `ALL` first
    exchanges: list[Exchange]
    lies: list[Lying]  # of stages in which an episode can be lied to
    example: str | None  # of a pair that counts: what is written before the exchange

    def of_part(self, part: str, stage: int | None = None) -> Exchange:
        """The exchange of one part in one stage; by default in all together."""
        mine = [one for one in self.exchanges if one.part == part and stage in (None, one.stage)]
        names = ("drawn", "pairs", "state", "machine", "controls")
        return Exchange(stage, part, *(sum(getattr(one, name) for one in mine) for name in names))

    def lying(self) -> Lying | None:
        """The lies of all stages together; None where nobody can be lied to."""
        if not self.lies:
            return None
        names = ("drawn", "episodes", "lie", "truth", "controls")
        return Lying(None, *(sum(getattr(one, name) for one in self.lies) for name in names))

    @property
    def notes(self) -> list[str]:
        """What was exchanged, what the result means, an example, and whether nobody lied."""
        return [_WHAT[self.hides], _meaning(self), *_others(self)]

    def record(self) -> dict[str, Any]:
        """As JSON: by part, and in it by stage; the lie apart."""
        memory = {
            part: self.of_part(part).record()
            | {
                "stages": {
                    str(one.stage): one.record() for one in self.exchanges if one.part == part
                }
            }
            for part in self.parts
        }
        lying = self.lying()
        lie = None if lying is None else lying.record()
        if lie is not None:
            lie["stages"] = {str(one.stage): one.record() for one in self.lies}
        return {"memory": memory, "lie": lie, "memory_notes": self.notes}


def check_memory(task: Task) -> None:
    """Refuses tasks that do not tell what was answered.

    Raises:
        UserError: the task does not define `accumulator`.
    """
    if not task.defines("accumulator"):
        raise UserError(
            f"--memory: not for task '{task.name}': whose answer it is can't be told where the "
            "task does not define `accumulator`, what an episode answers with"
        )


def run_memory(
    network: AgentNetwork,
    task: Task,
    stages: Iterable[int] | None = None,
    seed: int = 0,
    drawn: int = PAIRS,
) -> MemoryReport:
    """Plays both experiments: some seconds, the same result every time.

    Args:
        network: on the CPU.
        task: what it plays.
        stages: of the task; all by default.
        seed: of the problems.
        drawn: pairs, for each stage.
    """
    parts = parts_of(network)
    exchanges: list[Exchange] = []
    lies: list[Lying] = []
    example = None
    for stage in task.stages if stages is None else stages:
        key = (0x3E304E, stage)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        own = task.sample(rng, np.full(drawn, stage, np.int8))
        pairs = draw_pairs(network, task, own, rng)
        exchanges += exchange(network, task, stage, pairs, parts)
        if pairs.example is not None:
            example = f"stage {stage}: {pairs.example}"
        lying = lie(network, task, stage, pairs)
        if lying is not None:
            lies.append(lying)
    return MemoryReport(_hides(task), tuple(parts), exchanges, lies, example)


def parts_of(network: AgentNetwork) -> dict[str, slice]:
    """What is exchanged: the whole state first, then its parts, if it has several."""
    whole = {ALL: slice(0, network.hidden_size)}
    parts = dict(network.state_parts)
    return whole | parts if len(parts) > 1 else whole


# The exchange --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """2P undisturbed episodes; episode i and episode i+P (and the other way round) are a pair."""

    problems: Any  # (2P,)
    batch: EpisodeBatch
    targets: np.ndarray  # (2P,) int64: the right answers
    points: np.ndarray  # (2P,) int64: t, the step before which the state is exchanged
    counted: np.ndarray  # (2P,) bool: the pair counts
    example: str | None  # what the first that counts has written up to its point

    @property
    def other(self) -> np.ndarray:
        """(2P,) int64: each episode's partner."""
        return _other(len(self.targets))


def _other(episodes: int) -> np.ndarray:
    return np.roll(np.arange(episodes), episodes // 2)


def _hides(task: Task) -> bool:
    """Whether pairs differ only in what the context does not show."""
    return task.response_length > 0 and task.defines("siblings")


def draw_pairs(network: AgentNetwork, task: Task, own: Any, rng: np.random.Generator) -> Pairs:
    """Draws a partner for each problem, plays all undisturbed, says which count and where."""
    hides = _hides(task)
    others = task.siblings(own, rng) if hides else task.variants(own, rng)
    problems = type(own).concatenate([own, others])
    batch = play(network, task, problems)
    targets, other, rows = task.target(problems), _other(len(problems)), np.arange(len(problems))
    if hides:
        points = after_the_last_telling_answer(network, task, problems, batch)
        previous = batch.actions[rows, np.maximum(points - 1, 0)]
        alike = previous == previous[other]
    else:
        points = batch.lengths.astype(np.int64) // 2
        alike = np.ones(len(points), bool)
    usable = batch.solved & (points > 0) & (points < batch.lengths)
    counted = usable & usable[other] & alike & (targets != targets[other])
    example = None
    if counted.any():
        row = int(counted.argmax())
        example = _written(task, problems, batch, row, int(points[row]))
    return Pairs(problems, batch, targets, points, counted, example)


def after_the_last_telling_answer(
    network: AgentNetwork, task: Task, problems: Any, batch: EpisodeBatch
) -> np.ndarray:
    """(2P,) int64: s+2, where s is the last action that the partner's problem would have answered
    otherwise; 0 where there is none."""
    given = GivenTokens(batch.actions)
    crossed = play(network, task, problems.take(_other(len(batch))), chooser=given)
    steps = np.arange(batch.actions.shape[1])
    happened = steps < np.minimum(batch.lengths, crossed.lengths)[:, None]
    differs = (batch.response != crossed.response).any(2) & happened
    last = np.where(differs, steps, -2).max(1)
    return last.astype(np.int64) + 2


class StatesAt(Intervention):
    """Changes nothing; notes each episode's state before one of its steps.

    Args:
        points: (B,) the steps.
        width: S.
    """

    def __init__(self, points: np.ndarray, width: int):
        self._points = torch.from_numpy(points)
        self.states = torch.zeros(len(points), width)

    def hidden(self, hidden: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """See `Intervention`."""
        now = self._points[rows] == step
        self.states[rows[now]] = hidden[now]
        return hidden


class StatesGiven(Intervention):
    """Replaces a part of each episode's state before one of its steps.

    Args:
        points: (B,) the steps.
        states: (B, S), the ones that are given.
        part: of the S.
    """

    def __init__(self, points: np.ndarray, states: torch.Tensor, part: slice):
        self._points, self._states, self._part = torch.from_numpy(points), states, part

    def hidden(self, hidden: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """See `Intervention`."""
        now = self._points[rows] == step
        changed = hidden.clone()
        changed[now, self._part] = self._states[rows[now], self._part]
        return changed


def exchange(
    network: AgentNetwork, task: Task, stage: int, pairs: Pairs, parts: dict[str, slice]
) -> list[Exchange]:
    """Exchanges each part of the state in the pairs that count."""
    rows = np.flatnonzero(pairs.counted)  # both of a pair, so its halves are partners again
    drawn, count = len(pairs.problems) // 2, len(rows) // 2
    if not count:
        return [Exchange(stage, part, drawn, 0, 0, 0, 0) for part in parts]
    problems, points, own = pairs.problems.take(rows), pairs.points[rows], pairs.targets[rows]
    other = _other(len(rows))
    noted = StatesAt(points, network.hidden_size)
    play(network, task, problems, intervention=noted)

    def answers_with(states: torch.Tensor, part: slice) -> tuple[np.ndarray, np.ndarray]:
        return played_answers(network, task, problems, StatesGiven(points, states, part))

    results = []
    for name, part in parts.items():
        answers, answered = answers_with(noted.states[other], part)
        undisturbed, spoke = answers_with(noted.states, part)
        results.append(
            Exchange(
                stage,
                name,
                drawn,
                count,
                state=int((answered & (answers == own[other])).sum()),
                machine=int((answered & (answers == own)).sum()),
                controls=int((spoke & (undisturbed == own)).sum()),
            )
        )
    return results


def played_answers(
    network: AgentNetwork, task: Task, problems: Any, intervention: Intervention
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) int64 what the disturbed agent answers, and (B,) bool where it does."""
    details = PlayDetails.empty(len(problems), task.max_actions)
    play(network, task, problems, observer=details, intervention=intervention)
    return details.answers, details.answered


# The lie -------------------------------------------------------------------------------------


class Told(Intervention):
    """Replaces what is observed of the answer to one of each episode's actions.

    Args:
        steps: (B,) the actions; below 0: none.
        responses: (B, R) what is observed.
    """

    def __init__(self, steps: np.ndarray, responses: np.ndarray):
        self._steps = torch.from_numpy(steps.astype(np.int64))
        self._responses = torch.from_numpy(responses)

    def response(self, response: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """See `Intervention`."""
        now = (self._steps[rows] == step - 1) & (self._steps[rows] >= 0)
        return torch.where(now.unsqueeze(1), self._responses[rows].to(response.dtype), response)


def lie(network: AgentNetwork, task: Task, stage: int, pairs: Pairs) -> Lying | None:
    """Lies to every episode that can be lied to; None where there is none."""
    batch = pairs.batch
    lies = task.lies(pairs.problems, batch.actions, batch.lengths, batch.response)
    if lies is None:
        return None
    usable = batch.solved & (lies.step >= 0) & (lies.answer != pairs.targets)
    rows = np.flatnonzero(usable)
    if not len(rows):
        return None
    problems, lies, truth = pairs.problems.take(rows), lies.take(rows), pairs.targets[rows]
    answers, answered = played_answers(network, task, problems, Told(lies.step, lies.response))
    told = batch.response[rows, lies.step]
    undisturbed, spoke = played_answers(network, task, problems, Told(lies.step, told))
    return Lying(
        stage,
        drawn=len(batch),
        episodes=len(rows),
        lie=int((answered & (answers == lies.answer)).sum()),
        truth=int((answered & (answers == truth)).sum()),
        controls=int((spoke & (undisturbed == truth)).sum()),
    )


# In words ------------------------------------------------------------------------------------


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _written(task: Task, problems: Any, batch: EpisodeBatch, row: int, point: int) -> str:
    """'B+3 = 86+3 = 89: GET B = (8 6) ADD, exchanged before step 5'."""
    parts = []
    for token, response in zip(batch.actions[row, :point], batch.response[row], strict=False):
        told = response_text(task.vocabulary, response.tolist())
        name = task.vocabulary.names[token]
        parts.append(name if told == "-" else f"{name} ({told})")
    return f"{task.describe(problems, row)}: {' '.join(parts)}, exchanged before step {point + 1}"


# By whether pairs differ in what the context does not show only.
_WHAT = {
    True: (
        "exchanged: the inner states of two episodes with the same context and other hidden data, "
        "one own token after the last answer that depends on them was seen"
    ),
    False: (
        "exchanged: the inner states of two problems of one structure with other numbers, in the "
        "middle of the program; context and registers stay with the machine"
    ),
}
_FOLLOWS_STATE = {
    True: "what was told is remembered in the network's state",
    False: "what is written next comes from numbers in the network's state",
}
_FOLLOWS_MACHINE = {
    True: (
        "the answer does not come from the network's state: the agent asked again, or the machine "
        "holds what matters"
    ),
    False: (
        "the answer's numbers come from the context and the machine's registers, not from the "
        "network's state"
    ),
}


def _meaning(report: MemoryReport) -> str:
    whole, parts = report.of_part(ALL), [report.of_part(part) for part in report.parts[1:]]
    if not whole.pairs:
        return "no pair counts: nothing that matters is hidden here, or the agent does not solve it"
    if whole.machine >= CLEARLY * 2 * whole.pairs:
        return _FOLLOWS_MACHINE[report.hides]
    if whole.state < CLEARLY * 2 * whole.pairs:
        return "neither the state nor the machine alone decides the answer"
    carrying = [one.part for one in parts if one.state >= CLEARLY * 2 * one.pairs]
    unused = [one.part for one in parts if one.machine >= CLEARLY * 2 * one.pairs]
    told = [_FOLLOWS_STATE[report.hides]]
    if carrying:
        told.append(f"alone it is carried by: {', '.join(carrying)}")
    if unused:
        told.append(f"not used for it: {', '.join(unused)}")
    return "; ".join(told)


def _others(report: MemoryReport) -> list[str]:
    told = [] if report.example is None else [f"for example, {report.example}"]
    return told if report.lies else [*told, "no lie: no tool calculates something and answers it"]
