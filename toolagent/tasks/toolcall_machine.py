"""The machine of the task `toolcall`: it reads calls token by token and answers with tokens.

A call is read by an automaton of 12 states. Its state and, where a number is being written, how
many of its digits there are already make an episode's *status*. What a token does depends on the
status and the token alone, so one table says it; only a finished call needs arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolagent.tasks.base import Registers
from toolagent.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    actions=(*"0123456789", "NEG", "ADD", "SUB", "MUL", "GET", "ANS", ",", "=", *"ABCDEFGH"),
    observed=("ERR", "PAD"),
    start="PAD",
    pad="PAD",
    answer="ANS",
)
NEG, ADD, SUB, MUL, GET, ANS, COMMA, EQUALS, FIRST_KEY = range(10, 19)
ERR, PAD = VOCABULARY.token("ERR"), VOCABULARY.token("PAD")
NUM_KEYS = 8
MOST_DIGITS = 4  # of a number that is written
MOST = 9999  # in size, of a number that a tool answers with
RESPONSE_LENGTH = 6

# Statuses. A number has three kinds: nothing of it is written, its `NEG` is, or 1 to 4 digits are.
EMPTY = 0
GET_WHICH = 1  # 'GET'
GET_KEY = 2  # 'GET A'
FIRST = 3  # 'ADD', 4 'ADD NEG', 5..8 'ADD 1' to 'ADD 1234'; likewise SUB and MUL
SECOND = 9  # 'ADD 1 ,', 10 'ADD 1 , NEG', 11..14 'ADD 1 , 1' to 'ADD 1 , 1234'
ANSWER = 15  # 'ANS', 16 'ANS NEG', 17..20 'ANS 1' to 'ANS 1234'
ANSWERED = 21  # 'ANS 1 =': the episode is over
NUM_STATUSES = 22
_NEGATIVE, _DIGITS = 1, 2  # behind FIRST, SECOND and ANSWER

NO_ANSWER = 20_000  # in `ToolCallRegisters.last`: no call was answered yet
REFUSED_RESULT = 20_001  # the last call's result was too large

# What a token does besides leading to another status.
_REFUSED, _ON, _TOOL, _ANSWER = range(4)


def _tables() -> tuple[np.ndarray, ...]:
    """What each token does in each status; (NUM_STATUSES * num_actions,) each.

    The next status; one of the effects above; the factor and the summand that the number being
    written becomes; whether its sign is kept, and whether it becomes negative.
    """
    shape = (NUM_STATUSES, VOCABULARY.num_actions)
    status, effect, sign_kept, negative = (np.zeros(shape, np.int8) for _ in range(4))
    factor, summand = np.zeros(shape, np.int16), np.zeros(shape, np.int16)

    def leads(start: int, token: int, end: int, does: int = _ON) -> None:
        status[start, token], effect[start, token] = end, does

    leads(EMPTY, GET, GET_WHICH)
    for tool in (ADD, SUB, MUL):
        leads(EMPTY, tool, FIRST)
    leads(EMPTY, ANS, ANSWER)
    for key in range(NUM_KEYS):
        leads(GET_WHICH, FIRST_KEY + key, GET_KEY)
        summand[GET_WHICH, FIRST_KEY + key] = key
    leads(GET_KEY, EQUALS, EMPTY, _TOOL)
    factor[GET_KEY, EQUALS] = 1
    for begin in (FIRST, SECOND, ANSWER):
        leads(begin, NEG, begin + _NEGATIVE)
        negative[begin, NEG] = 1
        for digit in range(10):
            leads(begin, digit, begin + _DIGITS)
            for before in range(begin + _NEGATIVE, begin + _DIGITS + MOST_DIGITS - 1):
                leads(before, digit, before + 1)
            written = slice(begin, begin + _DIGITS + MOST_DIGITS - 1)
            factor[written, digit], summand[written, digit] = 10, digit
            sign_kept[written, digit] = 1
        for before in range(begin + _DIGITS, begin + _DIGITS + MOST_DIGITS):
            if begin == FIRST:
                leads(before, COMMA, SECOND)
            else:
                end, does = (EMPTY, _TOOL) if begin == SECOND else (ANSWERED, _ANSWER)
                leads(before, EQUALS, end, does)
                factor[before, EQUALS], sign_kept[before, EQUALS] = 1, 1
    tables = (status, effect, factor, summand, sign_kept.astype(bool), negative.astype(bool))
    return tuple(table.reshape(-1) for table in tables)


_STATUS, _EFFECT, _FACTOR, _SUMMAND, _SIGN_KEPT, _BECOMES_NEGATIVE = _tables()


def _answers() -> np.ndarray:
    """(2 * MOST + 1, RESPONSE_LENGTH) int8: the tokens of every value from -MOST on."""
    tokens = np.full((2 * MOST + 1, RESPONSE_LENGTH), PAD, np.int8)
    for value in range(MOST + 1):
        digits = [int(digit) for digit in str(value)]
        tokens[MOST + value, : len(digits)] = digits
        if value:
            tokens[MOST - value, : len(digits) + 1] = [NEG, *digits]
    return tokens


_ANSWERS = _answers()


def answer_tokens(values: np.ndarray) -> np.ndarray:
    """(B, RESPONSE_LENGTH) int8: what tools answer with for (B,) values up to MOST in size."""
    return _ANSWERS[values + MOST]


@dataclass
class ToolCallRegisters(Registers):
    """How far the call in each of B episodes is written, and what was answered before."""

    status: np.ndarray  # (B,) int8
    tool: np.ndarray  # (B,) int8: the token that began the call; not cleared when it is over
    first: np.ndarray  # (B,) int16: the first number of `tool num , num =`
    # (B,) int16: the number that is being written, without its sign, 0 at its beginning; the key,
    # 0..7, in `GET key`
    value: np.ndarray
    negative: np.ndarray  # (B,) bool: it has a sign
    answered: np.ndarray  # (B,) int8: calls that were answered with a value
    last: np.ndarray  # (B,) int16: the value; or NO_ANSWER, or REFUSED_RESULT


@dataclass(frozen=True)
class Read:
    """What reading one token did in each of B episodes."""

    registers: ToolCallRegisters  # after it
    response: np.ndarray  # (B, RESPONSE_LENGTH) int8
    ended: np.ndarray  # (B,) bool: `ANS num =` is complete


def empty_registers(size: int) -> ToolCallRegisters:
    """Those of `size` episodes that begin."""
    return ToolCallRegisters(
        steps=np.zeros(size, np.int8),
        status=np.zeros(size, np.int8),
        tool=np.zeros(size, np.int8),
        first=np.zeros(size, np.int16),
        value=np.zeros(size, np.int16),
        negative=np.zeros(size, bool),
        answered=np.zeros(size, np.int8),
        last=np.full(size, NO_ANSWER, np.int16),
    )


def read_tokens(registers: ToolCallRegisters, actions: np.ndarray, database: np.ndarray) -> Read:
    """One more token in each of B episodes.

    Args:
        registers: of B episodes; they are not changed.
        actions: (B,) integers, action tokens.
        database: (B, NUM_KEYS) integers.
    """
    tokens = actions.astype(np.int8)
    place = registers.status * np.int16(VOCABULARY.num_actions) + tokens
    effect = _EFFECT[place]
    value = registers.value * _FACTOR[place] + _SUMMAND[place]
    negative = (registers.negative & _SIGN_KEPT[place]) | _BECOMES_NEGATIVE[place]
    first = np.where(tokens == COMMA, signed(registers), registers.first)
    tool = np.where(registers.status == EMPTY, tokens, registers.tool)
    answered, last = registers.answered.copy(), registers.last.copy()
    response = np.full((len(tokens), RESPONSE_LENGTH), PAD, np.int8)
    response[effect == _REFUSED, 0] = ERR
    rows = np.flatnonzero(effect == _TOOL)
    if len(rows):
        result = _results(registers.take(rows), database[rows])
        fits = np.abs(result) <= MOST
        response[rows[fits]] = answer_tokens(result[fits])
        response[rows[~fits], 0] = ERR
        answered[rows] += fits
        last[rows] = np.where(fits, result, REFUSED_RESULT)
    after = ToolCallRegisters(
        steps=registers.steps + np.int8(1),
        status=_STATUS[place],
        tool=tool,
        first=first,
        value=value,
        negative=negative,
        answered=answered,
        last=last,
    )
    return Read(after, response, effect == _ANSWER)


def signed(registers: ToolCallRegisters) -> np.ndarray:
    """(B,) int16: the numbers that are being written, with their signs."""
    return np.where(registers.negative, -registers.value, registers.value)


def _results(registers: ToolCallRegisters, database: np.ndarray) -> np.ndarray:
    """(B,) int32: what the calls that are complete but for `=` come to."""
    first, second = registers.first.astype(np.int32), signed(registers).astype(np.int32)
    key = np.where(registers.tool == GET, registers.value, 0)
    return np.choose(
        registers.tool - ADD,
        [first + second, first - second, first * second, database[np.arange(len(key)), key]],
    )


def call_text(registers: ToolCallRegisters, row: int) -> str | None:
    """The call that one episode has written so far: 'MUL 12 , NEG'; None where there is none."""
    status = int(registers.status[row])
    if status == EMPTY:
        return None
    if status == ANSWERED:
        return f"ANS {int(signed(registers)[row])} ="
    names = VOCABULARY.names
    parts = [names[int(registers.tool[row])]]
    if status == GET_KEY:
        parts.append(names[FIRST_KEY + int(registers.value[row])])
    if status >= FIRST:
        begin = max(start for start in (FIRST, SECOND, ANSWER) if start <= status)
        if begin == SECOND:
            parts += [str(int(registers.first[row])), ","]
        if status == begin + _NEGATIVE:
            parts.append("NEG")
        if status >= begin + _DIGITS:
            parts.append(str(int(signed(registers)[row])))
    return " ".join(parts)
