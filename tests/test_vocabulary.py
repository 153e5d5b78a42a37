"""The vocabulary, and the check that no other integer gets past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toolagent import vocabulary


def test_the_numbers_are_those_of_the_published_vocabulary():
    assert (vocabulary.CTX, vocabulary.MUL, vocabulary.ADD, vocabulary.SUB) == (10, 11, 12, 13)
    assert (vocabulary.ANS, vocabulary.STO, vocabulary.RCL, vocabulary.EOS) == (14, 15, 16, 17)
    assert vocabulary.NUM_TOKENS == 18


def test_every_token_has_its_own_name():
    assert len(vocabulary.TOKEN_NAMES) == len(set(vocabulary.TOKEN_NAMES)) == vocabulary.NUM_TOKENS
    assert vocabulary.names(range(18)) == "0 1 2 3 4 5 6 7 8 9 CTX MUL ADD SUB ANS STO RCL EOS"
    for name in ("CTX", "MUL", "ADD", "SUB", "ANS", "STO", "RCL", "EOS"):
        assert vocabulary.TOKEN_NAMES[getattr(vocabulary, name)] == name


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_all_18_tokens_pass_in_every_integer_type(dtype):
    actions = np.arange(18, dtype=dtype)
    assert np.array_equal(vocabulary.check_actions(actions, (18,)), np.arange(18))


@given(arrays(np.int64, st.integers(1, 6), elements=st.integers(-(2**63), 2**63 - 1)))
def test_an_array_passes_exactly_if_all_its_values_are_tokens(actions):
    if ((actions >= 0) & (actions < 18)).all():
        assert vocabulary.check_actions(actions, actions.shape) is actions
    else:
        with pytest.raises(ValueError, match=r"is no token; actions are integers 0\.\.17"):
            vocabulary.check_actions(actions, actions.shape)


@pytest.mark.parametrize("bad", [-1, 18, -128, 127])
def test_the_message_names_the_bad_value(bad):
    with pytest.raises(ValueError, match=rf"action {bad} is no token"):
        vocabulary.check_actions(np.array([3, bad, 5], np.int8), (3,))


@pytest.mark.parametrize("bad", [[1.0, 2.0], [True, False], ["MUL", "ANS"]])
def test_what_is_no_integer_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected integers 0\.\.17"):
        vocabulary.check_actions(bad, (2,))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\); expected \(2,\)"):
        vocabulary.check_actions(np.zeros((2, 1), int), (2,))


def test_an_array_with_gaps_is_checked_too():
    columns = np.array([[1, 99], [2, 99], [3, 99]])
    assert np.array_equal(vocabulary.check_actions(columns[:, 0], (3,)), [1, 2, 3])
    with pytest.raises(ValueError, match="action 99"):
        vocabulary.check_actions(columns[:, 1], (3,))
