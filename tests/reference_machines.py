"""The machines again, slow and obvious: one episode, plain integers, straight from the rules.

An oracle for the batched machines. It shares no code with them, and it is written rule by rule
from the descriptions of the machines, so a slip in one is unlikely to be in the other too.
Expressions are read by Python's own `ast`.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

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


# Expressions ------------------------------------------------------------------------------------


class StackReference:
    """The stack machine of `expression`, with Python's lists.

    `push` makes what a digit pushes, anything that can be multiplied, added and subtracted; by
    default its number. `steps` counts, and an episode of k operands ends with 2k+1 of them.
    """

    def __init__(self, text: str, push: Callable[[int], object] = int):
        self.target = value_of(text)
        self.max_actions = 2 * len(operands_of(text)) + 1
        self.push = push
        self.stack: list = []
        self.mem: list = []  # one entry or none
        self.steps = 0

    @property
    def acc(self):
        """What ANS would answer."""
        return self.stack[-1] if self.stack else None

    def step(self, token: int) -> tuple[float, bool, bool, bool]:
        """(reward, terminated, truncated, solved)."""
        self.steps += 1
        if token == ANS:
            right = self.stack != [] and self.stack[-1] == self.target
            return (1.0 if right else 0.0), True, False, right
        self.use(token)
        return 0.0, False, self.steps == self.max_actions, False

    def use(self, token: int) -> None:
        full = len(self.stack) == 16
        if 0 <= token <= 9:
            if not full:
                self.stack.append(self.push(token))
        elif token in (MUL, ADD, SUB):
            if len(self.stack) >= 2:
                right = self.stack.pop()
                left = self.stack.pop()
                if token == MUL:
                    self.stack.append(left * right)
                elif token == ADD:
                    self.stack.append(left + right)
                else:
                    self.stack.append(left - right)
        elif token == STO:
            if self.stack:
                self.mem = [self.stack.pop()]
        elif token == RCL and self.mem and not full:
            self.stack.append(self.mem.pop())


def tree_of(text: str) -> ast.expr:
    """The expression as Python reads it: binary `+ - *` over single digits and nothing else.

    Raises:
        SyntaxError: it is anything else.
    """
    text = text.replace(" ", "")
    if set(text) - set("0123456789+-*()"):
        raise SyntaxError(text)
    tree = ast.parse(text, mode="eval").body
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
            continue
        if isinstance(node, ast.Constant) and text[node.col_offset : node.end_col_offset] in tuple(
            "0123456789"
        ):
            continue
        if not isinstance(node, (ast.Add, ast.Sub, ast.Mult)):
            raise SyntaxError(f"{text}: {ast.dump(node)}")
    return tree


def value_of(text: str) -> int:
    """By Python's own arithmetic."""
    return eval(compile(ast.Expression(tree_of(text)), text, "eval"))


def operands_of(text: str) -> list[int]:
    """The digits, from left to right."""
    return [int(character) for character in text if character in "0123456789"]


def skeleton_of(text: str) -> str:
    """The tree with its digits blanked."""
    tree = tree_of(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = "_"
    return ast.unparse(tree)


class Polynomial(Counter):
    """Coefficients by monomial, a sorted tuple of variables: exact, and without any normal form."""

    def __mul__(self, other):
        product = Polynomial()
        for left, right in itertools.product(self, other):
            product[tuple(sorted(left + right))] += self[left] * other[right]
        return product

    def __add__(self, other):
        total = Polynomial(self)
        for monomial in other:
            total[monomial] += other[monomial]
        return total

    def __sub__(self, other):
        return self + Polynomial({monomial: -other[monomial] for monomial in other})

    def __eq__(self, other):
        return all(self[monomial] == other[monomial] for monomial in self.keys() | other.keys())


def polynomial_of(text: str) -> Polynomial:
    """The expression in the variables '0', '1', ...: one a place, from left to right."""

    def of(node) -> Polynomial:
        if isinstance(node, ast.Constant):
            return Polynomial({(str(places[node.col_offset]),): 1})
        left, right = of(node.left), of(node.right)
        if isinstance(node.op, ast.Mult):
            return left * right
        return left + right if isinstance(node.op, ast.Add) else left - right

    tree = tree_of(text)
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    offsets = sorted(node.col_offset for node in constants)
    places = {offset: place for place, offset in enumerate(offsets)}
    return of(tree)


def is_valid(text: str, program: Sequence[int]) -> bool:
    """Whether the program computes the expression whatever numbers stand in its places.

    Tries every way to let each place of a digit stand for one of the pushes of that digit; what is
    pushed besides is a variable that the expression does not have.
    """
    pushed: list[int] = []

    def note(digit: int) -> int:
        pushed.append(digit)
        return 0

    answer_of(StackReference(text, note), program)
    places, target = operands_of(text), polynomial_of(text)
    if Counter(places) - Counter(pushed):
        return False
    wanted = sorted(set(places))
    choices = [
        itertools.permutations(positions(pushed, digit), places.count(digit)) for digit in wanted
    ]
    for choice in itertools.product(*choices):
        variables = [f"spare {push}" for push in range(len(pushed))]
        for digit, pushes in zip(wanted, choice, strict=True):
            for place, push in zip(positions(places, digit), pushes, strict=True):
                variables[push] = str(place)
        names = iter(variables)
        machine = StackReference(text, lambda _, names=names: Polynomial({(next(names),): 1}))
        answer = answer_of(machine, program)
        if answer is not None and answer == target:
            return True
    return False


def positions(items: Sequence[int], wanted: int) -> list[int]:
    return [position for position, item in enumerate(items) if item == wanted]


def answer_of(machine: StackReference, program: Sequence[int]):
    """What the program answers with; None without `ANS`, or on an empty stack."""
    for token in program:
        if token == ANS:
            return machine.acc
        machine.use(token)
    return None
