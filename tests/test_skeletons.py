"""Skeletons: every tree once, the fixed part that is held out, and parentheses where needed."""

import hashlib
import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_machines import skeleton_of

from toolagent.tasks import skeletons
from toolagent.tasks.expression_problems import compose
from toolagent.tasks.infix import parse, texts_of
from toolagent.tasks.skeletons import held_out, num_skeletons, number_of, numbers, split_number


def trees(operands):
    """Every expression with that many blanks, in all its parentheses."""
    if operands == 1:
        return ["0"]
    return [
        f"({left}{operator}{right})"
        for split in range(1, operands)
        for left, operator, right in itertools.product(trees(split), "*+-", trees(operands - split))
    ]


def text_of_number(operands, number, spare=False):
    (text,) = texts_of(
        compose(
            operands,
            np.array([number]),
            np.zeros((1, operands), np.int8),
            np.full((1, operands - 1), spare),
            30,
        ).context
    ).tolist()
    return text


@pytest.mark.parametrize("operands", [1, 2, 3, 4, 5])
def test_each_tree_has_one_number_and_each_number_one_tree(operands):
    given_numbers = []
    for text in trees(operands):
        expression = parse(text, operands, 99)
        number = number_of(expression.operators, expression.spans)
        assert skeleton_of(text_of_number(operands, number)) == skeleton_of(text)
        given_numbers.append(number)
    assert sorted(given_numbers) == list(range(num_skeletons(operands)))


def test_how_many_there_are():
    catalan = [1, 1, 2, 5, 14, 42, 132, 429]
    assert [num_skeletons(k) for k in range(1, 9)] == [c * 3**i for i, c in enumerate(catalan)]
    assert [skeletons.shapes(k).count for k in range(1, 9)] == catalan
    assert catalan == [comb(2 * n, n) // (n + 1) for n in range(8)]


@given(st.data())
def test_a_number_is_split_and_put_together_again(data):
    operands = data.draw(st.integers(1, 8))
    number = data.draw(st.integers(0, num_skeletons(operands) - 1))
    shape, operators = split_number(operands, np.array([number]))
    table = skeletons.shapes(operands)
    spans = list(zip(table.first[shape[0]].tolist(), table.last[shape[0]].tolist(), strict=True))
    assert number_of(skeletons.OPERATORS[operators[0]].tolist(), spans) == number


# Held out ---------------------------------------------------------------------------------------

HELD_OUT = "ccbed4b8e41ded28a1ac12061791e27dec8c2db51fccdc010fa0d52e8b502965"


def test_what_is_held_out_never_changes():
    """Runs are compared over it. A change of this hash makes every earlier record worthless."""
    bits = b"".join(np.packbits(held_out(operands)).tobytes() for operands in range(1, 9))
    assert hashlib.sha256(bits).hexdigest() == HELD_OUT
    first = [text_of_number(4, number) for number in numbers(4, True)[:6]]
    assert first == [
        "0+(0-(0+0))",
        "0-0*(0*0)",
        "0-(0+0*0)",
        "0-(0+(0-0))",
        "0-(0-(0-0))",
        "0*(0*0*0)",
    ]


def test_it_is_held_out_or_not_and_never_both():
    for operands in range(1, 9):
        both = np.concatenate([numbers(operands, False), numbers(operands, True)])
        assert np.array_equal(np.sort(both), np.arange(num_skeletons(operands)))
        assert held_out(operands)[numbers(operands, True)].all()
        assert not held_out(operands)[numbers(operands, False)].any()


# Parentheses ------------------------------------------------------------------------------------


def without_each_pair(text):
    """The text without one pair of its parentheses, for each pair."""
    opened = []
    for place, character in enumerate(text):
        if character == "(":
            opened.append(place)
        elif character == ")":
            begin = opened.pop()
            yield text[:begin] + text[begin + 1 : place] + text[place + 1 :]


@pytest.mark.parametrize("operands", [1, 2, 3, 4, 5])
def test_needed_parentheses_are_all_needed_and_spare_ones_change_nothing(operands):
    for number in range(num_skeletons(operands)):
        short, full = (text_of_number(operands, number, spare) for spare in (False, True))
        tree = skeleton_of(short)
        assert skeleton_of(full) == tree
        assert full.count("(") == full.count(")") == operands - 1
        for shorter in without_each_pair(short):
            assert skeleton_of(shorter) != tree, (short, shorter)


@given(st.data())
def test_the_same_for_longer_ones(data):
    operands = data.draw(st.integers(6, 8))
    number = data.draw(st.integers(0, num_skeletons(operands) - 1))
    short, full = (text_of_number(operands, number, spare) for spare in (False, True))
    assert skeleton_of(full) == skeleton_of(short)
    assert all(skeleton_of(shorter) != skeleton_of(short) for shorter in without_each_pair(short))


def test_some_as_a_person_would_write_them():
    texts = {text_of_number(3, number) for number in range(18)}
    assert texts == {f"0{a}0{b}0" for a, b in itertools.product("+-*", repeat=2)} | {
        *(f"(0{a}0)*0" for a in "+-"),
        *(f"0*(0{b}0)" for b in "*+-"),
        *(f"0{a}(0{b}0)" for a in "+-" for b in "+-"),
    }
