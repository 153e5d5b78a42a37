"""Both machines again, slow and obvious: one episode, plain integers, straight from the rules.

An oracle for the batched machines. It shares no code with them, and it is written rule by rule
from the descriptions of the machines, so a slip in one is unlikely to be in the other too.
"""

from __future__ import annotations

MUL, ADD, SUB, ANS, STO, RCL = 11, 12, 13, 14, 15, 16
MAX_ACTIONS = 7


class Reference:
    """What both machines have in common: the end of an episode and its reward."""

    def __init__(self, stage: int, digits):
        self.stage = stage
        self.a, self.b, self.c, self.d, self.e = (int(digit) for digit in digits)
        self.steps = 0
        self.acc: int | None = None  # what ANS would answer

    @property
    def target(self) -> int:
        """The stated target."""
        a, b, c, d, e = self.a, self.b, self.c, self.d, self.e
        return [a * b + c, a * b + c - d, a * b + c - d * e][self.stage]

    @property
    def checked_target(self) -> int:
        """The target that the reward compares with."""
        return self.target

    def shaping(self) -> float:
        g0 = self.a * self.b
        g1 = g0 + self.c
        g2 = g1 - self.d
        g3 = self.d * self.e
        g4 = g1 - g3
        terms = [
            [(0.25, g0), (0.5, g1)],
            [(0.25, g0), (0.5, g1), (0.75, g2)],
            [(0.2, g0), (0.4, g1), (0.6, g4), (0.6, g3)],
        ][self.stage]
        return sum(weight for weight, subgoal in terms if self.acc == subgoal)

    def step(self, token: int) -> tuple[float, bool, bool, bool]:
        """(reward, terminated, truncated, solved)."""
        self.steps += 1
        if token == ANS:
            right = self.acc is not None and self.acc == self.checked_target
            reward = (1.0 if right else 0.0) + 0.2 * self.shaping()
            return reward, True, False, self.acc is not None and self.acc == self.target
        self.use(token)
        return 0.0, False, self.steps == MAX_ACTIONS, False

    def use(self, token: int) -> None:
        raise NotImplementedError

    def state(self) -> tuple:
        """Everything that later tokens depend on, but for the step counter."""
        raise NotImplementedError


class TutorialReference(Reference):
    """The published tutorial's rules."""

    def __init__(self, stage: int, digits):
        super().__init__(stage, digits)
        self.mem = False

    @property
    def checked_target(self) -> int:
        a, b, c, d = self.a, self.b, self.c, self.d
        return [a * b, a * b + c, a * b + c - d][self.stage]

    def use(self, token: int) -> None:
        if token == MUL:
            if self.acc is None:
                self.acc = self.a * self.b
            elif self.stage > 0:
                self.acc *= self.d
        elif token == ADD:
            if self.acc is not None:
                self.acc += self.c
        elif token == SUB:
            if self.acc is not None:
                if self.stage == 2 and self.mem:
                    self.acc -= self.e
                elif self.stage >= 1:
                    self.acc -= self.d
        elif token == STO:
            self.mem = True
        elif token == RCL and self.mem:
            if self.stage == 2:
                self.acc = self.d * self.e
            elif self.acc is None:
                self.acc = 0

    def state(self) -> tuple:
        return self.acc, self.mem


class CalculatorReference(Reference):
    """The task as described: accumulator, memory, latch and a cursor over the shown digits."""

    def __init__(self, stage: int, digits):
        super().__init__(stage, digits)
        self.unread = [int(digit) for digit in digits][: 3 + stage]
        self.mem: int | None = None
        self.latch: int | None = None

    def use(self, token: int) -> None:
        if token in (MUL, ADD, SUB):
            if self.acc is None:
                if token == MUL and len(self.unread) >= 2:
                    self.acc = self.unread.pop(0) * self.unread.pop(0)
                return
            if self.latch is not None:
                operand, self.latch = self.latch, None
            elif self.unread:
                operand = self.unread.pop(0)
            else:
                return
            if token == MUL:
                self.acc *= operand
            elif token == ADD:
                self.acc += operand
            else:
                self.acc -= operand
        elif token == STO:
            if self.acc is not None:
                self.mem, self.acc = self.acc, None
        elif token == RCL and self.mem is not None:
            if self.acc is not None:
                self.latch = self.acc
            self.acc, self.mem = self.mem, None

    def state(self) -> tuple:
        return self.acc, self.mem, self.latch, tuple(self.unread)


REFERENCES = {"tutorial": TutorialReference, "calculator": CalculatorReference}
