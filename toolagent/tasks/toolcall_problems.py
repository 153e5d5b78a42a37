"""Problems of the task `toolcall`: drawn, listed, or composed of their parts.

A *prompt* has operands and operators in turn; an operand is a digit, or a key whose value only the
*database* knows. No tool answers with a number beyond 9999, so problems are drawn such that
nothing on the way to their value is larger.

Held out of training, chosen by hashing:

- digit pairs of prompts of two digits, 10 of 100, whatever the operator;
- (key, value) pairs, 10 of each key's 100 values: no database of a training problem has one, asked
  for or not;
- the operators of prompts with 4 operands, 3 of 27, and with 5, 9 of 81.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.base import Problems
from toolagent.tasks.hashing import chosen
from toolagent.tasks.toolcall_machine import (
    ADD,
    FIRST_KEY,
    MOST,
    MUL,
    NUM_KEYS,
    PAD,
    SUB,
)

SPLITS = ("seen", "held_out_pairs", "held_out_values", "held_out_skeletons")
SEEN, PAIRS, VALUES, SKELETONS = range(4)
NUM_STAGES = 9
MAX_OPERANDS = 5
CONTEXT_LENGTH = 2 * MAX_OPERANDS - 1
NUM_VALUES = 100  # of a key: 0..99
OPERATORS = np.array([ADD, SUB, MUL], np.int8)
HELD_OUT_FROM = 4  # operands: with fewer, too few choices of operators to hold some out

OPERANDS = np.array([1, 1, 2, 2, 2, 3, 3, 4, 5], np.int8)  # by stage
# How many of a prompt's operands are keys, by stage.
NO_KEYS, ALL_KEYS, ONE_KEY, SOME_KEYS = range(4)
KEYS = np.array(
    [NO_KEYS, ALL_KEYS, NO_KEYS, ONE_KEY, SOME_KEYS, NO_KEYS, SOME_KEYS, SOME_KEYS, SOME_KEYS]
)
# The smallest digit and the smallest value of a problem to practise, by stage. With 0 and 1 some
# wrong plans are right by coincidence; with one operand there is none but the right one.
PRACTISED_FROM = np.where(OPERANDS == 1, 0, 2)
FROM_0 = np.zeros(NUM_STAGES, np.int64)

_SALT = 16
_CANDIDATES = 256  # drawn at once in place of problems that are none of those wanted
_ROUNDS = 1000  # of such draws; what is rarest is drawn by far fewer
# (10, 10) bool by the digits; (8, 100) bool by key and value
HELD_OUT_PAIRS = chosen(100, 10, _SALT).reshape(10, 10)
HELD_OUT_VALUES = np.stack([chosen(NUM_VALUES, 10, _SALT + 1 + key) for key in range(NUM_KEYS)])
# By the number of operands: (3^(operands - 1),) bool by the operators as digits in base 3.
HELD_OUT_SKELETONS = {
    operands: chosen(3 ** (operands - 1), 3 ** (operands - 1) // 9, _SALT + 10 + operands)
    if operands >= HELD_OUT_FROM
    else np.zeros(3 ** (operands - 1), bool)
    for operands in range(1, MAX_OPERANDS + 1)
}
_PAIRS = np.argwhere(HELD_OUT_PAIRS).astype(np.int8)  # (10, 2)
_HELD_OUT = np.stack([np.flatnonzero(row) for row in HELD_OUT_VALUES]).astype(np.int8)  # (8, 10)
_OTHERS = np.stack([np.flatnonzero(~row) for row in HELD_OUT_VALUES]).astype(np.int8)  # (8, 90)


@dataclass
class ToolCallProblems(Problems):
    """B problems."""

    database: np.ndarray  # (B, NUM_KEYS) int8: the keys' values, 0..99
    target: np.ndarray  # (B,) int64
    split: np.ndarray  # (B,) int8: the index in `SPLITS`
    within: np.ndarray  # (B,) bool: no result on the way is beyond 9999 in size


def splits_of(stage: int) -> tuple[str, ...]:
    """The splits that have problems in a stage."""
    has = (
        True,
        bool(OPERANDS[stage] == 2 and KEYS[stage] in (NO_KEYS, SOME_KEYS)),
        bool(KEYS[stage] != NO_KEYS),
        bool(OPERANDS[stage] >= HELD_OUT_FROM),
    )
    return tuple(name for name, there in zip(SPLITS, has, strict=True) if there)


def compose(
    stage: np.ndarray, operands: np.ndarray, operators: np.ndarray, database: np.ndarray
) -> ToolCallProblems:
    """Problems from their parts.

    Args:
        stage: (B,) integers.
        operands: (B, 5) tokens, digits and keys; those behind a stage's number count for nothing.
        operators: (B, 4) tokens, likewise.
        database: (B, 8) integers 0..99.
    """
    stage = stage.astype(np.int8)
    context = np.empty((len(stage), CONTEXT_LENGTH), np.int8)
    context[:, 0::2], context[:, 1::2] = operands, operators
    context[np.arange(CONTEXT_LENGTH) > 2 * OPERANDS[stage][:, None] - 2] = PAD
    return with_database(stage, context, database)


def with_database(stage: np.ndarray, context: np.ndarray, database: np.ndarray) -> ToolCallProblems:
    """Problems from their (B, 9) contexts and (B, 8) databases."""
    operands, operators = context[:, 0::2], context[:, 1::2]
    target, within = _calculate(_numbers(operands, database), operators)
    return ToolCallProblems(
        stage=stage.astype(np.int8),
        context=context.astype(np.int8),
        database=database.astype(np.int8),
        target=target,
        split=_split_of(OPERANDS[stage], operands, operators, database),
        within=within,
    )


def is_key(tokens: np.ndarray) -> np.ndarray:
    """Which tokens of a prompt are keys."""
    return (tokens >= FIRST_KEY) & (tokens < FIRST_KEY + NUM_KEYS)


def _keys_of(operands: np.ndarray) -> np.ndarray:
    """(B, 5) the keys' numbers 0..7; 0 where an operand is none."""
    return np.where(is_key(operands), operands - FIRST_KEY, 0)


def _numbers(operands: np.ndarray, database: np.ndarray) -> np.ndarray:
    """(B, 5) int64: the operands' values."""
    values = np.take_along_axis(database, _keys_of(operands), 1)
    return np.where(is_key(operands), values, operands).astype(np.int64)


def numbers_of(problems: ToolCallProblems) -> np.ndarray:
    """(B, 5) int64: the operands' values; those behind a stage's number count for nothing."""
    return _numbers(problems.context[:, 0::2], problems.database)


def _calculate(numbers: np.ndarray, operators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) int64 values, and (B,) bool: every result is at most 9999 in size."""
    total, term = np.zeros(len(numbers), np.int64), numbers[:, 0]  # of finished terms; the last
    largest = np.zeros(len(numbers), np.int64)
    for place in range(MAX_OPERANDS - 1):
        operator, number = operators[:, place], numbers[:, place + 1]
        times = operator == MUL
        ends = (operator == ADD) | (operator == SUB)
        total = np.where(ends, total + term, total)
        begun = np.where(operator == SUB, -number, number)
        term = np.where(times, term * number, np.where(ends, begun, term))
        largest = np.maximum(largest, np.maximum(np.abs(term), np.abs(total)))
    return total + term, np.maximum(largest, np.abs(total + term)) <= MOST


def _split_of(
    count: np.ndarray, operands: np.ndarray, operators: np.ndarray, database: np.ndarray
) -> np.ndarray:
    """(B,) int8: the index in `SPLITS`; where several things are held out, that of the last."""
    keys, asked = _keys_of(operands), is_key(operands)
    values = np.take_along_axis(database, keys, 1)
    split = np.zeros(len(count), np.int8)
    digits = np.flatnonzero((count == 2) & ~asked.any(1))
    split[digits] = PAIRS * HELD_OUT_PAIRS[operands[digits, 0], operands[digits, 1]]
    split[(HELD_OUT_VALUES[keys, values] & asked).any(1)] = VALUES
    for number in range(HELD_OUT_FROM, MAX_OPERANDS + 1):
        rows = np.flatnonzero(count == number)
        held_out = HELD_OUT_SKELETONS[number][skeleton_of(operators[rows, : number - 1])]
        split[rows[held_out]] = SKELETONS
    return split


def skeleton_of(operators: np.ndarray) -> np.ndarray:
    """(B,) numbers of (B, k) operator tokens: digits in base 3, the first most significant."""
    places = 3 ** np.arange(operators.shape[1] - 1, -1, -1)
    return (operators - ADD).astype(np.int64) @ places


# Drawing ------------------------------------------------------------------------------------


def draw(
    rng: np.random.Generator, stage: np.ndarray, split: int, smallest: np.ndarray
) -> ToolCallProblems:
    """A problem of the split for each of (B,) stages.

    Operators are equally likely, and what they are applied to as far as all results are within
    9999: digits and values from `smallest[stage]` on.

    Raises:
        ValueError: a stage has no problems of that split.
    """
    for one in np.unique(stage).tolist():
        if SPLITS[split] not in splits_of(one):
            raise ValueError(
                f"stage {one} has no problems of the split '{SPLITS[split]}'; its splits are "
                f"{', '.join(splits_of(one))}"
            )
    operators = _draw_operators(rng, OPERANDS[stage], split == SKELETONS)

    def candidates(rows: np.ndarray) -> ToolCallProblems:
        one = stage[rows]
        which = _draw_which_are_keys(rng, one, split)
        operands = _draw_operands(rng, which, smallest[one])
        if split == PAIRS:
            operands[:, :2] = _PAIRS[rng.integers(0, len(_PAIRS), len(rows))]
        database = _draw_database(rng, smallest[one])
        if split == VALUES:
            _hold_one_out(rng, operands, which, database, smallest[one])
        return compose(one, operands, operators[rows], database)

    problems, found = _accepted(
        len(stage), candidates, lambda drawn: drawn.within & (drawn.split == split)
    )
    if not found.all():
        raise RuntimeError(f"no problem of stage {stage[~found][0]} was found")
    return problems


def variants(
    rng: np.random.Generator, problems: ToolCallProblems, smallest: np.ndarray
) -> ToolCallProblems:
    """The same operators and places of keys; other digits, keys and databases, to practise."""
    stage, operators = problems.stage, problems.context[:, 1::2]
    which = is_key(problems.context[:, 0::2])

    def candidates(rows: np.ndarray) -> ToolCallProblems:
        operands = _draw_operands(rng, which[rows], smallest[stage[rows]])
        database = _draw_database(rng, smallest[stage[rows]])
        return compose(stage[rows], operands, operators[rows], database)

    # Their operators are what they are; nothing else that is held out comes in.
    return _redrawn(problems, candidates)


def siblings(
    rng: np.random.Generator, problems: ToolCallProblems, smallest: np.ndarray
) -> ToolCallProblems:
    """The same prompts; other databases, to practise."""
    stage, context = problems.stage, problems.context

    def candidates(rows: np.ndarray) -> ToolCallProblems:
        database = _draw_database(rng, smallest[stage[rows]])
        return with_database(stage[rows], context[rows], database)

    return _redrawn(problems, candidates)


def _redrawn(
    problems: ToolCallProblems, candidates: Callable[[np.ndarray], ToolCallProblems]
) -> ToolCallProblems:
    """Candidates within 9999; where a few draws find none, the problem as it is."""

    def fits(drawn: ToolCallProblems) -> np.ndarray:
        return drawn.within & (drawn.split != PAIRS)

    drawn, found = _accepted(len(problems), candidates, fits, rounds=3)
    rows = np.flatnonzero(~found)
    drawn.put(rows, problems.take(rows))
    return drawn


def _accepted(
    size: int,
    candidates: Callable[[np.ndarray], ToolCallProblems],
    fits: Callable[[ToolCallProblems], np.ndarray],
    rounds: int = _ROUNDS,
) -> tuple[ToolCallProblems, np.ndarray]:
    """The first candidate that fits for each of `size` rows, and (size,) bool: there was one."""
    problems = candidates(np.arange(size))
    found = fits(problems)
    for _ in range(rounds):
        missing = np.flatnonzero(~found)
        if not len(missing):
            break
        # Several at once for the few rows that are left: a round costs nearly the same.
        rows = np.repeat(missing, 1 + _CANDIDATES // len(missing))
        drawn = candidates(rows)
        fitting = np.flatnonzero(fits(drawn))
        which, first = np.unique(rows[fitting], return_index=True)
        problems.put(which, drawn.take(fitting[first]))
        found[which] = True
    return problems, found


def _draw_operators(rng: np.random.Generator, count: np.ndarray, from_held_out: bool) -> np.ndarray:
    """(B, 4) tokens for prompts with (B,) operands."""
    operators = rng.choice(OPERATORS, (len(count), MAX_OPERANDS - 1))
    for number in range(HELD_OUT_FROM, MAX_OPERANDS + 1):
        rows = np.flatnonzero(count == number)
        known = np.flatnonzero(HELD_OUT_SKELETONS[number] == from_held_out)
        skeleton = known[rng.integers(0, len(known), len(rows))]
        places = 3 ** np.arange(number - 2, -1, -1)
        operators[rows, : number - 1] = OPERATORS[skeleton[:, None] // places % 3]
    return operators


def _draw_which_are_keys(rng: np.random.Generator, stage: np.ndarray, split: int) -> np.ndarray:
    """(B, 5) bool."""
    kind, place = KEYS[stage][:, None], np.arange(MAX_OPERANDS)
    some = (kind == SOME_KEYS) & (rng.random((len(stage), MAX_OPERANDS)) < 0.5)
    if split == PAIRS:
        some[:] = False
    one = rng.integers(0, OPERANDS[stage])[:, None]
    sure = (kind == ONE_KEY) | ((kind == SOME_KEYS) & (split == VALUES))
    which = (kind == ALL_KEYS) | some | (sure & (place == one))
    return which & (place < OPERANDS[stage][:, None])


def _draw_operands(
    rng: np.random.Generator, which_are_keys: np.ndarray, smallest: np.ndarray
) -> np.ndarray:
    """(B, 5) tokens: keys, and digits from (B,) `smallest` on."""
    shape = which_are_keys.shape
    keys = rng.integers(FIRST_KEY, FIRST_KEY + NUM_KEYS, shape)
    digits = rng.integers(np.broadcast_to(smallest[:, None], shape), 10)
    return np.where(which_are_keys, keys, digits).astype(np.int8)


def _draw_database(rng: np.random.Generator, smallest: np.ndarray) -> np.ndarray:
    """(B, 8) int8: values from (B,) `smallest` on, none of them held out."""
    least = (_OTHERS[None] < smallest[:, None, None]).sum(2)  # (B, 8)
    return _OTHERS[np.arange(NUM_KEYS), rng.integers(least, _OTHERS.shape[1])]


def _hold_one_out(
    rng: np.random.Generator,
    operands: np.ndarray,
    which_are_keys: np.ndarray,
    database: np.ndarray,
    smallest: np.ndarray,
) -> None:
    """Gives one of the keys in each prompt a value that is held out, in place."""
    rows = np.arange(len(operands))
    place = np.argmax(which_are_keys * rng.random(which_are_keys.shape), axis=1)
    key = operands[rows, place] - FIRST_KEY
    least = (smallest[:, None, None] > _HELD_OUT).sum(2)[rows, key]
    database[rows, key] = _HELD_OUT[key, rng.integers(least, _HELD_OUT.shape[1])]


# Listing ------------------------------------------------------------------------------------

_LISTED = {
    0: (10,),  # digit
    1: (NUM_KEYS, NUM_VALUES),
    2: (3, 10, 10),  # operator and both digits
    3: (2, NUM_KEYS, 3, 10, NUM_VALUES),  # the key's place, key, operator, digit, value
}


def num_listed(stage: int) -> int | None:
    """How many problems a stage has; None if they are too many to be listed."""
    return int(np.prod(_LISTED[stage])) if stage in _LISTED else None


def listed(stage: int, start: int, stop: int) -> ToolCallProblems:
    """Problems `start`..`stop` of a listed stage.

    The keys that a prompt does not ask for have values that differ from problem to problem.
    """
    index = np.arange(start, stop)
    parts = np.unravel_index(index, _LISTED[stage])
    operands = np.zeros((len(index), MAX_OPERANDS), np.int64)
    operators = np.full((len(index), MAX_OPERANDS - 1), ADD)
    database = _OTHERS[
        np.arange(NUM_KEYS), (index[:, None] * 37 + np.arange(NUM_KEYS) * 11) % _OTHERS.shape[1]
    ]
    rows = np.arange(len(index))
    if stage in (0, 2):
        digits = parts[-OPERANDS[stage] :]
        operands[:, : len(digits)] = np.stack(digits, 1)
        operators[:, 0] = OPERATORS[parts[0]] if stage == 2 else ADD
    else:
        place, key = (parts[0], parts[1]) if stage == 3 else (np.zeros_like(index), parts[0])
        if stage == 3:
            operators[:, 0], operands[rows, 1 - place] = OPERATORS[parts[2]], parts[3]
        operands[rows, place] = FIRST_KEY + key
        database[rows, key] = parts[-1]
    return compose(np.full(len(index), stage), operands, operators, database)
