"""Sampling for the learner: requests to env runners, their fragments, and replaced runners."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.annotations import override

from toolagent.cluster.ray_internals import actor_manager
from toolagent.learning.faults import LearningFailed, fault_in
from toolagent.learning.iteration import IterationMixin
from toolagent.learning.pipeline_figures import PipelineFigures
from toolagent.learning.requests import Requests
from toolagent.phases import timed
from toolagent.rollouts.env_runner import Fragment
from toolagent.rollouts.episode_batch import EpisodeBatch

_SAMPLE = "sample_fragment"
_PING = "ping"
# RLlib's fetch waits until *all* requests are done or its time is up: a short time, asked again.
_POLL_S = 0.001
_NOBODY_THERE_S = 0.05  # between two looks for a runner that is alive
_PATIENCE_S = 1.0  # with nothing to learn from, until `between_updates` is called
_REJECTED_IN_A_ROW = 3  # fragments, then their runner is restarted


class SamplingAlgorithm(IterationMixin, Algorithm):
    """The sampling half of `ToolAgent`.

    With remote env runners, requests are kept in flight so that a fragment is ready when the
    learner is: their number is bounded so that no episode is older than `max_staleness` updates
    when it is learned from. Fragments that are lost or come too late all the same are counted.

    A runner is replaced, while the others go on, if it dies, raises, works on one request for
    longer than `sample_timeout_s`, or repeatedly sends unsound batches.

    While there is nothing to learn from, `between_updates` is called too.

    Attributes:
        requests: for fragments, those that are under way.
    """

    # RLlib types these as their base classes, or as what they are before `setup`.
    config: Any
    env_runner_group: Any
    learner_group: Any
    _weights: Any  # what goes along with each request, or a reference to it

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        self._updates = 0  # see `ToolAgent.updates`; weights are numbered by it
        self._fragments: deque[Fragment] = deque()  # ready, not learned from yet
        self.requests = Requests()
        self._next_runner = 0
        # Requests whose loss was seen outside an iteration; counted in the next one.
        self.lost_at_restore = 0
        self._processes: dict[int, int] = {}  # runner id -> the number of its present process
        self._rejected: Counter[int] = Counter()  # runner id -> fragments, in a row
        self._figures = PipelineFigures()  # of this iteration
        self._runner_metrics: list[Any] = []  # of its fragments
        super().setup(config)

    def _next_batch(self, figures: PipelineFigures) -> EpisodeBatch | None:
        """The episodes of the next update; None if the iteration is to end instead."""
        wanted = self.config.episodes_per_update
        group = self.env_runner_group
        if group.num_remote_env_runners() == 0:
            fragments = [self._play_here(wanted, figures)]
        else:
            fragments = self._next_fragments(wanted, figures)
            if fragments is None:
                return None
        for fragment in fragments:
            figures.add(fragment, self._age(fragment))
        self._runner_metrics.extend(fragment.metrics for fragment in fragments)
        batches = [fragment.batch for fragment in fragments]
        return EpisodeBatch.concatenate(batches)

    @timed("wait for fragments")
    def _next_fragments(self, wanted: int, figures: PipelineFigures) -> list[Fragment] | None:
        """Fragments with at least `wanted` episodes, none older than `max_staleness`."""
        taken: list[Fragment] = []
        per_update = self._fragments_per_update()
        waiting_since = time.monotonic()
        patience_s = 0.0  # at first, what is ready will do
        while sum(len(fragment.batch) for fragment in taken) < wanted:
            self._request_fragments(len(taken))
            fragment = self._next_waiting(per_update - len(taken))
            if fragment is None:
                self._fetch(figures, patience_s)
                patience_s = _POLL_S
                if not self._fragments:
                    self._bring_back_runners()
                if time.monotonic() - waiting_since >= _PATIENCE_S:
                    # They wait for the update in any state that is saved now.
                    self._fragments.extendleft(reversed(taken))
                    taken.clear()
                    self.between_updates()
                    if self._ends_early:
                        return None
                continue
            # Below 0: played before the algorithm was set back to an older state.
            if not 0 <= self._age(fragment) <= self.config.max_staleness:
                figures.drop(fragment)
                self._runner_metrics.append(fragment.metrics)  # it was sampled all the same
            else:
                taken.append(fragment)
        if not self.config.max_staleness:
            # Only this order depends on which runner was faster; each one's own are in order.
            taken.sort(key=lambda fragment: fragment.env_runner)
        # The next update's fragments are played while this one is learned from.
        self._request_fragments(len(taken))
        return taken

    def _bring_back_runners(self) -> None:
        """Looks for runners that answer again, where none does."""
        if not self.env_runner_group.healthy_env_runner_ids():
            restored = self.restore_env_runners(self.env_runner_group)
            if restored:
                self._make_on_env_runners_recreated_callbacks(
                    config=self.config,
                    env_runner_group=self.env_runner_group,
                    restored_env_runner_indices=restored,
                )
            time.sleep(_NOBODY_THERE_S)

    def _play_here(self, wanted: int, figures: PipelineFigures) -> Fragment:
        """A fragment of the local env runner."""
        for _ in range(_REJECTED_IN_A_ROW):
            fragment = self.env_runner_group.local_env_runner.sample_fragment(
                state=self._weights, num_episodes=wanted
            )
            fault = fault_in(fragment.batch)
            if fault is None:
                return fragment
            figures.reject(fragment)
        raise LearningFailed(f"the env runner played {fault}, {_REJECTED_IN_A_ROW} times in a row")

    def _next_waiting(self, places: int) -> Fragment | None:
        """The oldest of the fragments that wait, or None to wait for more.

        A slow runner's request may still be under way when later ones of other runners are done.
        If it would be too old for the next update, one of the `places` left in this one is its.
        """
        if not self._fragments:
            return None
        ages = [self._age(fragment) for fragment in self._fragments]
        oldest = ages.index(max(ages))
        limit = self.config.max_staleness
        last_chance = sum(
            self._updates + 1 - number >= limit for number in self.requests.numbers_of_weights()
        )
        if ages[oldest] < limit and places <= last_chance:
            return None
        fragment = self._fragments[oldest]
        del self._fragments[oldest]
        return fragment

    def _fragments_per_update(self) -> int:
        return math.ceil(self.config.episodes_per_update / self.config.num_envs_per_env_runner)

    def _request_fragments(self, taken: int) -> None:
        """Keeps requests under way: as many as can be learned from before they are too old.

        What is requested now is learned from after everything requested before it, one update's
        worth at a time. With `taken` fragments going into the present update, max_staleness
        updates' worth more may be under way or waiting.
        """
        group, config = self.env_runner_group, self.config
        allowed = self._fragments_per_update() * (config.max_staleness + 1)
        missing = allowed - taken - len(self._fragments) - len(self.requests)
        runners = group.healthy_env_runner_ids()
        for _ in range(missing):
            free = [
                runner
                for runner in runners
                if self.requests.of(runner) < config.max_requests_in_flight_per_env_runner
            ]
            if not free:
                return
            # The least busy one, in turn; in synchronous mode strictly in turn, so that who plays
            # what does not depend on who is faster.
            in_turn = {r: (r - self._next_runner) % (max(runners) + 1) for r in runners}
            if self.config.max_staleness:
                runner = min(free, key=lambda r: (self.requests.of(r), in_turn[r]))
            else:
                runner = min(runners, key=in_turn.__getitem__)
                if runner not in free:
                    return
            self._next_runner = runner + 1
            sent = group.foreach_env_runner_async(
                _SampleFragment(self._weights, self.requests.next_number()),
                tag=_SAMPLE,
                remote_worker_ids=[runner],
            )
            if not sent:
                return
            self.requests.send(runner, self._updates + 1)

    def _fetch(self, figures: PipelineFigures, patience_s: float = _POLL_S) -> None:
        """Takes in the fragments that are ready, and gives up the requests that died or hang.

        Args:
            figures: of the iteration.
            patience_s: unless all requests are answered, so long is waited for more.
        """
        ready = self.env_runner_group.fetch_ready_async_reqs(
            tags=_SAMPLE, timeout_seconds=patience_s
        )
        for runner, fragment in ready:
            if self.requests.answer(fragment.request):  # else it was given up, and counted as lost
                self._take_in(runner, fragment, figures)
        self.requests.look()
        for runner in self.requests.hung(self.config.sample_timeout_s):
            figures.hung_env_runners += 1
            self._replace(runner)
        figures.lost_requests += self.requests.lose_all_but(
            self.env_runner_group.healthy_env_runner_ids()
        )

    def _take_in(self, runner: int, fragment: Fragment, figures: PipelineFigures) -> None:
        """Puts a fragment to those that wait, if it can be learned from."""
        if fragment.process != self._processes.get(runner, 0):  # 0 is the first
            figures.env_runner_restarts += 1
            self._processes[runner] = fragment.process
        if fault_in(fragment.batch) is None:
            self._rejected[runner] = 0
            self._fragments.append(fragment)
            return
        figures.reject(fragment)
        self._rejected[runner] += 1
        if self._rejected[runner] == _REJECTED_IN_A_ROW:
            self._rejected[runner] = 0
            self._replace(runner)

    def _replace(self, runner: int) -> None:
        """Ends a runner's process; Ray starts another one, `restore_env_runners` finds it."""
        manager = actor_manager(self.env_runner_group)
        ray.kill(manager.actors()[runner], no_restart=False)
        manager.set_actor_state(runner, healthy=False)

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """The env runners that answer again, without waiting for those that do not yet.

        RLlib's own waits up to `env_runner_health_probe_timeout_s` while all others are idle, and
        sends the local runner's state. Here each request brings all that a new runner needs.
        """
        if env_runner_group is not self.env_runner_group:
            return super().restore_env_runners(env_runner_group)
        group = env_runner_group
        if group.num_healthy_remote_env_runners() == group.num_remote_env_runners():
            return []
        healthy = set(group.healthy_env_runner_ids())
        group.fetch_ready_async_reqs(tags=_PING, timeout_seconds=0.0, mark_healthy=True)
        restored = [r for r in group.healthy_env_runner_ids() if r not in healthy]
        runners = actor_manager(group).actor_ids()
        if restored:  # what they were asked for before they died
            others = [runner for runner in runners if runner not in restored]
            self._figures.lost_requests += self.requests.lose_all_but(others)
        for runner in runners:
            if runner not in healthy and runner not in restored:  # at most two pings each
                group.foreach_env_runner_async(
                    _PING, tag=_PING, healthy_only=False, remote_worker_ids=[runner]
                )
        return restored

    def _age(self, fragment: Fragment) -> int:
        """Updates since the weights that played it were published."""
        return self._updates + 1 - fragment.weights_seq_no


class _SampleFragment:
    """A request as one object: each argument of a call is pickled apart, and of a method's name
    RLlib makes a function for each call, which has to be pickled, too."""

    def __init__(self, state: Any, number: int):
        self.state, self.number = state, number

    def __call__(self, env_runner: Any) -> Fragment:
        return env_runner.sample_fragment(state=self.state, request=self.number)
