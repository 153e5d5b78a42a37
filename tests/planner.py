"""Networks that write programs given beforehand, for tests of what is counted after training.

They read the context through the task, not through weights: a sound agent of task `expression`
takes minutes to train, and one that is wrong in a chosen way can't be trained at all.
"""

from __future__ import annotations

from typing import Any

import torch

from toolagent.models.base import AgentNetwork, InitialState
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, EOS, MUL, NUM_TOKENS, STO

CERTAINTY = 10.0  # the logit of the program's token; the others' are 0


def shortest(task, problems, row):
    """The plan of the task itself."""
    return task.plan(problems, row)


def wasteful(task, problems, row):
    """The plan with a token in it that does nothing."""
    *plan, answer = task.plan(problems, row)
    return (*plan, EOS, answer)


def shortcut(task, problems, row):
    """The value itself where it is one digit; else the plan."""
    value = int(task.target(problems)[row])
    return (value, ANS) if 0 <= value < 10 else task.plan(problems, row)


def sums_only(task, problems, row):
    """The plan with every product taken for a sum."""
    return tuple(ADD if token == MUL else token for token in task.plan(problems, row))


def silent(task, problems, row):
    """Never an answer."""
    return (STO,) * task.max_actions


def empty_handed(task, problems, row):
    """An answer with nothing on the stack."""
    return (ANS,)


class Planner(AgentNetwork):
    """Writes `choose(task, problems, row)` for each problem, whatever it has written before."""

    def __init__(self, choose: Any = shortest, task_name: str = "expression"):
        super().__init__(get_task(task_name).interface)
        self.choose, self.task = choose, get_task(task_name)

    def begin(self, context, stage):
        problems = self.task.pose(None, **self.task.read(context.numpy()))
        programs = torch.full((len(context), self.task.max_actions), EOS)
        for row in range(len(context)):
            program = torch.tensor(self.choose(self.task, problems, row))
            programs[row, : len(program)] = program
        return InitialState((programs,), torch.zeros(len(context), 1))

    def unroll(self, previous_tokens, encoding, hidden):
        (programs,) = encoding
        steps = hidden.long() + torch.arange(previous_tokens.shape[1])  # (B, T)
        tokens = programs.gather(1, steps)
        logits = CERTAINTY * torch.nn.functional.one_hot(tokens, NUM_TOKENS).float()
        return logits, torch.zeros(tokens.shape), hidden + previous_tokens.shape[1]
