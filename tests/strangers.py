"""Tasks and a network as other people write them: 'strangers:Bells' is as little as training
needs, 'strangers:Lifts' has all that is shown, 'strangers:Questions' has tools that answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.models.base import AgentNetwork, InitialState
from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import Problems, Registers, Task, Transition, Vocabulary, task_class

REFERENCE = "strangers:"


@dataclass
class Floors(Problems):
    """A floor to be rung at."""

    floor: np.ndarray


@dataclass
class Elevator(Registers):
    """Where it is."""

    at: np.ndarray


class Bells(Task):
    """Ring the bell on the right floor; the machine knows the floor, the context only hints."""

    name = "bells"
    vocabulary = Vocabulary(
        actions=("UP", "LIFT", "RING"),
        observed=("START", "NONE", *(f"F{n}" for n in range(10))),
        start="START",
        pad="NONE",
        answer="RING",
    )
    num_stages = 2
    context_length = 2
    max_actions = 6

    def sample(self, rng, stage, split="all"):
        stage = np.asarray(stage, np.int8)
        return self.floors(stage, rng.integers(0, np.where(stage == 0, 4, 10)))

    def floors(self, stage, floor):
        """The problems of these floors."""
        context = np.full((len(stage), 2), self.vocabulary.pad_token, np.int8)
        context[:, 0] = self.vocabulary.token("F0") + floor
        return Floors(stage, context, floor)

    def start(self, problems):
        return Elevator(np.zeros(len(problems), np.int8), np.zeros(len(problems), np.int64))

    def step(self, problems, registers, actions):
        steps = registers.steps + np.int8(1)
        at = registers.at + (actions == 0) + 3 * (actions == 1)
        terminated = actions == self.vocabulary.answer_token
        solved = terminated & (at == problems.floor)
        return Transition(
            registers=Elevator(steps, at),
            rewards=0.5 * solved,
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=solved,
            response=self.answers(at),
        )

    def answers(self, at):
        """What the tools answer: nothing."""

    def target(self, problems):
        return problems.floor


class Lifts(Bells):
    """The same with all that is shown, and with more actions than a terminal has room for."""

    name = "lifts"
    vocabulary = Vocabulary(
        actions=("UP", "LIFT", *(f"CALL_{n}" for n in range(30)), "RING"),
        observed=("START", "NONE", *(f"F{n}" for n in range(10))),
        start="START",
        pad="NONE",
        answer="RING",
    )
    formulas = ("below the fourth floor", "anywhere")
    problem_columns = ("floor",)
    posed_by = ("goal_floor",)

    def pose(self, stage, **given):
        floor = np.asarray(given["goal_floor"]).astype(int)
        if ((floor < 0) | (floor > 9)).any():
            raise ValueError(f"floors are 0..9, not {floor.tolist()}")
        return self.floors(np.full(len(floor), self.check_stage(stage)), floor)

    def read(self, context):
        return {"goal_floor": context[:, 0] - self.vocabulary.token("F0")}

    def num_problems(self, stage):
        return 4 if stage == 0 else 10

    def problems(self, stage, start, stop):
        floor = np.arange(start, min(stop, self.num_problems(stage)))
        return self.floors(np.full(len(floor), stage, np.int8), floor)

    def accumulator(self, registers):
        return registers.at, np.ones(len(registers), bool)

    def show(self, registers, row):
        return {"at": registers.at[row], "door": "open" if registers.at[row] else None}

    def plan(self, problems, row):
        return self.continuation(problems, row, ())

    def continuation(self, problems, row, tokens):
        left = int(problems.floor[row]) - sum({0: 1, 1: 3}.get(token, 0) for token in tokens)
        written = (1,) * (left // 3) + (0,) * (left % 3) + (self.vocabulary.answer_token,)
        return written if left >= 0 and len(tokens) + len(written) <= self.max_actions else None


class Digits(Bells):
    """Floors that are digits: the last tokens, some of them actions that do nothing."""

    name = "digits"
    vocabulary = Vocabulary(
        actions=("UP", "LIFT", "RING", "0", "1", "2", "3"),
        observed=("4", "5", "6", "7", "8", "9", "NONE"),
        start="NONE",
        pad="NONE",
        answer="RING",
    )

    def floors(self, stage, floor):
        context = np.full((len(stage), 2), self.vocabulary.pad_token, np.int8)
        context[:, 0] = self.vocabulary.token("0") + floor
        return Floors(stage, context, floor)


class Questions(Bells):
    """The elevator says on which floor it is."""

    name = "questions"
    response_length = 2

    def answers(self, at):
        response = self.no_response(len(at))
        response[:, 0] = self.vocabulary.token("F0") + np.minimum(at, 9)
        return response


class Recurrent(AgentNetwork):
    """A network of another module: as little as there is to write."""

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        self.embedding = torch.nn.Embedding(interface.context_vocabulary, 8)
        self.gru = torch.nn.GRU(8, 8, batch_first=True)
        self.heads = torch.nn.Linear(8, interface.num_actions + 1)

    def begin(self, context, stage):
        return InitialState((), torch.tanh(self.embedding(context.int()).mean(1)))

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        outputs, last = self.gru(self.embedding(previous_tokens.int()), hidden.unsqueeze(0))
        heads = self.heads(outputs)
        return heads[..., :-1], heads[..., -1], last.squeeze(0)


def save_untrained(folder, task, network=StageGRUNetwork, seed=0):
    """A checkpoint of one of these tasks, such as 'Bells'."""
    reference = REFERENCE + task
    torch.manual_seed(seed)
    options = (8,) if network is StageGRUNetwork else None
    made = network(task_class(reference)().interface, options)
    with torch.no_grad():  # it shall ring, not run out of actions
        for parameter in made.parameters():
            parameter.mul_(2.0)
    save_policy(folder, made, reference, env_steps=5, stages=())
    return folder


def loaded(folder, task, network=None):
    """The network of such a checkpoint."""
    named = network and REFERENCE + network
    return load_policy(folder, task=REFERENCE + task, network=named).network
