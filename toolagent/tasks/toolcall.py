"""Task `toolcall`: calls with arguments are written token by token, and tools answer once.

Some of what a problem asks for is in a database that is never shown. It has to be asked for, and
what was answered has to be remembered until it is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.tasks import toolcall_dataflow
from toolagent.tasks.base import Lies, Task, Transition
from toolagent.tasks.toolcall_lies import lies_of
from toolagent.tasks.toolcall_machine import (
    ADD,
    ANS,
    ANSWERED,
    COMMA,
    EQUALS,
    FIRST_KEY,
    GET,
    MUL,
    NEG,
    NO_ANSWER,
    NUM_STATUSES,
    PAD,
    REFUSED_RESULT,
    RESPONSE_LENGTH,
    SUB,
    VOCABULARY,
    ToolCallRegisters,
    call_text,
    empty_registers,
    read_tokens,
    signed,
)
from toolagent.tasks.toolcall_problems import (
    CONTEXT_LENGTH,
    FROM_0,
    NUM_STAGES,
    OPERANDS,
    PRACTISED_FROM,
    SEEN,
    SPLITS,
    ToolCallProblems,
    draw,
    listed,
    num_listed,
    siblings,
    splits_of,
    variants,
)
from toolagent.tasks.toolcall_texts import EXAMPLE, EXAMPLE_DATABASE, read_problems, texts_of

_MOST_KEYS = np.array([0, 1, 0, 1, 2, 0, 3, 4, 5])  # by stage
# (9,) int8 by stage: 1.3 times the tokens of a usual plan, and one.
LIMITS = (13 * (5 + 3 * _MOST_KEYS + 8 * (OPERANDS.astype(int) - 1)) // 10 + 1).astype(np.int8)
MOST_CALLS = 2 * OPERANDS + np.int8(1)  # (9,) int8 by stage: answered, `ANS` apart


class ToolCallTask(Task):
    """Prompts of up to five operands, digits and keys, to be calculated by calling tools.

    The calls are `GET key =`, `ADD num , num =`, likewise `SUB` and `MUL`, and `ANS num =`; a num
    is an optional `NEG` and 1 to 4 digits. A token that can't continue the call is answered `ERR`
    at once and the call is forgotten; so is a result beyond 9999 in size. A finished call is
    answered with its value. `ANS num =` ends the episode: 1 if the number is the prompt's value,
    else 0. Truncated with reward 0 after `action_limit` actions, or as soon as more than 2n+1
    calls were answered with a value (n operands).
    """

    name = "toolcall"
    env_name = "ToolCall"
    vocabulary = VOCABULARY
    num_stages = NUM_STAGES
    formulas = (
        "digit",
        "key",
        "2 digits",
        "digit and key",
        "2 operands",
        "3 digits",
        *(f"{count} operands" for count in (3, 4, 5)),
    )
    context_length = CONTEXT_LENGTH
    max_actions = int(LIMITS[-1])
    response_length = RESPONSE_LENGTH
    refusal = "ERR"
    answer_ends = False  # `ANS` begins the last call
    splits = SPLITS
    tools = ("GET", "ADD", "SUB", "MUL", "ANS")
    text_registers = ("call", "last")
    posed_by = problem_columns = ("expression", "database")
    problem_tells_stage = True
    num_statuses = NUM_STATUSES

    # Problems -------------------------------------------------------------------------------

    def sample(
        self, rng: np.random.Generator, stage: np.ndarray, split: str = SPLITS[SEEN]
    ) -> ToolCallProblems:
        if split not in self.splits:
            raise ValueError(f"no split '{split}'; the splits are {', '.join(self.splits)}")
        return draw(rng, np.asarray(stage, np.int8), self.splits.index(split), FROM_0)

    def practice(self, rng: np.random.Generator, stage: np.ndarray) -> ToolCallProblems:
        """As `sample`, but with two or more operands without the digits and values 0 and 1."""
        return draw(rng, np.asarray(stage, np.int8), SEEN, PRACTISED_FROM)

    def variants(self, problems: ToolCallProblems, rng: np.random.Generator) -> ToolCallProblems:
        return variants(rng, problems, PRACTISED_FROM)

    def siblings(self, problems: ToolCallProblems, rng: np.random.Generator) -> ToolCallProblems:
        return siblings(rng, problems, PRACTISED_FROM)

    def splits_of(self, stage: int) -> tuple[str, ...]:
        return splits_of(int(self.check_stage(stage)))

    def split_of(self, problems: ToolCallProblems) -> np.ndarray:
        return problems.split

    def num_problems(self, stage: int) -> int | None:
        return num_listed(int(self.check_stage(stage)))

    def problems(self, stage: int, start: int, stop: int) -> ToolCallProblems:
        total = self.num_problems(stage)
        if total is None:
            raise ValueError(f"the problems of stage {stage} are too many to be listed")
        return listed(int(stage), start, min(stop, total))

    def pose(self, stage: np.ndarray | None, **given: Any) -> ToolCallProblems:
        unknown = sorted(set(given) - set(self.problem_columns))
        if unknown or "expression" not in given:
            raise ValueError(
                f"task '{self.name}' is posed by 'expression', a text such as '{EXAMPLE}', and "
                "'database', eight numbers" + (f", not by '{unknown[0]}'" if unknown else "")
            )
        asked = None if stage is None else self.check_stage(stage)
        return read_problems(given["expression"], given.get("database"), asked)

    def example(self, stage: int | None = None) -> ToolCallProblems:
        if stage is not None:
            return super().example(stage)
        return self.pose(None, expression=EXAMPLE, database=EXAMPLE_DATABASE)

    def target(self, problems: ToolCallProblems) -> np.ndarray:
        return problems.target

    def read(self, context: np.ndarray) -> dict[str, Any]:
        return {"expression": texts_of(context)}

    def unseen(self, problems: ToolCallProblems) -> dict[str, np.ndarray]:
        return {"database": problems.database}

    def describe(self, problems: ToolCallProblems, row: int) -> str:
        """'3*B+C-7 = 3*19+3-7 = 53'; without the middle where the prompt has no key."""
        text = str(texts_of(problems.context[row : row + 1])[0])
        values = {
            VOCABULARY.names[FIRST_KEY + key]: str(value)
            for key, value in enumerate(problems.database[row].tolist())
        }
        known = "".join(values.get(character, character) for character in text)
        return " = ".join([*dict.fromkeys((text, known)), str(problems.target[row])])

    def action_limit(self, stage: np.ndarray) -> np.ndarray:
        return LIMITS[stage]

    # Machine --------------------------------------------------------------------------------

    def start(self, problems: ToolCallProblems) -> ToolCallRegisters:
        return empty_registers(len(problems))

    def step(
        self, problems: ToolCallProblems, registers: ToolCallRegisters, actions: np.ndarray
    ) -> Transition:
        read = read_tokens(registers, actions, problems.database)
        after, ended = read.registers, read.ended
        solved = ended & (signed(after) == problems.target)
        spent = (after.steps >= LIMITS[problems.stage]) | (
            after.answered > MOST_CALLS[problems.stage]
        )
        return Transition(
            registers=after,
            rewards=solved.astype(np.float64),
            terminated=ended,
            truncated=~ended & spent,
            solved=solved,
            response=read.response,
        )

    def accumulator(self, registers: ToolCallRegisters) -> tuple[np.ndarray, np.ndarray]:
        """The number in `ANS num =`, there once that is complete."""
        filled = registers.status == ANSWERED
        return np.where(filled, signed(registers), 0).astype(np.int64), filled

    def show(self, registers: ToolCallRegisters, row: int) -> dict[str, int | str | None]:
        last = int(registers.last[row])
        told = {NO_ANSWER: None, REFUSED_RESULT: "ERR"}.get(last, str(last))
        return {
            "call": call_text(registers, row),
            "answers": int(registers.answered[row]),
            "last": told,
        }

    def status(self, registers: ToolCallRegisters) -> np.ndarray:
        """How far the call is written (`toolcall_machine`), so which tokens are refused."""
        return registers.status

    def lies(
        self,
        problems: ToolCallProblems,
        actions: np.ndarray,
        lengths: np.ndarray,
        response: np.ndarray,
    ) -> Lies:
        """The first calculation that was answered with a value, see `toolcall_lies`."""
        return lies_of(self, problems, actions, lengths, response)

    def kinds(self, context: np.ndarray) -> np.ndarray:
        return toolcall_dataflow.kinds(context)

    def dataflow(
        self, context: np.ndarray, actions: np.ndarray, lengths: np.ndarray, response: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return toolcall_dataflow.dataflow(context, actions, lengths, response)

    # Programs -------------------------------------------------------------------------------

    def plan(self, problems: ToolCallProblems, row: int) -> tuple[int, ...] | None:
        """`GET` once for each key, in their order; products, then sums, from left to right.

        None where a result on the way is too large for a tool.
        """
        if not problems.within[row]:
            return None
        shown = [int(token) for token in problems.context[row]]
        operands, operators = shown[0::2], shown[1::2]
        operands = [token for token in operands if token != PAD]
        values = _values(operands, problems.database[row])
        program: list[int] = []
        for key in dict.fromkeys(token for token in operands if token >= FIRST_KEY):
            program += [GET, key, EQUALS]
        operators = operators[: len(values) - 1]
        for wanted in ((MUL,), (ADD, SUB)):
            place = 0
            while place < len(operators):
                operator = operators[place]
                if operator not in wanted:
                    place += 1
                    continue
                left, right = values[place : place + 2]
                program += [operator, *written(left), COMMA, *written(right), EQUALS]
                result = {ADD: left + right, SUB: left - right, MUL: left * right}[operator]
                values[place : place + 2] = [result]
                del operators[place]
        return (*program, ANS, *written(values[0]), EQUALS)


def _values(operands: list[int], database: np.ndarray) -> list[int]:
    """What operand tokens stand for."""
    known = database.tolist()
    return [known[token - FIRST_KEY] if token >= FIRST_KEY else token for token in operands]


def written(number: int) -> tuple[int, ...]:
    """The tokens of a number."""
    return (*([NEG] if number < 0 else []), *map(int, str(abs(number))))
