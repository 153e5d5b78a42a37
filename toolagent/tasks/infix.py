"""Infix expressions as text and as tokens: reading what a person wrote, and writing it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.tokens import ADD, MUL, SUB
from toolagent.tasks.tokens import VOCABULARY as WITHOUT_PARENTHESES

VOCABULARY = dataclasses.replace(WITHOUT_PARENTHESES, observed=("(", ")"))
OPEN, CLOSE = VOCABULARY.token("("), VOCABULARY.token(")")

_TOKENS = {str(digit): digit for digit in range(10)} | {
    "*": MUL,
    "+": ADD,
    "-": SUB,
    "(": OPEN,
    ")": CLOSE,
}
_TIGHTNESS = {OPEN: 0, ADD: 1, SUB: 1, MUL: 2}  # nothing is tight enough to reach across a '('
_DIGIT_TIGHTNESS = 3
# Bytes by token; what ends or pads a context is NUL, which NumPy strips from the end of a text.
_BYTES = np.zeros(len(VOCABULARY), np.uint8)
for _character, _token in _TOKENS.items():
    _BYTES[_token] = ord(_character)
_QUOTED = 60  # characters of a text that an error quotes
_ACCEPTED = "an expression has digits 0-9, + - *, ( ) and spaces"


@dataclass(frozen=True)
class Expression:
    """A text that was understood. Operator j stands between the operands j and j+1."""

    tokens: tuple[int, ...]  # as in a context, without the CTX behind it
    postfix: tuple[int, ...]  # the digits, and each operator behind what it is applied to
    value: int
    operators: tuple[int, ...]  # k-1 tokens
    spans: tuple[tuple[int, int], ...]  # k-1: the first and the last operand under each operator

    @property
    def operands(self) -> int:
        """k."""
        return len(self.operators) + 1


def parse(text: str, max_operands: int, max_tokens: int) -> Expression:
    """Reads `(3+4)*2`: single digits, `+ - *`, parentheses, spaces; usual precedence.

    `*` before `+` and `-`, equals from left to right: Dijkstra's shunting-yard algorithm (1961,
    "ALGOL-60 Translation").

    Raises:
        ValueError: anything else, or more than is read; one line with what would be right.
    """
    reader = _Reader(text, _characters(text, max_tokens))
    for token in reader.tokens:
        reader.take(token)
    expression = reader.finish()
    if expression.operands > max_operands:
        raise ValueError(
            f"{quoted(text)} has {expression.operands} operands; at most {max_operands} are read"
        )
    if len(expression.tokens) > max_tokens:
        raise ValueError(
            f"{quoted(text)} has {len(expression.tokens)} digits, operators and parentheses; "
            f"at most {max_tokens} are read"
        )
    return expression


def _characters(text: str, max_tokens: int) -> tuple[int, ...]:
    """The text's tokens, without spaces."""
    if not isinstance(text, str):
        raise ValueError(f"an expression is a text such as '(3+4)*2', not {text!r:.{_QUOTED}}")
    # Whoever writes spaces may use some more; a text much longer than that is none of ours.
    if len(text) > 10 * max_tokens:
        raise ValueError(
            f"{quoted(text)} has {len(text):,} characters; "
            f"at most {max_tokens} digits, operators and parentheses are read"
        )
    for place, character in enumerate(text, 1):
        if character not in _TOKENS and character != " ":
            raise ValueError(
                f"{quoted(text)}: {character!a} (character {place}) is not understood; {_ACCEPTED}"
            )
    return tuple(_TOKENS[character] for character in text if character in _TOKENS)


@dataclass(frozen=True)
class _Part:
    """What was read of an expression and is one operand of what follows."""

    value: int
    first: int  # operand
    last: int


class _Reader:
    """The algorithm's state: parts that wait for an operator, operators that wait for a part."""

    def __init__(self, text: str, tokens: Sequence[int]):
        self.text, self.tokens = text, tuple(tokens)
        self.parts: list[_Part] = []
        self.waiting: list[int] = []
        self.postfix: list[int] = []
        self.nodes: dict[int, tuple[int, int, int]] = {}  # operator's place: token, first, last
        self.operands = 0
        self.wants_operand = True

    def take(self, token: int) -> None:
        """Reads one more token."""
        if token < 10 and self.wants_operand:
            self.parts.append(_Part(token, self.operands, self.operands))
            self.postfix.append(token)
            self.operands += 1
            self.wants_operand = False
        elif token == OPEN and self.wants_operand:
            self.waiting.append(token)
        elif token == CLOSE and not self.wants_operand:
            self._apply_down_to(1)
            if not self.waiting:
                raise ValueError(f"{quoted(self.text)}: a ')' without its '('")
            self.waiting.pop()
        elif token in (MUL, ADD, SUB) and not self.wants_operand:
            self._apply_down_to(_TIGHTNESS[token])
            self.waiting.append(token)
            self.wants_operand = True
        else:
            hint = "; operands are single digits" if token < 10 else ""
            raise ValueError(self._expected(f"before '{chr(_BYTES[token])}'{hint}"))

    def finish(self) -> Expression:
        """What was read, if it is complete."""
        if self.wants_operand:
            raise ValueError(self._expected("at the end"))
        self._apply_down_to(1)
        if self.waiting:
            raise ValueError(f"{quoted(self.text)}: a '(' without its ')'")
        nodes = [self.nodes[place] for place in range(self.operands - 1)]
        return Expression(
            tokens=self.tokens,
            postfix=tuple(self.postfix),
            value=self.parts[0].value,
            operators=tuple(operator for operator, _, _ in nodes),
            spans=tuple((first, last) for _, first, last in nodes),
        )

    def _apply_down_to(self, tightness: int) -> None:
        """Applies the waiting operators that are at least as tight, up to the last '('."""
        while self.waiting and _TIGHTNESS[self.waiting[-1]] >= tightness:
            operator = self.waiting.pop()
            right, left = self.parts.pop(), self.parts.pop()
            self.postfix.append(operator)
            self.nodes[left.last] = (operator, left.first, right.last)
            value = {
                MUL: left.value * right.value,
                ADD: left.value + right.value,
                SUB: left.value - right.value,
            }[operator]
            self.parts.append(_Part(value, left.first, right.last))

    def _expected(self, where: str) -> str:
        expected = "a digit or '('" if self.wants_operand else "an operator"
        return f"{quoted(self.text)}: expected {expected} {where}"


def texts_of(contexts: np.ndarray) -> np.ndarray:
    """(B,) texts of (B, L) contexts, with no Python for each of them."""
    characters = np.ascontiguousarray(_BYTES[contexts])  # (B, L)
    return characters.view(f"S{contexts.shape[1]}")[:, 0].astype(str)


def text_of(context: np.ndarray) -> str:
    """One (L,) context as text: '(3+4)*2'."""
    return str(texts_of(context[None])[0])


def text_of_postfix(postfix: Iterable[int]) -> str:
    """A formula in postfix as text, with no more parentheses than it needs."""
    parts: list[tuple[str, int]] = []  # text and tightness
    for token in postfix:
        symbol, tightness = chr(_BYTES[token]), _TIGHTNESS.get(token)
        if tightness is None:
            parts.append((symbol, _DIGIT_TIGHTNESS))
            continue
        (right, right_tightness), (left, left_tightness) = parts.pop(), parts.pop()
        left = left if left_tightness >= tightness else f"({left})"
        # Equals are read from left to right: a right side as tight keeps its parentheses.
        right = right if right_tightness > tightness else f"({right})"
        parts.append((f"{left}{symbol}{right}", tightness))
    ((text, _),) = parts
    return text


def quoted(text: str) -> str:
    """The text on one line, not too long, and readable whatever is in it."""
    return ascii(str(text) if len(text) <= _QUOTED else text[: _QUOTED - 3] + "...")
