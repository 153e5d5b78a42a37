"""Vocabularies: what makes one, and the check that no integer but an action gets past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toolagent.tasks import Vocabulary, get_task, tokens

VOCABULARY = tokens.VOCABULARY
BELLS = Vocabulary(
    actions=("UP", "LIFT", "RING"), observed=("START", "NONE", "F0"), pad="NONE", answer="RING"
)


def test_the_numbers_are_those_of_the_published_vocabulary():
    assert (tokens.CTX, tokens.MUL, tokens.ADD, tokens.SUB) == (10, 11, 12, 13)
    assert (tokens.ANS, tokens.STO, tokens.RCL, tokens.EOS) == (14, 15, 16, 17)
    for name in ("CTX", "MUL", "ADD", "SUB", "ANS", "STO", "RCL", "EOS"):
        assert VOCABULARY.token(name) == getattr(tokens, name)
    assert VOCABULARY.text(range(18)) == "0 1 2 3 4 5 6 7 8 9 CTX MUL ADD SUB ANS STO RCL EOS"
    assert get_task("expression").vocabulary.names == (*VOCABULARY.names, "(", ")")
    special = (VOCABULARY.start_token, VOCABULARY.pad_token, VOCABULARY.answer_token)
    assert special == (tokens.CTX, tokens.EOS, tokens.ANS)


def test_actions_come_first_and_what_is_only_observed_follows():
    assert BELLS.names == ("UP", "LIFT", "RING", "START", "NONE", "F0")
    assert (BELLS.num_actions, len(BELLS), BELLS.num_previous_tokens) == (3, 6, 4)
    assert (BELLS.start_token, BELLS.pad_token, BELLS.answer_token) == (3, 4, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"actions": ("UP", "UP", "RING")},
        {"observed": ("START", "NONE", "RING")},
        {"actions": "UP"},
        {"actions": ("UP", "", "RING")},
        {"actions": ("GO UP", "RING")},
        {"actions": (1, "RING")},
        {"answer": "START"},  # never written
        {"start": "BEGIN"},
        {"pad": "PAD"},
        {"observed": ("START", "NONE", *(f"F{number}" for number in range(124)))},
    ],
)
def test_what_makes_no_vocabulary_is_refused(wrong):
    given = {
        "actions": BELLS.actions,
        "observed": BELLS.observed,
        "pad": "NONE",
        "answer": "RING",
    }
    assert Vocabulary(**given) == BELLS
    with pytest.raises(ValueError, match=r"^vocabulary: "):
        Vocabulary(**(given | wrong))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_all_actions_pass_in_every_integer_type(dtype):
    for vocabulary in (VOCABULARY, BELLS):
        count = vocabulary.num_actions
        checked = vocabulary.check_actions(np.arange(count, dtype=dtype), (count,))
        assert np.array_equal(checked, np.arange(count))


@given(
    arrays(np.int64, st.integers(1, 6), elements=st.integers(-(2**63), 2**63 - 1)),
    st.sampled_from([VOCABULARY, BELLS]),
)
def test_an_array_passes_exactly_if_all_its_values_are_actions(actions, vocabulary):
    if ((actions >= 0) & (actions < vocabulary.num_actions)).all():
        assert vocabulary.check_actions(actions, actions.shape) is actions
    else:
        with pytest.raises(ValueError, match="is no token; actions are integers"):
            vocabulary.check_actions(actions, actions.shape)


@pytest.mark.parametrize("bad", [-1, 18, -128, 127])
def test_the_message_names_the_bad_value(bad):
    with pytest.raises(ValueError, match=rf"action {bad} is no token"):
        VOCABULARY.check_actions(np.array([3, bad, 5], np.int8), (3,))


@pytest.mark.parametrize("bad", [[1.0, 2.0], [True, False], ["MUL", "ANS"]])
def test_what_is_no_integer_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected integers 0\.\.17"):
        VOCABULARY.check_actions(bad, (2,))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\); expected \(2,\)"):
        VOCABULARY.check_actions(np.zeros((2, 1), int), (2,))


def test_an_array_with_gaps_is_checked_too():
    columns = np.array([[1, 99], [2, 99], [3, 99]])
    assert np.array_equal(VOCABULARY.check_actions(columns[:, 0], (3,)), [1, 2, 3])
    with pytest.raises(ValueError, match="action 99"):
        VOCABULARY.check_actions(columns[:, 1], (3,))
