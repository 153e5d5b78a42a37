"""The vocabulary: 18 tokens that are both what the agent reads and what it does.

Every token is a legal action everywhere; one that means nothing in a state changes nothing
and costs a step. An integer outside 0..17 is a bug in the caller and raises (`check_actions`).
"""

from __future__ import annotations

import numpy as np

CTX = 10  # ends the shown digits of a context; also the "previous token" of the first step
MUL = 11
ADD = 12
SUB = 13
ANS = 14  # answers and ends the episode
STO = 15
RCL = 16
EOS = 17  # pads a context to its full length

NUM_TOKENS = 18

TOKEN_NAMES: tuple[str, ...] = (
    *(str(digit) for digit in range(10)),
    "CTX",
    "MUL",
    "ADD",
    "SUB",
    "ANS",
    "STO",
    "RCL",
    "EOS",
)


def names(tokens) -> str:
    """The tokens' names separated by spaces: `names([11, 12, 14]) == "MUL ADD ANS"`."""
    return " ".join(TOKEN_NAMES[int(token)] for token in tokens)


def check_actions(actions, shape: tuple[int, ...]) -> np.ndarray:
    """The actions as an integer array of `shape`.

    Raises:
        ValueError: the shape differs, the values are no integers, or one lies outside 0..17.
    """
    array = np.asarray(actions)
    if array.shape != shape:
        raise ValueError(f"actions have shape {array.shape}; expected {shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"actions have dtype {array.dtype}; expected integers 0..{NUM_TOKENS - 1}")
    # One pass for both bounds: a negative integer is huge when its bits are read as unsigned.
    if array.size and array.view(f"u{array.dtype.itemsize}").max() >= NUM_TOKENS:
        bad = array[(array < 0) | (array >= NUM_TOKENS)].flat[0]
        raise ValueError(f"action {bad} is no token; actions are integers 0..{NUM_TOKENS - 1}")
    return array
