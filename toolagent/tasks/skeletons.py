"""Skeletons of infix expressions: binary trees with operators, numbered, in columns.

A *skeleton* is an expression with its digits blanked. With k operands it is one of the Catalan
number C(k-1) of binary tree shapes and one of 3^(k-1) choices of operators:

    number = shape * 3^(k-1) + operators as digits in base 3, the first one most significant

In an infix expression operator j stands between operands j and j+1 whatever the shape, so node j
of a tree *is* its j-th operator, and a shape only says which operands each node spans.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.hashing import hashes
from toolagent.tasks.tokens import ADD, MUL, SUB

OPERATORS = np.array([MUL, ADD, SUB], np.int8)  # in the order of their numbers, 0..2
HELD_OUT_FROM = 4  # operands: with fewer, too few skeletons to hold some out
MOST_NUMBERED = 8  # operands: with more, too many skeletons for tables of them
NO_NUMBER = -1  # of a skeleton with more operands
_HELD_OUT_SHARE = 0.2
_SALT = 4  # with it the share is close to a fifth with 4 operands too: 26 of 135


@dataclass(frozen=True)
class Shapes:
    """S binary trees with k leaves. Nodes are numbered by their infix position."""

    first: np.ndarray  # (S, k-1) int8: the first operand that a node spans
    last: np.ndarray  # (S, k-1) int8: the last one
    parent: np.ndarray  # (S, k-1) int8: the node above; -1 at the root
    is_right: np.ndarray  # (S, k-1) bool: the node is its parent's right child
    postfix: np.ndarray  # (S, k-1) int8: the nodes in the order that postfix writes them

    @property
    def count(self) -> int:
        """S."""
        return len(self.first)


# The columns of one node: its number, first, last, parent, is_right.
_Node = tuple[int, int, int, int, bool]


@functools.cache
def shapes(operands: int) -> Shapes:
    """Every shape with that many leaves, at most `MOST_NUMBERED`, in a fixed order (by the root's
    position, then left)."""
    columns = np.zeros((5, _catalan(operands - 1), operands - 1), np.int8)
    for shape, nodes in enumerate(_trees(0, operands - 1, parent=-1, is_right=False)):
        for rank, (node, first, last, parent, is_right) in enumerate(nodes):
            columns[:4, shape, node] = first, last, parent, is_right
            columns[4, shape, rank] = node
    first, last, parent, is_right, postfix = columns
    return Shapes(first, last, parent, is_right.astype(bool), postfix)


def random_shapes(rng: np.random.Generator, size: int, operands: int) -> Shapes:
    """`size` shapes, all of that many leaves equally likely, without a table of them.

    Of every cyclic order of k leaves and k-1 nodes exactly one rotation is a tree in postfix (the
    cycle lemma; Dvoretzky and Motzkin 1947).
    """
    nodes, row = operands - 1, np.arange(size)
    is_leaf = rng.permuted(
        np.broadcast_to(np.arange(operands + nodes) < operands, (size, operands + nodes)), axis=1
    )
    height = np.cumsum(np.where(is_leaf, 1, -1), 1)
    # The rotation that begins behind the last lowest point never comes down to 0.
    begin = height.shape[1] - height[:, ::-1].argmin(1)
    is_leaf = is_leaf[row[:, None], (begin[:, None] + np.arange(height.shape[1])) % height.shape[1]]
    columns = np.zeros((5, size, nodes), np.int8)
    first, last, parent, is_right, postfix = columns
    parent[:] = -1
    # What waits for its parent: the operands that it spans, and its node, -1 for an operand.
    stack = np.zeros((3, size, operands + 1), np.int8)
    depth, leaves, done = (
        np.zeros(size, np.int64),
        np.zeros(size, np.int8),
        np.zeros(size, np.int64),
    )
    for leaf in is_leaf.T:
        rows = np.flatnonzero(leaf)
        stack[:, rows, depth[rows]] = leaves[rows], leaves[rows], np.full(len(rows), -1)
        leaves[rows] += 1
        rows = np.flatnonzero(~leaf)
        left, right = stack[:, rows, depth[rows] - 2], stack[:, rows, depth[rows] - 1]
        node = left[1]  # the operator behind the last operand on the left
        first[rows, node], last[rows, node] = left[0], right[1]
        postfix[rows, done[rows]] = node
        done[rows] += 1
        for child, right_child in ((left[2], 0), (right[2], 1)):
            some = child >= 0
            parent[rows[some], child[some]] = node[some]
            is_right[rows[some], child[some]] = right_child
        stack[:, rows, depth[rows] - 2] = left[0], right[1], node
        depth += np.where(leaf, 1, -1)
    return Shapes(first, last, parent, is_right.astype(bool), postfix)


def _trees(first: int, last: int, parent: int, is_right: bool) -> Iterator[tuple[_Node, ...]]:
    """Every tree over the operands first..last, as its nodes in postfix order."""
    if first == last:
        yield ()
    for root in range(first, last):
        node = (root, first, last, parent, is_right)
        for left in _trees(first, root, root, False):
            for right in _trees(root + 1, last, root, True):
                yield (*left, *right, node)


def _catalan(nodes: int) -> int:
    return math.comb(2 * nodes, nodes) // (nodes + 1)


def num_skeletons(operands: int) -> int:
    """How many there are with that many operands: C(k-1) * 3^(k-1)."""
    return _catalan(operands - 1) * 3 ** (operands - 1)


def split_number(operands: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skeletons' (B,) shape indices and (B, k-1) int8 operator numbers 0..2."""
    nodes = operands - 1
    powers = 3 ** np.arange(nodes - 1, -1, -1)
    shape, code = np.divmod(number, 3**nodes)
    return shape, (code[:, None] // powers % 3).astype(np.int8)


def number_of(operators: Sequence[int], spans: Sequence[tuple[int, int]]) -> int:
    """The number of the skeleton with these k-1 operator tokens over these (first, last) operands.

    The inverse of `split_number`; `NO_NUMBER` with more than `MOST_NUMBERED` operands.
    """
    if len(operators) >= MOST_NUMBERED:
        return NO_NUMBER
    number = _shape_indices(len(operators) + 1)[tuple(spans)]
    for token in operators:
        number = 3 * number + OPERATORS.tolist().index(token)
    return number


@functools.cache
def _shape_indices(operands: int) -> dict[tuple[tuple[int, int], ...], int]:
    """The index of each shape by what its nodes span."""
    table = shapes(operands)
    spans = np.stack([table.first, table.last], axis=-1).tolist()  # (S, k-1, 2)
    return {tuple(map(tuple, nodes)): index for index, nodes in enumerate(spans)}


@functools.cache
def held_out(operands: int) -> np.ndarray:
    """(num_skeletons,) bool by number: the skeleton never occurs in training.

    A fixed fifth of those with 4 or more operands, whatever the seed of a run.
    """
    if operands < HELD_OUT_FROM:
        return np.zeros(num_skeletons(operands), bool)
    return hashes(num_skeletons(operands), operands + _SALT) < _HELD_OUT_SHARE


@functools.cache
def numbers(operands: int, are_held_out: bool) -> np.ndarray:
    """(M,) int32: the numbers of the skeletons that are held out, or of the others, ascending."""
    return np.flatnonzero(held_out(operands) == are_held_out).astype(np.int32)


def needs_parentheses(table: Shapes, shape: np.ndarray, operators: np.ndarray) -> np.ndarray:
    """(B, k-1) bool: without parentheses round this node the text would mean another tree.

    Args:
        table: of shapes.
        shape: (B,) which of them.
        operators: (B, k-1) numbers 0..2.

    A node binds less tightly than its parent, or as tightly and stands on its right: every
    operator is read from left to right, so `a-(b-c)` and `a+(b+c)` keep theirs.
    """
    parent, is_right = table.parent[shape], table.is_right[shape]
    tight = operators == 0  # MUL
    parent_tight = np.take_along_axis(tight, np.maximum(parent, 0), 1)
    looser = ~tight & parent_tight
    return (parent >= 0) & (looser | (is_right & (tight == parent_tight)))
