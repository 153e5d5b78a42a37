"""Linear probes: what can be read off the hidden state, and what could be without any learning.

A probe is ridge regression from the hidden state to something that the agent does not observe. It
is fitted on some problems and scored on others, along greedy episodes and along episodes in which
tokens are replaced at random, so that the number of a step does not give the answer away. Beside it
stand the scores of three controls, fitted in the same way:

- *untrained*: the hidden states of the same network with random weights, fed the same tokens;
- *inputs*: the context and the previous token, one-hot, without any network;
- *shuffled*: the agent's hidden states with the labels of the fit in random order.

What is a number is scored by R^2 *within* each machine status (which registers are filled, how much
has been read): 0 is what one gets who knows the status and no number. What is a kind is scored by
the share of right guesses; shuffled labels then give the share of the most frequent kind.

A probe can find what the agent does not use; what it uses is seen by exchanging states (`memory`).

Sources: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes";
Hewitt & Liang 2019, "Designing and interpreting probes with control tasks".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.errors import UserError
from toolagent.explain.probe_data import Examples, expression_plans, wander
from toolagent.models.base import AgentNetwork
from toolagent.tasks import TASKS, Task
from toolagent.tasks.arithmetic import ArithmeticTask
from toolagent.tasks.expression import ExpressionTask

PROBLEMS = 3_000  # half of them to fit, half to score
PENALTIES = 10.0 ** np.arange(-2, 5)  # of the ridge, chosen on a quarter of the fit's rows
LEAST_ROWS = 200  # of a machine status that is scored
CLEARLY = 0.1  # more than a control by this much
WARNING = "a probe can find what the agent does not use; --memory shows what it uses"
NUMBER, KIND = "R^2", "share right"

Features = dict[str, np.ndarray]  # control: (N, F)


@dataclass(frozen=True)
class Probe:
    """How well something can be told, on problems that were not fitted."""

    name: str
    score: str  # `NUMBER` or `KIND`
    examples: int  # scored
    agent: float
    untrained: float
    inputs: float
    shuffled: float

    @property
    def beyond_controls(self) -> float:
        """The agent's score less the best control's."""
        return self.agent - max(self.untrained, self.inputs, self.shuffled)


@dataclass(frozen=True)
class ProbeReport:
    """All probes of an agent."""

    probes: list[Probe]
    notes: list[str]


def check_probes(task: Task) -> None:
    """Refuses tasks of which it is not known what their machine's registers hold.

    Raises:
        UserError: it is none of this package's.
    """
    if not isinstance(task, (ArithmeticTask, ExpressionTask)):
        known = ", ".join(
            one.name for one in TASKS.values() if issubclass(one, (ArithmeticTask, ExpressionTask))
        )
        raise UserError(
            f"--probes: not for task '{task.name}'; what is probed is known of {known} only"
        )


def run_probes(network: AgentNetwork, task: Task, seed: int = 0) -> ProbeReport:
    """Plays, fits and scores: some seconds.

    Args:
        network: on the CPU.
        task: what it plays.
        seed: of problems, replaced tokens and the untrained network.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x9B0BE,)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = type(network)(network.interface, network.options).eval()
    fit, test = (wander(network, task, rng, held_out, PROBLEMS // 2) for held_out in (False, True))
    probes = []
    if isinstance(task, ExpressionTask):
        plans = [expression_plans(task, rng, held_out, PROBLEMS // 2) for held_out in (False, True)]
        groups = [("stack depth", (fit, test))]
        groups += [(name, tuple(plans)) for name in ("place of the next operand", "next operator")]
    else:
        groups = [(name, (fit, test)) for name in fit.numbers] + [("machine status", (fit, test))]
    for name, (to_fit, to_test) in groups:
        score = _number if name in to_fit.numbers else _kind
        probes.append(score(name, network, untrained, to_fit, to_test, rng))
    notes = [_summary(probes)]
    if not isinstance(task, ExpressionTask):
        notes.append(_order(network, task, fit))
    notes.append(WARNING)
    return ProbeReport(probes, notes)


def _summary(probes: list[Probe]) -> str:
    held = [probe.name for probe in probes if probe.beyond_controls >= CLEARLY]
    other = [probe.name for probe in probes if probe.beyond_controls < CLEARLY]
    parts = [f"clearly more than every control: {', '.join(held) or 'none'}"]
    if other:
        parts.append(f"no more than a control: {', '.join(other)}")
    return "; ".join(parts)


def _order(network: AgentNetwork, task: Task, examples: Examples) -> str:
    """Whether the agent tells problems apart that have the same digits in another order."""
    problems, actions = examples.problems, examples.actions
    turned = problems.take(np.arange(len(problems)))
    turned.context = problems.context.copy()
    for row, stage in enumerate(problems.stage):
        end = len(task.shown_columns(stage))
        turned.context[row, :end] = problems.context[row, :end][::-1]
    states = network.hidden_states(problems.context, problems.stage, actions, examples.response)
    others = network.hidden_states(turned.context, turned.stage, actions, examples.response)
    largest = np.abs(states - others)[examples.live].max()
    return (
        "with the digits in reverse order and the same tokens, the hidden state differs by at most "
        f"{largest:.1g} (it is {np.abs(states[examples.live]).mean():.2f} in the mean)"
    )


def _number(
    name: str,
    network: AgentNetwork,
    untrained: AgentNetwork,
    fit: Examples,
    test: Examples,
    rng: np.random.Generator,
) -> Probe:
    """R^2 within each machine status, pooled over them."""
    parts = []
    for examples in (fit, test):
        values, known = examples.numbers[name]
        rows = known & examples.live
        features = _features(network, untrained, examples, rows)
        parts.append((features, values[rows].astype(float), examples.status[rows]))
    (fit_x, fit_y, fit_status), (test_x, test_y, test_status) = parts
    wrong, spread, scored = dict.fromkeys([*fit_x, "shuffled"], 0.0), 0.0, 0
    for status in np.unique(fit_status):
        mine, theirs = fit_status == status, test_status == status
        if mine.sum() < LEAST_ROWS or theirs.sum() < LEAST_ROWS:
            continue
        truth = test_y[theirs]
        spread += float(((truth - fit_y[mine].mean()) ** 2).sum())
        scored += len(truth)
        for control in wrong:
            x, labels = ("agent" if control == "shuffled" else control), fit_y[mine]
            if control == "shuffled":
                labels = rng.permutation(labels)
            guess = ridge(fit_x[x][mine], labels[:, None], test_x[x][theirs])[:, 0]
            wrong[control] += float(((truth - guess) ** 2).sum())
    scores = {control: 1 - error / spread if spread else 0.0 for control, error in wrong.items()}
    return Probe(name, NUMBER, scored, **scores)


def _kind(
    name: str,
    network: AgentNetwork,
    untrained: AgentNetwork,
    fit: Examples,
    test: Examples,
    rng: np.random.Generator,
) -> Probe:
    """The share of right guesses."""
    parts = []
    for examples in (fit, test):
        values, known = examples.kinds[name]
        rows = known & examples.live
        parts.append((_features(network, untrained, examples, rows), values[rows]))
    (fit_x, fit_y), (test_x, test_y) = parts
    kinds, labels = np.unique(fit_y, return_inverse=True)
    scores = {}
    for control in (*fit_x, "shuffled"):
        x = "agent" if control == "shuffled" else control
        shown = rng.permutation(labels) if control == "shuffled" else labels
        guess = ridge(fit_x[x], np.eye(len(kinds))[shown], test_x[x]).argmax(1)
        scores[control] = float((kinds[guess] == test_y).mean())
    return Probe(name, KIND, len(test_y), **scores)


def _features(
    network: AgentNetwork, untrained: AgentNetwork, examples: Examples, rows: np.ndarray
) -> Features:
    """(N, F) of the chosen steps (B, T) bool, for the agent and for the controls with inputs."""
    problems, actions = examples.problems, examples.actions

    def states(of: AgentNetwork) -> np.ndarray:
        # Without the places of an encoder-decoder, which count tokens whatever it has learned.
        hidden = of.hidden_states(problems.context, problems.stage, actions, examples.response)
        width = getattr(network.options, "embedding_size", None)  # None: all
        return hidden[rows][:, :width]

    context = np.eye(network.interface.context_vocabulary)[problems.context].reshape(
        len(problems), -1
    )
    previous = np.eye(network.interface.vocabulary.num_previous_tokens)[
        np.concatenate([np.full_like(actions[:, :1], network.start_token), actions[:, :-1]], 1)
    ]
    problem = np.nonzero(rows)[0]
    return {
        "agent": states(network),
        "untrained": states(untrained),
        "inputs": np.concatenate([context[problem], previous[rows]], 1),
    }


def ridge(fit_x: np.ndarray, fit_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predictions (M, K) of a ridge regression with intercept.

    argmin_W |Y - XW|^2 + penalty |W|^2, X standardised; the penalty is the best one on the last
    quarter of the rows to fit (they come in the order of their problems).

    Args:
        fit_x: (N, F).
        fit_y: (N, K).
        test_x: (M, F).
    """
    mean, scale = fit_x.mean(0), fit_x.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    x, new = (fit_x - mean) / scale, (test_x - mean) / scale

    def solver(x: np.ndarray, y: np.ndarray) -> Callable[[float], Any]:
        level = y.mean(0)
        values, vectors = np.linalg.eigh(x.T @ x)
        projected = vectors.T @ (x.T @ (y - level))
        return lambda penalty: (
            vectors @ (projected / (np.maximum(values, 0) + penalty)[:, None]),
            level,
        )

    cut = len(x) * 3 // 4
    early = solver(x[:cut], fit_y[:cut])

    def error(penalty: float) -> float:
        weights, level = early(penalty)
        return float(((fit_y[cut:] - level - x[cut:] @ weights) ** 2).sum())

    weights, level = solver(x, fit_y)(min(PENALTIES, key=error))
    return new @ weights + level
