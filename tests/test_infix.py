"""Reading and writing infix expressions, with Python's own parser beside ours."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_machines import operands_of, skeleton_of, tree_of, value_of

from toolagent.tasks.infix import CLOSE, OPEN, parse, text_of, text_of_postfix, texts_of
from toolagent.tasks.tokens import ADD, CTX, EOS, MUL, SUB

SYMBOLS = {"+": ADD, "-": SUB, "*": MUL, "(": OPEN, ")": CLOSE}


def read(text, max_operands=8, max_tokens=29):
    return parse(text, max_operands, max_tokens)


@st.composite
def expressions(draw, most=8, least=1):
    """Texts with parentheses anywhere they may stand, and spaces."""
    pieces = [str(draw(st.integers(0, 9))) for _ in range(draw(st.integers(least, most)))]
    while len(pieces) > 1:
        at = draw(st.integers(0, len(pieces) - 2))
        text = draw(st.sampled_from(["", " "])).join(
            [pieces[at], draw(st.sampled_from("+-*")), pieces[at + 1]]
        )
        pieces[at : at + 2] = [f"({text})" if draw(st.booleans()) else text]
    return pieces[0]


def test_one_expression_as_a_person_would_read_it():
    expression = read("(3+4)*2 - 5")
    assert expression.tokens == (OPEN, 3, ADD, 4, CLOSE, MUL, 2, SUB, 5)
    assert expression.postfix == (3, 4, ADD, 2, MUL, 5, SUB)
    assert (expression.value, expression.operands) == (9, 4)
    assert expression.operators == (ADD, MUL, SUB)
    assert expression.spans == ((0, 1), (0, 2), (0, 3))


@pytest.mark.parametrize(
    ("text", "value", "postfix"),
    [
        ("7", 7, [7]),
        ("(((7)))", 7, [7]),
        ("8-3-2", 3, [8, 3, SUB, 2, SUB]),
        ("8-(3-2)", 7, [8, 3, 2, SUB, SUB]),
        ("2+3*4", 14, [2, 3, 4, MUL, ADD]),
        ("2*3+4", 10, [2, 3, MUL, 4, ADD]),
        ("2*(3+4)", 14, [2, 3, 4, ADD, MUL]),
        ("9-8+7", 8, [9, 8, SUB, 7, ADD]),
        ("0-9*9*9", -729, [0, 9, 9, MUL, 9, MUL, SUB]),
        ("  1 +   1 ", 2, [1, 1, ADD]),
    ],
)
def test_the_usual_precedence(text, value, postfix):
    assert (read(text).value, read(text).postfix) == (value, tuple(postfix))


@given(expressions())
def test_what_python_reads_is_what_we_read(text):
    expression = read(text, max_tokens=50)
    assert expression.value == value_of(text)
    assert list(expression.tokens) == [SYMBOLS.get(c) or int(c) for c in text if c != " "]
    assert expression.operands == len(operands_of(text))
    # In postfix the operands keep their order; run on a stack it gives the same value.
    assert [token for token in expression.postfix if token < 10] == operands_of(text)
    stack = []
    for token in expression.postfix:
        if token < 10:
            stack.append(token)
        else:
            right, left = stack.pop(), stack.pop()
            stack.append({ADD: left + right, SUB: left - right, MUL: left * right}[token])
    assert stack == [expression.value]
    # Written again it has the same tree, and no pair of parentheses that could be left out.
    again = text_of_postfix(expression.postfix)
    assert skeleton_of(again) == skeleton_of(text)
    assert operands_of(again) == operands_of(text)
    assert len(again) <= len("".join(text.split()))


ALPHABET = st.text(st.sampled_from("0123456789+-*() "), max_size=25)


@settings(max_examples=500)
@given(ALPHABET | expressions() | st.text(max_size=40))
@example("1**2")
@example("1//2")
@example("1(2)")
@example("()")
@example("(1,2)")
@example("1,2")
@example("01")
@example("1 2")
@example("+1")
@example("1+-1")
@example("1_0")
def test_what_python_refuses_we_refuse_and_with_nothing_else_than_valueerror(text):
    try:
        tree_of(text)
    except (SyntaxError, ValueError):
        with pytest.raises(ValueError) as refused:
            read(text)
        assert len(str(refused.value).splitlines()) == 1
    else:
        assert read(text, 99, 99).value == value_of(text)


EMPTY = r"'': expected a digit or '\(' at the end"
REFUSED = [
    ("", EMPTY),
    ("12", r"'12': expected an operator before '2'; operands are single digits"),
    ("-3", r"'-3': expected a digit or '\(' before '-'"),
    ("3+", r"'3\+': expected a digit or '\(' at the end"),
    ("(3+4", r"'\(3\+4': a '\(' without its '\)'"),
    ("3+4)", r"'3\+4\)': a '\)' without its '\('"),
    ("3(4)", r"expected an operator before '\('$"),
    ("a+b", r"'a' \(character 1\) is not understood; .* digits 0-9, \+ - \*, \( \) and spaces"),
    ("3\u22124", r"'\\u2212' \(character 2\)"),  # a minus that is no hyphen
    ("3+\n4", r"'3\+\\n4': '\\n' \(character 3\)"),
    ("\ud800", r"'\\ud800' \(character 1\)"),
    ("1+" * 8 + "1", "has 9 operands; at most 8 are read"),
    ("(" * 15 + "3" + ")" * 15, "has 31 digits, operators and parentheses; at most 29 are read"),
    ("1" * 10_000, "has 10,000 characters; at most 29 digits"),
    (7, "an expression is a text such as .*, not 7"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: repr(value)[:20])
def test_what_cannot_be_read_is_refused_with_what_would_be_right(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read(text)
    # One line, printable anywhere, and no longer than a person wants to read.
    shown = str(refused.value)
    assert shown.isascii() and shown.isprintable() and len(shown) < 200


def test_texts_and_tokens_are_each_other_s():
    texts = ["7", "(3+4)*2", "1-(2*3)"]
    contexts = np.full((3, 12), EOS, np.int8)
    for row, text in enumerate(texts):
        tokens = read(text).tokens
        contexts[row, : len(tokens)], contexts[row, len(tokens)] = tokens, CTX
    assert texts_of(contexts).tolist() == texts
    assert texts_of(contexts[:, ::-1][:, ::-1]).tolist() == texts  # not contiguous
    assert [text_of(context) for context in contexts] == texts
    assert type(text_of(contexts[0])) is str


def test_the_tokens_of_parentheses_are_18_and_19_as_the_design_says():
    assert (OPEN, CLOSE) == (18, 19)
