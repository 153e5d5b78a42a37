"""Vocabularies: the tokens that an agent reads and writes, one vocabulary for each task."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST_TOKENS = 128  # tokens are kept as int8


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a task, by name; a token's number is its place in `names`.

    Every action is legal everywhere; one that means nothing in a state changes nothing and costs
    a step.

    Args:
        actions: what the agent can write; the tokens below `num_actions`.
        observed: further tokens, which the agent reads and never writes.
        start: the previous token of an episode's first step; any of the names.
        pad: fills contexts that are shorter than `context_length`; any of the names.
        answer: the action that answers; it ends an episode unless `Task.answer_ends` is False.

    Raises:
        ValueError: a name that is empty, has a space in it or is there twice, more than 128 names,
            or `start`, `pad` or `answer` is none of them.
    """

    actions: tuple[str, ...]
    observed: tuple[str, ...] = ()
    start: str = "START"
    pad: str = "PAD"
    answer: str = "ANSWER"

    def __post_init__(self) -> None:
        for field in ("actions", "observed"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise ValueError(f"vocabulary: {field} is {value!r}; expected a tuple of names")
            object.__setattr__(self, field, tuple(value))
        for name in self.names:
            if not isinstance(name, str) or not name or any(map(str.isspace, name)):
                raise ValueError(f"vocabulary: {name!r} is no name; expected text without a space")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"vocabulary: the name '{twice}' is there twice")
        if len(self) > MOST_TOKENS:
            raise ValueError(f"vocabulary: {len(self)} tokens; at most {MOST_TOKENS} are possible")
        for role, names in (("start", self.names), ("pad", self.names), ("answer", self.actions)):
            if getattr(self, role) not in names:
                kind = "an action" if names is self.actions else "a token"
                raise ValueError(
                    f"vocabulary: {role} is {getattr(self, role)!r}, no name of {kind}"
                )

    def __len__(self) -> int:
        """How many tokens there are, actions and others."""
        return len(self.actions) + len(self.observed)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all tokens by number: the actions, then what is only observed."""
        return (*self.actions, *self.observed)

    @property
    def num_actions(self) -> int:
        """Tokens below it are actions."""
        return len(self.actions)

    @functools.cached_property
    def start_token(self) -> int:
        """The number of `start`."""
        return self.token(self.start)

    @functools.cached_property
    def pad_token(self) -> int:
        """The number of `pad`."""
        return self.token(self.pad)

    @functools.cached_property
    def answer_token(self) -> int:
        """The number of `answer`."""
        return self.token(self.answer)

    @functools.cached_property
    def num_previous_tokens(self) -> int:
        """The previous token is below it: an action, or at the first step `start`."""
        return max(self.num_actions, self.start_token + 1)

    def token(self, name: str) -> int:
        """The number of a token.

        Raises:
            ValueError: there is no token of that name.
        """
        if name not in self.names:
            raise ValueError(f"no token '{name}'; there is {' '.join(self.names)}")
        return self.names.index(name)

    def text(self, tokens: Iterable[int]) -> str:
        """The names of tokens separated by spaces: 'MUL ADD ANS'."""
        return " ".join(self.names[int(token)] for token in tokens)

    def check_actions(self, actions: object, shape: tuple[int, ...]) -> np.ndarray:
        """The actions as an integer array of `shape`.

        Raises:
            ValueError: the shape differs, the values are no integers, or one is no action.
        """
        array = np.asarray(actions)
        if array.shape != shape:
            raise ValueError(f"actions have shape {array.shape}; expected {shape}")
        last = self.num_actions - 1
        if array.dtype.kind not in "iu":
            raise ValueError(f"actions have dtype {array.dtype}; expected integers 0..{last}")
        # One pass for both bounds: a negative integer is huge when its bits are read as unsigned.
        if array.size and array.view(f"u{array.dtype.itemsize}").max() > last:
            bad = array[(array < 0) | (array > last)].flat[0]
            raise ValueError(f"action {bad} is no token; actions are integers 0..{last}")
        return array


class Interface(NamedTuple):
    """What passes between a task and an agent: what a network has to know of the task."""

    vocabulary: Vocabulary
    num_stages: int  # stage numbers are below it
    context_length: int
    max_actions: int  # of an episode
    response_length: int = 0  # tokens that an action is answered with

    @property
    def context_vocabulary(self) -> int:
        """Tokens that are read are below it."""
        return len(self.vocabulary)

    @property
    def num_actions(self) -> int:
        """Tokens that are written are below it."""
        return self.vocabulary.num_actions
