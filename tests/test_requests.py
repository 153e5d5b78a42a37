"""Requests for fragments: each answered once or given up once, and who hangs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolagent.learning.requests import Requests


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def test_an_answer_is_taken_once_and_only_if_it_is_waited_for():
    requests = Requests()
    assert requests.next_number() == 1
    requests.send(env_runner=1, weights_seq_no=7)
    requests.send(env_runner=2, weights_seq_no=8)
    assert len(requests) == 2 and requests.of(1) == 1 and requests.numbers_of_weights() == [7, 8]
    assert requests.answer(1) and not requests.answer(1)
    assert requests.lose_all_but({1}) == 1
    assert not requests.answer(2)  # it was given up
    assert not requests.answer(3)  # nobody asked
    assert requests.next_number() == 3  # no number is used again


@given(st.lists(st.tuples(st.sampled_from("sal"), st.integers(1, 12)), max_size=60))
def test_every_request_is_answered_lost_or_under_way(steps):
    requests, answered, lost = Requests(), 0, 0
    for step, number in steps:
        if step == "s":
            requests.send(number % 3, number)
        elif step == "a":
            answered += requests.answer(number)
        else:
            lost += requests.lose_all_but({number % 3})
        assert requests.next_number() - 1 == answered + lost + len(requests)


def look_for(requests, clock, seconds):
    """The driver looks every half second."""
    for _ in range(round(seconds * 2)):
        clock.now += 0.5
        requests.look()


def test_a_runner_hangs_if_one_request_takes_too_long():
    clock = Clock()
    requests = Requests(clock)
    for _ in range(2):
        requests.send(1, 1)
    look_for(requests, clock, 8)
    requests.answer(1)
    look_for(requests, clock, 8)
    # The second one was sent 16 s ago; it has been served for 8.
    assert requests.hung(10) == set() and requests.oldest_s() == 16
    look_for(requests, clock, 3)
    assert requests.hung(10) == {1}
    requests.lose_all_but(set())
    assert requests.hung(10) == set() and requests.oldest_s() == 0


def test_a_driver_that_was_away_takes_nobody_for_hung():
    clock = Clock()
    requests = Requests(clock)
    requests.send(1, 1)
    clock.now += 3_600
    requests.look()
    assert requests.hung(10) == set()
