"""What programs of the task `toolcall` compute, told from what they wrote and were answered.

Shapes: B episodes, T actions, L context tokens, R tokens of a response, C answers of an episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.tasks.toolcall_machine import COMMA, EQUALS, ERR, FIRST_KEY, NEG, PAD

_ODD = np.uint64(0x9E3779B97F4A7C15)
_DIGITS = 10  # tokens below it are digits
_OTHER = 1  # an argument that is in no answer and not in the problem
_SILENT = 0  # nothing is said
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

    An argument that equals an answer stands for that answer; one that equals an operand, for its
    place. Where an argument equals several of them, or where nothing was answered in the end, no
    action counts as needed: what was computed is not known, and what is right by such a coincidence
    only would look as if it were always right. Calls that were refused, that were not finished, or
    whose answers lead to nothing in the final one, are left out.
    """
    rows, steps = actions.shape
    happened = np.arange(steps) < lengths[:, None]
    refused = happened & (response[:, :, 0] == ERR)
    answered = happened & (response[:, :, 0] != PAD) & ~refused
    last = np.arange(steps) == lengths[:, None] - 1
    final = last & (actions == EQUALS) & ~refused & ~answered
    finished = _up_to(answered | final, refused | answered | last) & happened
    # The number of the answered call that a step belongs to; behind the last one, the final call's.
    call = np.cumsum(answered, 1) - answered
    parts, source, ambiguous = _arguments(
        context, actions, int(lengths.max()), finished, answered, response
    )
    known: Any = final.any(1) & ~ambiguous
    live = _leads_to_the_end(call, source, known)
    needed = finished & np.take_along_axis(live, call, 1)
    # Answers are numbered without those that lead to nothing.
    number = np.cumsum(live, 1) - live
    renumbered = np.take_along_axis(number, np.maximum(source, 0), 1)
    parts = np.where(source >= 0, _ANSWER + renumbered, parts)
    keys = np.zeros(rows, np.uint64)
    with np.errstate(over="ignore"):
        for step in range(int(lengths.max())):
            counts = needed[:, step] & (parts[:, step] != _SILENT)
            part = parts[counts, step].astype(np.uint64)
            keys[counts] = keys[counts] * _ODD + part + np.uint64(1)
        keys = (keys * _ODD) >> np.uint64(1)
    return keys.astype(np.int64), needed


def _arguments(
    context: np.ndarray,
    actions: np.ndarray,
    steps: int,
    finished: np.ndarray,
    answered: np.ndarray,
    response: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each step says of its call: a tool, or with the token behind it, an argument.

    Args:
        context: (B, L).
        actions: (B, T), of which the first `steps` are looked at.
        steps: the longest episode's.
        finished: (B, T) bool: the step's call was finished.
        answered: (B, T) bool: a call ends here and was answered with a value.
        response: (B, T, R).

    Returns:
        (B, T) int64: the part, or `_SILENT`; (B, T) int64: the number of the answer that it stands
        for, -1 where it does not; and (B,) bool: that is not known of one.
    """
    rows, most = actions.shape
    parts, source = np.full((rows, most), _SILENT), np.full((rows, most), -1)
    answers, known = _values(response), np.zeros(rows, np.int64)
    order = np.zeros((rows, most), np.int64)  # the values of the answers, as they came
    number, negative = np.zeros(rows, np.int64), np.zeros(rows, bool)
    places, before, ambiguous = np.arange(most), np.zeros(rows, np.int64), np.zeros(rows, bool)
    for step in range(steps):
        token = actions[:, step].astype(np.int64)
        is_digit, is_name = token < _DIGITS, _is_key(token)
        # What is written, as a value, or as a token where it is a key.
        value = np.where(negative, -number, number)
        ends = ((token == COMMA) | (token == EQUALS)) & ~_is_key(before) & finished[:, step]
        found = (order == value[:, None]) & (places < known[:, None]) & ends[:, None]
        count = found.sum(1)
        copied = count > 0
        source[copied, step] = found[copied].argmax(1)
        literal = context == np.where(is_name, token, value)[:, None]
        literal &= (is_name | (ends & (value >= 0) & (value < _DIGITS)))[:, None]
        places_of = literal.sum(1)
        in_problem = places_of > 0
        ambiguous |= finished[:, step] & (count + places_of > 1)
        place = np.where(in_problem, _PLACE + literal.argmax(1), _OTHER)
        part = np.where(ends | is_name, place, token)
        # A number's own tokens, and the `=` behind a key, say nothing more.
        silent = is_digit | (token == NEG) | ((token == EQUALS) & _is_key(before))
        parts[:, step] = np.where(silent, _SILENT, part)
        number = np.where(is_digit, 10 * number + token, 0)
        negative = (token == NEG) | (negative & is_digit)
        got = answered[:, step]
        order[got, known[got]] = answers[got, step]
        known[got] += 1
        before = token
    return parts, source, ambiguous


def _leads_to_the_end(call: np.ndarray, source: np.ndarray, final: Any) -> np.ndarray:
    """(B, C) bool: the answered call's answer leads to the final one; the final call itself does.

    Args:
        call: (B, T) the number of the call that a step belongs to.
        source: (B, T) the number of the answer that the step's argument is; -1: none.
        final: (B,) bool: there is a final call.
    """
    rows, calls = len(call), int(call.max()) + 1
    uses = np.zeros((rows, calls, calls), bool)
    row, step = np.nonzero(source >= 0)
    uses[row, call[row, step], source[row, step]] = True
    live = np.zeros((rows, calls), bool)
    live[np.arange(rows), call[:, -1]] = final
    for number in reversed(range(calls)):
        live |= live[:, number, None] & uses[:, number]
    return live


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
