"""When two formulas are one polynomial, whatever numbers stand in their digits' places: exactly.

A formula of +, - and * in which every operand stands once is a polynomial in as many variables.
Such a polynomial is a sum of parts without common variables in one way only, and a product of such
parts in one way only, but for signs. So the sums and products of a formula, flattened, with signs
moved outwards and the order forgotten, are a normal form: two formulas are equal as polynomials if
and only if their normal forms are.

Operands are known by their digit alone. Equal digits are different variables, and which is which is
left open: two normal forms are equal if the variables of equal digits *can* be matched so that the
polynomials are. With it `3-(5-3)` may be computed as 3-5+3 and as 3+3-5.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from toolagent.tasks.tokens import ADD, MUL, SUB

_OPERAND, _PRODUCT, _SUM = 0, 1, 2
_OPERATORS = (MUL, ADD, SUB)


class Polynomial(NamedTuple):
    """A normal form; equal ones are equal as tuples.

    `parts` are for an operand its digit, for a product its factors' (kind, parts), for a sum its
    terms as polynomials, sorted. A sum is written with those of both signs that sort first, and
    `sign` says which it was. A sum such as 3-3 is its own negative if its operands change places:
    `either_sign` says so of it and of any product with it, and `sign` is then 1.
    """

    sign: int
    kind: int
    parts: tuple
    either_sign: bool

    def negated(self) -> Polynomial:
        """Minus this."""
        return self if self.either_sign else self._replace(sign=-self.sign)


def normal_form(postfix: Iterable[int]) -> Polynomial:
    """The polynomial of a formula in postfix: digits, and `MUL ADD SUB` behind their operands."""
    stack: list[Polynomial] = []
    for token in postfix:
        if token in _OPERATORS:
            right, left = stack.pop(), stack.pop()
            stack.append(join(token, left, right))
        else:
            stack.append(Polynomial(1, _OPERAND, (token,), False))
    (polynomial,) = stack
    return polynomial


def unsigned(polynomial: Polynomial) -> tuple[int, tuple]:
    """The normal form but for its sign."""
    return polynomial.kind, polynomial.parts


def join(operator: int, left: Polynomial, right: Polynomial) -> Polynomial:
    """The normal form of `left operator right`."""
    if operator == MUL:
        return _product(left, right)
    return _sum(left, right if operator == ADD else right.negated())


def blocks(polynomial: Polynomial) -> set[tuple[int, tuple]]:
    """The normal forms, but for their signs, of all that stands as a part in any formula of this
    polynomial: some factors of a product, some terms of a sum, and the parts of those."""
    kind, parts = polynomial.kind, polynomial.parts
    found = {(kind, parts)}
    if kind == _OPERAND:
        return found
    whole = [Polynomial(1, part[0], part[1], False) if kind == _PRODUCT else part for part in parts]
    for part in whole:
        found |= blocks(part)
    for size in range(2, len(whole)):
        for some in combinations(whole, size):
            joined = functools.reduce(_product if kind == _PRODUCT else _sum, some)
            found.add(unsigned(joined))
    return found


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    factors = []
    for factor in (left, right):
        factors += factor.parts if factor.kind == _PRODUCT else [(factor.kind, factor.parts)]
    either_sign = left.either_sign or right.either_sign
    sign = 1 if either_sign else left.sign * right.sign
    return Polynomial(sign, _PRODUCT, tuple(sorted(factors)), either_sign)


def _sum(left: Polynomial, right: Polynomial) -> Polynomial:
    terms: list[Polynomial] = []
    for term in (left, right):
        if term.kind != _SUM:
            terms.append(term)
        elif term.sign == 1:
            terms += term.parts
        else:
            terms += (part.negated() for part in term.parts)
    plus, minus = tuple(sorted(terms)), tuple(sorted(term.negated() for term in terms))
    return Polynomial(1 if plus <= minus else -1, _SUM, min(plus, minus), plus == minus)
