"""Problems of the task `toolcall` as texts: prompts such as `3*B+C-7`, and databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolagent.tasks.infix import quoted
from toolagent.tasks.toolcall_machine import (
    ADD,
    FIRST_KEY,
    MOST,
    MUL,
    NUM_KEYS,
    PAD,
    SUB,
    VOCABULARY,
)
from toolagent.tasks.toolcall_problems import (
    ALL_KEYS,
    CONTEXT_LENGTH,
    KEYS,
    MAX_OPERANDS,
    NO_KEYS,
    NUM_STAGES,
    NUM_VALUES,
    ONE_KEY,
    OPERANDS,
    ToolCallProblems,
    is_key,
    with_database,
)

EXAMPLE = "B*C"  # short enough for the stages that the shipped configuration trains on
EXAMPLE_DATABASE = (19, 83, 86, 8, 1, 48, 2, 2)

_TOKENS = {str(digit): digit for digit in range(10)} | {
    **{"*": MUL, "+": ADD, "-": SUB},
    **{VOCABULARY.names[token]: token for token in range(FIRST_KEY, FIRST_KEY + NUM_KEYS)},
}
_BYTES = np.zeros(len(VOCABULARY), np.uint8)  # by token; `PAD` is NUL, which NumPy strips
for _character, _token in _TOKENS.items():
    _BYTES[_token] = ord(_character)
_QUOTED = 60  # characters of a text that an error quotes
_ACCEPTED = "an expression has digits 0-9, keys A-H, + - * and spaces"


def texts_of(contexts: np.ndarray) -> np.ndarray:
    """(B,) texts of (B, L) contexts, with no Python for each of them."""
    characters = np.ascontiguousarray(_BYTES[contexts])  # (B, L)
    return characters.view(f"S{contexts.shape[1]}")[:, 0].astype(str)


def read_problems(expressions: Any, databases: Any, stage: np.ndarray | None) -> ToolCallProblems:
    """The problems that texts pose.

    Args:
        expressions: a text, or a sequence of B.
        databases: (8,) or (B, 8) integers 0..99, a text of eight numbers or a sequence of B; None
            where no expression has a key.
        stage: (B,) or one for all; None: of each the smallest that it fits.

    Raises:
        ValueError: a text is no expression, a longer one than is read or one that can't be
            answered, or not of the stage; a database is missing, no eight numbers or out of range.
    """
    several = isinstance(expressions, (list, tuple, np.ndarray))
    texts = [*expressions] if several else [expressions]
    context = np.full((len(texts), CONTEXT_LENGTH), PAD, np.int8)
    for row, text in enumerate(texts):
        tokens = _tokens_of(text)
        context[row, : len(tokens)] = tokens
    stages = _stages_of(context, stage)
    database = _databases_of(databases, context)
    problems = with_database(stages, context, database)
    for row in np.flatnonzero(np.abs(problems.target) > MOST)[:1]:
        raise ValueError(
            f"{texts_of(context)[row]} is {problems.target[row]}; no answer can be beyond "
            f"{MOST} in size"
        )
    return problems


def _tokens_of(text: Any) -> list[int]:
    """The tokens of one expression, without spaces."""
    if not isinstance(text, str):
        raise ValueError(f"an expression is a text such as '{EXAMPLE}', not {text!r:.{_QUOTED}}")
    if len(text) > 10 * CONTEXT_LENGTH:
        raise ValueError(
            f"{quoted(text)} has {len(text):,} characters; at most {MAX_OPERANDS} operands are read"
        )
    for place, character in enumerate(text, 1):
        if character not in _TOKENS and character != " ":
            raise ValueError(
                f"{quoted(text)}: {character!a} (character {place}) is not understood; {_ACCEPTED}"
            )
    symbols = [character for character in text if character != " "]
    for place, symbol in enumerate(symbols):
        is_operator = symbol in "+-*"
        if is_operator != bool(place % 2):
            expected = "an operator" if place % 2 else "a digit or a key"
            hint = "" if is_operator else "; operands are single digits and keys"
            raise ValueError(f"{quoted(text)}: expected {expected} before '{symbol}'{hint}")
    if len(symbols) % 2 == 0:
        raise ValueError(f"{quoted(text)}: expected a digit or a key at the end")
    if len(symbols) > CONTEXT_LENGTH:
        raise ValueError(
            f"{quoted(text)} has {len(symbols) // 2 + 1} operands; at most {MAX_OPERANDS} are read"
        )
    return [_TOKENS[symbol] for symbol in symbols]


def _stages_of(context: np.ndarray, asked: np.ndarray | None) -> np.ndarray:
    """(B,) the stages asked for, if the prompts are of them, else the smallest that they are of."""
    counts, keys = (context[:, 0::2] != PAD).sum(1), is_key(context).sum(1)
    fits = np.stack([_fits(stage, counts, keys) for stage in range(NUM_STAGES)], 1)  # (B, 9)
    if asked is None:
        return fits.argmax(1)
    if asked.shape not in ((), (1,), (len(context),)):
        raise ValueError(f"{asked.size} stages for {len(context)} expressions")
    stages = np.broadcast_to(asked, len(context))
    for row in np.flatnonzero(~fits[np.arange(len(context)), stages])[:1]:
        right = np.flatnonzero(fits[row]).tolist()
        raise ValueError(
            f"{texts_of(context)[row]} is of stage {' or '.join(map(str, right))}, by its "
            f"operands and keys, not of stage {stages[row]}"
        )
    return stages


def _fits(stage: int, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(B,) bool: prompts with so many operands and keys are of the stage."""
    right = {NO_KEYS: keys == 0, ALL_KEYS: keys == counts, ONE_KEY: keys == 1}
    return (counts == OPERANDS[stage]) & right.get(int(KEYS[stage]), True)


def _databases_of(given: Any, context: np.ndarray) -> np.ndarray:
    """(B, 8) integers 0..99."""
    size = len(context)
    if given is None:
        for row in np.flatnonzero(is_key(context).any(1))[:1]:
            raise ValueError(
                f"{texts_of(context)[row]} has a key: 'database' is missing, the eight values of "
                "the keys A to H"
            )
        return np.zeros((size, NUM_KEYS), np.int64)
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, np.ndarray):
        given = [_numbers_of(one) for one in given]
    elif given.dtype.kind in "UOT":
        given = [_numbers_of(one) for one in given.tolist()]
    try:
        values = np.asarray(given)
    except ValueError:  # of different lengths
        raise ValueError(_WANTED) from None
    if values.dtype.kind not in "iu" or values.shape not in (
        *((NUM_KEYS,), (1, NUM_KEYS)),
        (size, NUM_KEYS),
    ):
        raise ValueError(f"{_WANTED}, one or {size} of them; got shape {values.shape}")
    if ((values < 0) | (values >= NUM_VALUES)).any():
        raise ValueError(f"{_WANTED}; {values[(values < 0) | (values >= NUM_VALUES)][0]} is none")
    return np.broadcast_to(values, (size, NUM_KEYS))


_WANTED = f"a database is {NUM_KEYS} whole numbers 0..{NUM_VALUES - 1}, separated by spaces"


def _numbers_of(one: Any) -> Any:
    """A text of numbers as a list; anything else as it is."""
    if not isinstance(one, str):
        return one
    words: Sequence[str] = one.split()
    if len(words) != NUM_KEYS or not all(word.isdecimal() and len(word) < 4 for word in words):
        raise ValueError(f"{_WANTED}; got {quoted(one)}")
    return [int(word) for word in words]
