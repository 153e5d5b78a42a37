"""Task `expression`: read an infix expression, write a program for a stack machine.

Every problem needs a program of its own: the agent has to read, to order the operations (infix to
postfix needs an internal stack) and to copy the operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolagent.tasks.algebra import normal_form
from toolagent.tasks.base import Task, Transition
from toolagent.tasks.completion import complete
from toolagent.tasks.expression_problems import (
    MOST_OPERANDS,
    ExpressionProblems,
    compose,
    draw,
    longest_context,
    most_tokens,
    read,
    with_digits_in_parentheses,
    with_other_digits,
)
from toolagent.tasks.infix import (
    CLOSE,
    OPEN,
    VOCABULARY,
    Expression,
    parse,
    text_of,
    text_of_postfix,
    texts_of,
)
from toolagent.tasks.skeletons import HELD_OUT_FROM, MOST_NUMBERED, num_skeletons
from toolagent.tasks.stack_machine import (
    STACK_SIZE,
    StackRegisters,
    calculate,
    empty_registers,
    formulas_of,
    top_of,
    use,
)
from toolagent.tasks.tokens import ANS, TOOLS

EXAMPLE = "(3+4)*2"
# By the number of operands: the smallest digit of a problem to practise.
SMALLEST_DIGITS = np.where(np.arange(MOST_OPERANDS + 1) < 3, 0, 2)
LISTED_STAGES = (1, 2, 3)  # 10, 300 and 18,000 problems; with 4 operands 1,350,000


def _formulas(operands: int) -> tuple[str, ...]:
    return ("1 operand", *(f"{k} operands" for k in range(2, operands + 1)))


class ExpressionTask(Task):
    """Infix expressions of up to eight operands, to be computed on a stack machine.

    A problem is a skeleton (`skeletons`), the digits in it, and the parentheses that are written
    although they change nothing; `(3*4)+2` and `3*4+2` are one skeleton.

    The tokens do what `stack_machine` says. `ANS` ends the episode: 1 if the top of the stack is
    the expression's value, else 0. Truncated with reward 0 after 2k+1 actions for k operands.
    """

    name = "expression"
    first_stage = 1
    num_stages = 8
    formulas = _formulas(num_stages)
    context_length = longest_context(num_stages)
    vocabulary = VOCABULARY
    tools = TOOLS
    text_registers = ("stack",)
    max_actions = 2 * num_stages + 1
    splits = ("seen", "held_out")
    judgements = ("algebraically_valid", "shortest")
    problem_columns = ("expression",)
    posed_by = ("expression",)
    problem_tells_stage = True

    # Problems -------------------------------------------------------------------------------

    def sample(
        self, rng: np.random.Generator, stage: np.ndarray, split: str = "seen"
    ) -> ExpressionProblems:
        if split not in self.splits:
            raise ValueError(f"no split '{split}'; the splits are {', '.join(self.splits)}")
        return draw(rng, np.asarray(stage, np.int8), self.context_length, split == "held_out")

    def splits_of(self, stage: int) -> tuple[str, ...]:
        some_held_out = HELD_OUT_FROM <= int(self.check_stage(stage)) <= MOST_NUMBERED
        return self.splits if some_held_out else self.splits[:1]

    def split_of(self, problems: ExpressionProblems) -> np.ndarray:
        return problems.held_out.astype(np.int8)

    def pose(self, stage: np.ndarray | None, **given: Any) -> ExpressionProblems:
        unknown = sorted(set(given) - {"expression"})
        if unknown or "expression" not in given:
            raise ValueError(
                f"task '{self.name}' is posed by 'expression', a text such as '(3+4)*2'"
                + (f", not by '{unknown[0]}'" if unknown else "")
            )
        texts = given["expression"]
        texts = [*texts] if isinstance(texts, (list, tuple, np.ndarray)) else [texts]
        problems = read(texts, self.num_stages)
        if stage is not None:
            asked = self.check_stage(stage)
            if asked.shape not in ((), (1,), (len(problems),)):
                raise ValueError(f"{asked.size} stages for {len(problems)} expressions")
            for row in np.flatnonzero(asked != problems.stage)[:1]:
                raise ValueError(
                    f"{text_of(problems.context[row])} is of stage {problems.stage[row]}, its "
                    f"number of operands, not of stage {np.broadcast_to(asked, len(problems))[row]}"
                )
        return problems

    def num_problems(self, stage: int) -> int | None:
        operands = int(self.check_stage(stage))
        return num_skeletons(operands) * 10**operands if operands in LISTED_STAGES else None

    def problems(self, stage: int, start: int, stop: int) -> ExpressionProblems:
        operands, total = int(stage), self.num_problems(stage)
        if total is None:
            raise ValueError(f"the problems of stage {stage} are too many to be listed")
        index = np.arange(start, min(stop, total))
        number, code = np.divmod(index, 10**operands)
        digits = (code[:, None] // 10 ** np.arange(operands - 1, -1, -1) % 10).astype(np.int8)
        spare = np.zeros((len(index), operands - 1), bool)
        return compose(operands, number, digits, spare, self.context_length)

    def target(self, problems: ExpressionProblems) -> np.ndarray:
        return problems.target

    def read(self, context: np.ndarray) -> dict[str, Any]:
        return {"expression": texts_of(context)}

    def describe(self, problems: ExpressionProblems, row: int) -> str:
        return f"{text_of(problems.context[row])} = {problems.target[row]}"

    def depth(self, problems: ExpressionProblems) -> np.ndarray:
        """(B,) int64: how many pairs of parentheses lie in one another at the deepest place."""
        opens, closes = problems.context == OPEN, problems.context == CLOSE
        return (np.cumsum(opens, 1) - np.cumsum(closes, 1)).max(1)

    def practice(self, rng: np.random.Generator, stage: np.ndarray) -> ExpressionProblems:
        """As `sample`, but from three operands on without the digits 0 and 1.

        With them `a*(b+c)` is right as `0` and `a*b+c` as `a+c` every so often: rewards for wrong
        plans, found first. Two operands have so few plans that such steps help to find the right
        ones.
        """
        stage = np.asarray(stage, np.int8)
        return draw(rng, stage, self.context_length, smallest=SMALLEST_DIGITS)

    def variants(
        self, problems: ExpressionProblems, rng: np.random.Generator
    ) -> ExpressionProblems:
        return with_other_digits(problems, rng, SMALLEST_DIGITS)

    def rewritten(
        self, problems: ExpressionProblems, rng: np.random.Generator
    ) -> ExpressionProblems:
        return with_digits_in_parentheses(problems, rng)

    def action_limit(self, stage: np.ndarray) -> np.ndarray:
        return 2 * np.asarray(stage) + 1

    def example(self, stage: int | None = None) -> ExpressionProblems:
        return self.pose(None, expression=[EXAMPLE]) if stage is None else super().example(stage)

    # Machine --------------------------------------------------------------------------------

    def start(self, problems: ExpressionProblems) -> StackRegisters:
        return empty_registers(len(problems))

    def step(
        self, problems: ExpressionProblems, registers: StackRegisters, actions: np.ndarray
    ) -> Transition:
        after = use(registers, actions, actions, calculate)
        terminated = actions == ANS
        top, filled = self.accumulator(after)
        solved = terminated & filled & (top == problems.target)
        return Transition(
            registers=after,
            rewards=solved.astype(np.float64),
            terminated=terminated,
            truncated=~terminated & (after.steps >= self.action_limit(problems.stage)),
            solved=solved,
        )

    def accumulator(self, registers: StackRegisters) -> tuple[np.ndarray, np.ndarray]:
        return top_of(registers)

    def show(self, registers: StackRegisters, row: int) -> dict[str, int | str | None]:
        entries = registers.stack[row, : registers.depth[row]].tolist()
        return {
            "stack": " ".join(map(str, entries)) or None,
            "mem": int(registers.mem[row]) if registers.mem_filled[row] else None,
        }

    num_statuses = 2 * (STACK_SIZE + 1)

    def status(self, registers: StackRegisters) -> np.ndarray:
        return 2 * registers.depth + registers.mem_filled

    # Judging --------------------------------------------------------------------------------

    def judge(
        self, problems: ExpressionProblems, actions: np.ndarray, lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Whether finished programs compute the *expression*, not only its value.

        `algebraically_valid`: with any numbers in the digits' places, the program run again gives
        the expression's value. A push of a digit stands for one place of that digit in the text;
        which one is chosen in the program's favour, since tokens cannot tell. Decided exactly
        (`algebra`), with no numbers drawn.

        `shortest`: valid, in 2k tokens. No valid program is shorter: the value depends on each of
        the k places, so each is pushed; no token copies an entry, so k-1 operations are needed to
        join them; and it ends with `ANS`.
        """
        valid = np.zeros(len(problems), bool)
        asked = zip(formulas_of(actions, lengths), texts_of(problems.context), strict=True)
        for row, (computed, text) in enumerate(asked):
            expression = self._parse(text).postfix
            valid[row] = computed == expression or (
                len(computed) == len(expression)
                and normal_form(computed) == normal_form(expression)
            )
        return {
            "algebraically_valid": valid,
            "shortest": valid & (lengths == 2 * problems.stage),
        }

    def plan(self, problems: ExpressionProblems, row: int) -> tuple[int, ...] | None:
        # The text in postfix: of all shortest valid programs the one that a person would write.
        return (*self._parse(text_of(problems.context[row])).postfix, ANS)

    def continuation(
        self, problems: ExpressionProblems, row: int, tokens: Sequence[int]
    ) -> tuple[int, ...] | None:
        postfix = self._parse(text_of(problems.context[row])).postfix
        limit = int(self.action_limit(problems.stage)[row])
        return complete(postfix, tuple(map(int, tokens)), limit)

    def computes(self, actions: Sequence[int]) -> str | None:
        program = np.array([actions], np.int64)
        (formula,) = formulas_of(program, np.array([len(actions)]))
        return text_of_postfix(formula) if formula else None

    def _parse(self, text: str) -> Expression:
        return parse(text, self.num_stages, most_tokens(self.num_stages))


class LongExpressionTask(ExpressionTask):
    """The same with up to sixteen operands.

    A task of its own, because contexts and episodes are twice as long. From nine operands on no
    skeleton is held out: there are too many to be numbered, and none is ever trained on.
    """

    name = "expression_long"
    env_name = "ExpressionLong"
    num_stages = MOST_OPERANDS
    formulas = _formulas(num_stages)
    context_length = longest_context(num_stages)
    max_actions = 2 * num_stages + 1
