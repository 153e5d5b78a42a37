"""What programs of the task `toolcall` compute, told from what they wrote and were answered.

Shapes: B episodes, T actions, L context tokens, R tokens of a response, C answers of an episode.
"""

from __future__ import annotations

import numpy as np

from toolagent.tasks.toolcall_machine import COMMA, EQUALS, ERR, FIRST_KEY, NEG, PAD

_ODD = np.uint64(0x9E3779B97F4A7C15)
_DIGITS = 10  # tokens below it are digits
_OTHER = 1  # an argument that is in no answer and not in the problem
_ANSWER = 32  # + its number: an answer
_PLACE = 128  # + the place: a token of the context


def kinds(context: np.ndarray) -> np.ndarray:
    """(B,) int64: equal for prompts that differ in their digits and the names of keys only."""
    alike = np.where(context < _DIGITS, 0, np.where(_is_key(context), FIRST_KEY, context))
    return _polynomial(alike)


def dataflow(
    context: np.ndarray, actions: np.ndarray, lengths: np.ndarray, response: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `Task.dataflow`: calls by their tools, arguments by the answer or place they equal.

    An argument that equals an answer stands for that answer, the latest of several; else, one that
    equals an operand stands for its place, the first of several. Calls that were refused, and such
    that were not finished, are left out.
    """
    rows, steps = actions.shape
    happened = np.arange(steps) < lengths[:, None]
    refused = happened & (response[:, :, 0] == ERR)
    answered = happened & (response[:, :, 0] != PAD) & ~refused
    last = happened & (np.arange(steps) == lengths[:, None] - 1)
    finished = answered | (last & (actions == EQUALS) & ~refused)
    needed = _up_to(finished, refused | answered | last) & happened
    answers, known = _values(response), np.zeros(rows, np.int64)
    order = np.zeros((rows, steps), np.int64)  # the values of the answers, as they came
    number, negative = np.zeros(rows, np.int64), np.zeros(rows, bool)
    keys = np.zeros(rows, np.uint64)
    places = np.arange(steps)
    with np.errstate(over="ignore"):
        for step in range(int(lengths.max())):
            token, counts = actions[:, step].astype(np.int64), needed[:, step]
            is_digit = token < _DIGITS
            is_name = _is_key(token)
            ends_number = (token == COMMA) | (token == EQUALS)
            # What is written, as a value, or as a token where it is a key.
            value = np.where(negative, -number, number)
            found = (order == value[:, None]) & (places < known[:, None])
            source = np.where(found.any(1), _ANSWER + steps - 1 - found[:, ::-1].argmax(1), _OTHER)
            literal = context == np.where(is_name, token, value)[:, None]
            may_be = is_name | (~found.any(1) & (value >= 0) & (value < _DIGITS))
            in_problem = literal.any(1) & may_be
            source = np.where(in_problem, _PLACE + literal.argmax(1), source)
            part = np.where(ends_number | is_name, source, token)
            # A number's own tokens, and the `=` behind a key, say nothing more.
            silent = is_digit | (token == NEG)
            if step:
                silent |= (token == EQUALS) & _is_key(actions[:, step - 1])
            counts = counts & ~silent
            keys[counts] = keys[counts] * _ODD + part[counts].astype(np.uint64) + np.uint64(1)
            number = np.where(is_digit, 10 * number + token, 0)
            negative = (token == NEG) | (negative & is_digit)
            got = answered[:, step]
            order[got, known[got]] = answers[got, step]
            known[got] += 1
        keys = (keys * _ODD) >> np.uint64(1)
    return keys.astype(np.int64), needed


def _is_key(tokens: np.ndarray) -> np.ndarray:
    return (tokens >= FIRST_KEY) & (tokens < ERR)


def _polynomial(tokens: np.ndarray) -> np.ndarray:
    """(B,) int64: a hash of each row."""
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(tokens.shape[1], _ODD), dtype=np.uint64)
        mixed = ((tokens.astype(np.uint64) + np.uint64(1)) * powers).sum(1, dtype=np.uint64)
        return (mixed >> np.uint64(1)).astype(np.int64)


def _values(response: np.ndarray) -> np.ndarray:
    """(B, T) int64: the numbers that responses spell; 0 where there is none."""
    value = np.zeros(response.shape[:2], np.int64)
    for place in range(response.shape[2]):
        token = response[:, :, place]
        value = np.where(token < _DIGITS, 10 * value + token, value)
    return np.where(response[:, :, 0] == NEG, -value, value)


def _up_to(good: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(B, T) bool: the next place with an end, this one included, is a good one."""
    steps = ends.shape[1]
    place = np.where(ends, np.arange(steps), steps)
    following = np.minimum.accumulate(place[:, ::-1], 1)[:, ::-1]  # (B, T) the next end
    padded = np.concatenate([good, np.zeros((len(good), 1), bool)], 1)
    return np.take_along_axis(padded, following, 1)
