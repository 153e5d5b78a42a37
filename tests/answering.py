"""A task of another module whose tools answer: hidden digits have to be looked up and written."""

from dataclasses import dataclass

import numpy as np

from toolagent.tasks import Lies, Problems, Registers, Task, Transition, Vocabulary


@dataclass
class Hidden(Problems):
    """Two digits in 0..2 that no context shows."""

    digits: np.ndarray  # (B, 2) int8


@dataclass
class Written(Registers):
    """The digits that were written last, -1 where there was none."""

    stage: np.ndarray  # (B,) int8
    last: np.ndarray  # (B, 2) int8


class PeekTask(Task):
    """LOOK is answered with the two hidden digits; SAY ends the episode.

    Stage 0 shows one place and asks for the digit there, stage 1 asks for both digits. The
    response is seen at one step only, so in stage 1 the second digit has to be remembered while
    the first is written.
    """

    name = "peek"
    vocabulary = Vocabulary(
        actions=("0", "1", "2", "LOOK", "SAY"),
        observed=("NONE", "START"),
        start="START",
        pad="NONE",
        answer="SAY",
    )
    num_stages = 2
    context_length = 2
    max_actions = 7
    response_length = 2

    def sample(self, rng, stage, split="all"):
        stage = np.asarray(stage, np.int8)
        context = np.full((len(stage), 2), (0, 1), np.int8)
        one = stage == 0
        context[one, 0] = rng.integers(0, 2, one.sum())
        context[one, 1] = self.vocabulary.pad_token
        return Hidden(stage, context, rng.integers(0, 3, (len(stage), 2)).astype(np.int8))

    def siblings(self, problems, rng):
        digits = rng.integers(0, 3, problems.digits.shape).astype(np.int8)
        return Hidden(problems.stage, problems.context, digits)

    def start(self, problems):
        size = len(problems)
        return Written(np.zeros(size, np.int8), problems.stage, np.full((size, 2), -1, np.int8))

    def step(self, problems, registers, actions):
        steps, last = registers.steps + np.int8(1), registers.last.copy()
        writes = actions < 3
        last[writes, 0] = last[writes, 1]
        last[writes, 1] = actions[writes]
        terminated = actions == 4
        value, _ = self.accumulator(registers)
        solved = terminated & (value == self.target(problems))
        return Transition(
            registers=Written(steps, registers.stage, last),
            rewards=solved.astype(float),
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=solved,
            response=np.where((actions == 3)[:, None], problems.digits, self.vocabulary.pad_token),
        )

    def target(self, problems):
        return self._asked(problems, problems.digits)

    def accumulator(self, registers):
        first, second = registers.last.T.astype(np.int64)
        one = registers.stage == 0
        return np.where(one, second, 10 * first + second), np.where(one, second, first) >= 0

    def lies(self, problems, actions, lengths, response):
        """The first LOOK is answered with a second digit that is one too large, 0 for 3."""
        looked = (actions == 3) & (np.arange(actions.shape[1]) < lengths[:, None])
        told = problems.digits + np.array([0, 1], np.int8)
        told[:, 1] %= 3
        step = np.where(looked.any(1), looked.argmax(1), -1)
        return Lies(step, told, self._asked(problems, told))

    def _asked(self, problems, digits):
        """(B,) the right answers if these are the hidden digits."""
        first, second = digits.T.astype(np.int64)
        one = np.where(problems.context[:, 0] == 0, first, second)
        return np.where(problems.stage == 0, one, 10 * first + second)


ASKED = {"first": (0, 5), "second": (1, 5), "both": (0, 1)}  # the contexts; 5 is NONE


class PosedPeekTask(PeekTask):
    """The same, posed by two values: what is asked, and the hidden digits (0 0 if left out)."""

    name = "posed_peek"
    posed_by = problem_columns = ("asked", "hidden")
    problem_tells_stage = True

    def pose(self, stage, *, asked, hidden=None):
        asked = np.atleast_1d(asked)
        for text in asked:
            if text not in ASKED:
                raise ValueError(f"'{text}' can't be asked; expected one of {', '.join(ASKED)}")
        digits = np.zeros((len(asked), 2), int) if hidden is None else np.atleast_2d(hidden)
        if digits.shape != (len(asked), 2) or ((digits < 0) | (digits > 2)).any():
            raise ValueError(f"hidden is {digits.tolist()}; expected two digits 0..2 for each")
        told = (asked == "both").astype(np.int8)
        if stage is not None and (self.check_stage(stage) != told).any():
            raise ValueError("asked is of another stage")
        context = np.array([ASKED[str(text)] for text in asked], np.int8)
        return Hidden(told, context, digits.astype(np.int8))

    def read(self, context):
        texts = np.array(["second", "first", "both"])
        return {"asked": texts[np.where(context[:, 1] == 1, 2, context[:, 0] == 0)]}

    def unseen(self, problems):
        return {"hidden": problems.digits}
