"""Ask for a number, then count up to it: a task with only what training needs, whose tools
answer."""

from dataclasses import dataclass

import numpy as np

from toolagent.tasks import Problems, Registers, Task, Transition, Vocabulary

ASK, UP, STOP = range(3)


@dataclass
class Secrets(Problems):
    number: np.ndarray  # (B,) int64: 0..2, which no context tells


@dataclass
class Counter(Registers):
    count: np.ndarray  # (B,) int64


class SecretTask(Task):
    """`ASK` is answered with the number, `UP` counts one up, `STOP` answers with the count."""

    name = "secret"
    vocabulary = Vocabulary(
        actions=("ASK", "UP", "STOP"),
        observed=("START", "NONE", "N0", "N1", "N2"),
        start="START",
        pad="NONE",
        answer="STOP",
    )
    num_stages = 1
    context_length = 1
    max_actions = 4
    response_length = 1

    def sample(self, rng, stage, split="all"):
        context = np.full((len(stage), 1), self.vocabulary.pad_token, np.int8)
        return Secrets(np.asarray(stage, np.int8), context, rng.integers(0, 3, len(stage)))

    def start(self, problems):
        return Counter(np.zeros(len(problems), np.int8), np.zeros(len(problems), np.int64))

    def step(self, problems, registers, actions):
        steps, count = registers.steps + np.int8(1), registers.count + (actions == UP)
        solved = (actions == STOP) & (count == problems.number)
        told = self.vocabulary.token("N0") + problems.number
        return Transition(
            registers=Counter(steps, count),
            rewards=solved.astype(float),
            terminated=actions == STOP,
            truncated=(actions != STOP) & (steps >= self.max_actions),
            solved=solved,
            response=np.where(actions == ASK, told, self.vocabulary.pad_token)[:, None],
        )

    def target(self, problems):
        return problems.number
