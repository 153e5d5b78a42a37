"""The requests for fragments that are under way, so that each is answered once or given up once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

# At most this much time counts between two calls of `look`: after a longer pause of the driver the
# answers have been waiting for it, and no runner was slow.
_LONGEST_LOOK_S = 1.0


@dataclass(frozen=True)
class Request:
    """One request for a fragment."""

    number: int  # of its own, in the whole life of the algorithm
    env_runner: int
    weights_seq_no: int  # the weights that were sent with it
    since: float  # on the clock of `Requests`, seconds


class Requests:
    """What was asked of each env runner and not answered yet.

    A fragment brings its request's number along. A number that is not waited for any more (given
    up for lost, or answered before) is refused by `answer`, so no episode counts twice.

    Args:
        clock: seconds, never set back; tests bring their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._looked = clock()
        self._now = 0.0
        self._under_way: dict[int, Request] = {}  # by number, oldest first
        self._last_answer: dict[int, float] = {}  # by env runner
        self._sent = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def next_number(self) -> int:
        """The number to send with the next request."""
        return self._sent + 1

    def send(self, env_runner: int, weights_seq_no: int) -> None:
        """Notes the request with `next_number()`."""
        self._sent += 1
        self._under_way[self._sent] = Request(self._sent, env_runner, weights_seq_no, self._now)

    def answer(self, number: int) -> bool:
        """True if that request was waited for; it no longer is."""
        request = self._under_way.pop(number, None)
        if request is None:
            return False
        self._last_answer[request.env_runner] = self._now
        return True

    def of(self, env_runner: int) -> int:
        """How many are under way to that runner."""
        return sum(request.env_runner == env_runner for request in self._under_way.values())

    def numbers_of_weights(self) -> list[int]:
        """The weights of each request under way."""
        return [request.weights_seq_no for request in self._under_way.values()]

    def lose_all_but(self, alive: Collection[int]) -> int:
        """Gives up the requests to runners that are not alive; how many those were."""
        lost = [r.number for r in self._under_way.values() if r.env_runner not in alive]
        for number in lost:
            del self._under_way[number]
        return len(lost)

    def look(self) -> None:
        """Lets the clock run on; called whenever answers have been taken in."""
        now = self._clock()
        self._now += min(now - self._looked, _LONGEST_LOOK_S)
        self._looked = now

    def hung(self, limit_s: float) -> set[int]:
        """The env runners that have been at one request for longer than the limit.

        Requests of a runner are served in turn: its oldest is being served since it was sent, or
        since the answer before.
        """
        since: dict[int, float] = {}
        for request in self._under_way.values():
            since.setdefault(request.env_runner, request.since)
        return {
            runner
            for runner, sent in since.items()
            if self._now - max(sent, self._last_answer.get(runner, 0.0)) > limit_s
        }

    def oldest_s(self) -> float:
        """Seconds that the oldest request has been under way; 0 if there is none."""
        under_way = list(self._under_way.values())  # at one go: the watchdog asks from its thread
        return max((self._now - request.since for request in under_way), default=0.0)
