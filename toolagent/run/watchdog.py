"""Says so when learning stands still, also while the main thread waits for Ray."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from toolagent.cluster.ray_internals import learner_manager

_LONGEST_LOOK_S = 1.0


class Watchdog:
    """A thread that looks whether gradient steps are made; a context manager.

    Without one for `warn_after_s` it says what it sees, in one line, and again each time after
    twice as long. Remote learners that are asked for something (an update, their weights) and do
    not answer within `learner_timeout_s` it ends: nobody else could, since the main thread waits
    for that answer.

    Args:
        say: is given a line; called from the watchdog's thread.
        warn_after_s: seconds without a gradient step.
        learner_timeout_s: seconds without an answer.
    """

    def __init__(self, say: Callable[[str], None], warn_after_s: float, learner_timeout_s: float):
        self._say = say
        self._warn_after_s = warn_after_s
        self._learner_timeout_s = learner_timeout_s
        self._algorithm: Any = None
        self._asked_since: float | None = None  # when learners were asked for what they are at
        self._doing: str | None = "starting env runners and learners"
        self._last: object = None
        self._since = time.monotonic()
        self._next_warning_s = warn_after_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._end.set()
        self._thread.join()

    def watch(self, algorithm: Any) -> None:
        """Looks after this algorithm from now on; None: one is being built."""
        self._algorithm, self._asked_since = algorithm, None
        self._doing = None if algorithm else "starting env runners and learners"
        learners = learner_manager(algorithm)
        if learners is not None:  # RLlib asks learners for everything in this way
            learners.foreach_actor = self._timed(learners.foreach_actor)

    def _timed(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._asked_since = time.monotonic()
            try:
                return ask(*args, **kwargs)
            finally:
                self._asked_since = None

        return timed

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Inside, no gradient steps are made on purpose."""
        before, self._doing = self._doing, doing
        try:
            yield
        finally:
            self._doing = before

    def _look_on(self) -> None:
        every = min(_LONGEST_LOOK_S, self._warn_after_s / 4, self._learner_timeout_s / 4)
        while not self._end.wait(every):
            self._look()

    def _look(self) -> None:
        algorithm, doing = self._algorithm, self._doing
        last = (id(algorithm), doing, _progress_of(algorithm))
        idle = time.monotonic() - self._since
        if last != self._last:
            if self._next_warning_s > self._warn_after_s:  # it was said that all stands still
                self._say(f"goes on after {idle:.0f} s")
            self._last = last
            self._since = time.monotonic()
            self._next_warning_s = self._warn_after_s
            return
        if idle >= self._next_warning_s:
            self._next_warning_s = 2 * idle
            self._say(f"warning: {doing or 'no update'} for {idle:.0f} s{_health_of(algorithm)}")
        self._end_hung_learners(learner_manager(algorithm))

    def _end_hung_learners(self, learners: Any) -> None:
        since = self._asked_since
        if learners is None or since is None:
            return
        if time.monotonic() - since < self._learner_timeout_s:
            return
        self._asked_since = None
        self._say(
            f"warning: learners have not answered for {self._learner_timeout_s:.0f} s "
            "(run.learner_timeout_s); ends them"
        )
        for learner in learners.actors().values():
            ray.kill(learner)


def _progress_of(algorithm: Any) -> int:
    """Gradient steps; of a stock algorithm, iterations."""
    progress = getattr(algorithm, "updates", None)
    return int(getattr(algorithm, "iteration", 0) if progress is None else progress)


def _health_of(algorithm: Any) -> str:
    """Who answers, and what is waited for: ': 1 of 2 env runners ...'; '' if there is nobody."""
    parts = []
    runners = getattr(algorithm, "env_runner_group", None)
    if runners is not None and runners.num_remote_env_runners():
        healthy, all_of_them = runners.healthy_env_runner_ids(), runners.num_remote_env_runners()
        parts.append(f"{len(healthy)} of {all_of_them} env runners alive")
    learners = learner_manager(algorithm)
    if learners is not None:
        parts.append(f"{learners.num_healthy_actors()} of {learners.num_actors()} learners alive")
    requests = getattr(algorithm, "requests", None)
    if requests:
        parts.append(f"{len(requests)} requests under way for up to {requests.oldest_s():.0f} s")
    return ": " + ", ".join(parts) if parts else ""
