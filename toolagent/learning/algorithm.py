"""The batched pipeline as an RLlib Algorithm: runners sample while the learner updates."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any, Literal, Self

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_LEARNER,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from toolagent.learning.callback_state import CallbackStateMixin
from toolagent.learning.exploration import STEP_COLUMNS, Exploration
from toolagent.learning.faults import (
    MOST_SKIPPED_IN_A_ROW,
    LearningFailed,
    check_learners,
    fault_in,
)
from toolagent.learning.learner import SKIPPED_IN_A_ROW, SKIPPED_UPDATES, EpisodeColumnsLearner
from toolagent.learning.pipeline_figures import PipelineFigures
from toolagent.learning.pipeline_state import (
    DRAIN_S,
    fragment_of,
    fragment_state,
    restore_runners,
    runner_states,
)
from toolagent.learning.requests import Requests
from toolagent.models.rl_module import StageGRUModule
from toolagent.rollouts.draw import EXPLORER_KINDS
from toolagent.rollouts.env_runner import EXPLORERS, BatchedEnvRunner, Fragment
from toolagent.rollouts.episode_batch import EpisodeBatch, concatenate

ADVANTAGE_ESTIMATORS = ("gae", "leave_one_out")
PIPELINE = "pipeline"  # where the pipeline's own figures stand in a result
_SAMPLE = "sample_fragment"
_PING = "ping"
_UNSET: Any = NotProvided  # RLlib's mark for an argument that was not given
# RLlib's fetch waits until *all* requests are done or its time is up: a short time, asked again.
_POLL_S = 0.001
_NOBODY_THERE_S = 0.05  # between two looks for a runner that is alive
_PATIENCE_S = 1.0  # with nothing to learn from, until `give_way` is asked
_REJECTED_IN_A_ROW = 3  # fragments, then their runner is restarted


class ToolAgentConfig(AlgorithmConfig):
    """Settings of `ToolAgent`: AlgorithmConfig's own, and those of `training()` below."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or ToolAgent)
        self.env_runner_cls = BatchedEnvRunner
        self.num_env_runners = 1
        self.num_envs_per_env_runner = 512
        self.batch_mode = "complete_episodes"
        self.lr = 3e-3
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.gamma = 1.0
        self.min_time_s_per_iteration = 0.0
        # Connector states are all that RLlib would sync by itself, and there are none.
        self._dont_auto_sync_env_runner_states = True
        # RLlib's two looks at every gradient; the learner looks once, at their norm.
        self.torch_skip_nan_gradients = True

        self.episodes_per_update = 512
        self.episodes_per_problem = 1
        self.advantage_estimator = "gae"
        self.failed_problem_share = 0.0
        self.practice_problems = False
        self.updates_per_iteration = 20
        self.lambda_ = 1.0
        self.vf_loss_coeff = 0.5
        self.weight_decay = 0.0
        self.entropy_coeff = 0.01
        self.entropy_follows_return = False
        self.normalize_advantages = True
        self.clip_param: float | None = 0.2
        self.max_policy_age = 1
        self.novelty_coefficient = 0.0
        self.novelty_cap = 6.0
        self.explorer_share = 0.0
        self.explorer_kind = "trials"
        self.explore_until_solved = 0.9
        self.replay_coefficient = 0.0
        self.replay_episodes = 128
        self.num_epochs = 1
        self.minibatch_size = None

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        episodes_per_update: int = _UNSET,
        episodes_per_problem: int = _UNSET,
        advantage_estimator: Literal["gae", "leave_one_out"] = _UNSET,
        failed_problem_share: float = _UNSET,
        practice_problems: bool = _UNSET,
        updates_per_iteration: int = _UNSET,
        lambda_: float = _UNSET,
        vf_loss_coeff: float = _UNSET,
        weight_decay: float = _UNSET,
        entropy_coeff: float = _UNSET,
        entropy_follows_return: bool = _UNSET,
        normalize_advantages: bool = _UNSET,
        clip_param: float | None = _UNSET,
        max_policy_age: int = _UNSET,
        novelty_coefficient: float = _UNSET,
        novelty_cap: float = _UNSET,
        explorer_share: float = _UNSET,
        explorer_kind: Literal["trials", "detours"] = _UNSET,
        explore_until_solved: float = _UNSET,
        replay_coefficient: float = _UNSET,
        replay_episodes: int = _UNSET,
        **kwargs: Any,
    ) -> Self:
        """What `AlgorithmConfig.training()` does not know.

        Args:
            episodes_per_update: whole episodes in one gradient step (over all learners).
            episodes_per_problem: how often each problem is played; the episodes of one problem are
                a group.
            advantage_estimator: "gae" (with the value head), or "leave_one_out": against the
                other episodes of the same problem; then episodes_per_problem is at least 2.
            failed_problem_share: share of the current stage's problems that are drawn from those
                that were mostly failed before (`FailedProblems`).
            practice_problems: train on the problems that the task recommends (`Task.practice`);
                accuracy is always measured on all kinds.
            updates_per_iteration: gradient steps in one `train()` call.
            lambda_: trace decay of the advantage estimates; 1 uses whole returns.
            vf_loss_coeff: weight of the value loss.
            weight_decay: added to the gradient, times the weights. It acts where the losses have
                little left to say, and makes what was learned hold for longer problems.
            entropy_coeff: weight of the entropy bonus.
            entropy_follows_return: once a stage is mostly solved, no bonus where nothing succeeds
                (`Exploration`).
            normalize_advantages: mean 0, standard deviation 1 over the batch.
            clip_param: clip of the probability ratio that corrects older data; None: no
                correction (plain A2C; then max_policy_age must be 0 and num_epochs 1).
            max_policy_age: how many updates old the weights that played an episode may be when
                it is learned from; 0 is strictly on-policy (sampling waits for the learner).
            novelty_coefficient: size of the bonus for rare machine statuses (`NoveltyBonus`);
                0: none.
            novelty_cap: largest surprise of a status, in nats.
            explorer_share: share of the episodes that explorers play (`Exploration`); 0: none.
            explorer_kind: "trials" of tokens that are known to do something (`TrialTable`), or
                "detours" from the policy's own way (`Detours`); then episodes_per_problem is at
                least 2.
            explore_until_solved: explorers and replay end for a stage once the policy solves this
                share of its training episodes: there is nothing left to find.
            replay_coefficient: weight of the self-imitation loss on replayed solved episodes
                (`SuccessReplay`; what explorers found on detours: `VerifiedReplay`); 0: none.
            replay_episodes: solved episodes replayed in an update.
            kwargs: those of `AlgorithmConfig.training()` (lr, gamma, grad_clip, num_epochs,
                minibatch_size in episodes, ...).
        """
        super().training(**kwargs)
        for name, value in (
            ("episodes_per_update", episodes_per_update),
            ("episodes_per_problem", episodes_per_problem),
            ("advantage_estimator", advantage_estimator),
            ("failed_problem_share", failed_problem_share),
            ("practice_problems", practice_problems),
            ("entropy_follows_return", entropy_follows_return),
            ("updates_per_iteration", updates_per_iteration),
            ("lambda_", lambda_),
            ("vf_loss_coeff", vf_loss_coeff),
            ("weight_decay", weight_decay),
            ("entropy_coeff", entropy_coeff),
            ("normalize_advantages", normalize_advantages),
            ("clip_param", clip_param),
            ("max_policy_age", max_policy_age),
            ("novelty_coefficient", novelty_coefficient),
            ("novelty_cap", novelty_cap),
            ("explorer_share", explorer_share),
            ("explorer_kind", explorer_kind),
            ("explore_until_solved", explore_until_solved),
            ("replay_coefficient", replay_coefficient),
            ("replay_episodes", replay_episodes),
        ):
            if value is not _UNSET:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return EpisodeColumnsLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=StageGRUModule)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        super().validate()
        for name in ("episodes_per_update", "episodes_per_problem", "updates_per_iteration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        self._validate_groups()
        for name in (
            "max_policy_age",
            "weight_decay",
            "novelty_coefficient",
            "novelty_cap",
            "replay_coefficient",
            "replay_episodes",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.explorer_share < 1:
            raise ValueError(
                f"explorer_share is {self.explorer_share}; it must be at least 0 and below 1 (the "
                "policy needs episodes to learn from)"
            )
        if not 0 < self.explore_until_solved < 1:
            raise ValueError(
                f"explore_until_solved is {self.explore_until_solved}; it must be above 0 and "
                "below 1, or exploring would never end"
            )
        if self.explorer_share > 0 and self.replay_coefficient == 0:
            raise ValueError(
                "explorer_share needs replay_coefficient above 0: what explorers find is learned "
                "from by replay only"
            )
        if self.episodes_per_update < max(1, self.num_learners or 0):
            raise ValueError(
                f"episodes_per_update is {self.episodes_per_update}; {self.num_learners} learners "
                "need at least one each"
            )
        if self.clip_param is None and (self.max_policy_age > 0 or self.num_epochs > 1):
            raise ValueError(
                "clip_param is None, so data of an older policy can't be corrected; set "
                "max_policy_age to 0 and num_epochs to 1, or give a clip_param"
            )

    def _validate_groups(self) -> None:
        """Raises ValueError where episodes can't be played in groups as configured."""
        group = self.episodes_per_problem
        for name in ("episodes_per_update", "num_envs_per_env_runner"):
            if getattr(self, name) % group:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be a multiple of "
                    f"episodes_per_problem, {group}"
                )
        if self.advantage_estimator not in ADVANTAGE_ESTIMATORS:
            raise ValueError(
                f"advantage_estimator is '{self.advantage_estimator}'; expected one of "
                f"{', '.join(ADVANTAGE_ESTIMATORS)}"
            )
        if self.advantage_estimator == "leave_one_out" and group < 2:
            raise ValueError(
                "advantage_estimator 'leave_one_out' compares episodes of one problem; set "
                f"episodes_per_problem to 2 or more, not {group}"
            )
        if self.entropy_follows_return and group < 2:
            raise ValueError(
                "entropy_follows_return looks at the other episodes of a problem; set "
                f"episodes_per_problem to 2 or more, not {group}"
            )
        if self.explorer_kind not in EXPLORER_KINDS:
            raise ValueError(
                f"explorer_kind is '{self.explorer_kind}'; expected one of "
                f"{', '.join(EXPLORER_KINDS)}"
            )
        if self.explorer_kind == "detours" and self.explorer_share > 0 and group < 2:
            raise ValueError(
                "explorer_kind 'detours' tries a plan on several problems; set "
                f"episodes_per_problem to 2 or more, not {group}"
            )
        if not 0 <= self.failed_problem_share <= 1:
            raise ValueError(
                f"failed_problem_share is {self.failed_problem_share}; it must be in 0..1"
            )

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}


class ToolAgent(CallbackStateMixin, Algorithm):
    """Samples whole episodes in columns and learns from them, both at once.

    With remote env runners, requests are kept in flight so that a fragment is ready when the
    learner is: their number is bounded so that no episode is older than `max_policy_age` updates
    when it is learned from. Nothing is sent that could be refused, so nothing is dropped; what is
    dropped all the same (a runner's death, a fragment that came too late) is counted.

    A runner that is killed, raises, is at one request for longer than `sample_timeout_s`, or sends
    what can't have been played again and again is replaced, while the others play on. A dead
    learner ends `train()` with `LearningFailed` or Ray's own error, now and in every later call.

    Attributes:
        updates: gradient steps so far.
        updating_since: when the update under way was begun, on the monotonic clock.
        requests: for fragments, those that are under way.
        give_way: asked while there is nothing to learn from; once it is True, `train()` comes back
            with what it has.
    """

    # RLlib types these as their base classes, or as what they are before `setup`.
    config: Any
    env_runner_group: Any
    learner_group: Any

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ToolAgentConfig:
        return ToolAgentConfig()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        self._updates = 0  # gradient steps so far; weights are numbered by it
        self._fragments: deque[Fragment] = deque()  # ready, not learned from yet
        self.requests = Requests()
        self.updating_since: float | None = None
        self.give_way: Callable[[], bool] = lambda: False
        self._next_runner = 0
        # Requests whose loss was seen outside an iteration; counted in the next one.
        self.lost_at_restore = 0
        self._drained = PipelineFigures()  # what was counted since the last iteration
        self._processes: dict[int, int] = {}  # runner id -> the number of its present process
        self._rejected: Counter[int] = Counter()  # runner id -> fragments, in a row
        self._skipped_in_a_row = 0
        super().setup(config)
        task = self.env_runner_group.local_env_runner.env.task
        self._exploration = Exploration(self.config, task.stages.stop, task.num_statuses)
        self.publish_weights()

    @property
    def updates(self) -> int:
        """Gradient steps so far."""
        return self._updates

    @override(Algorithm)
    def training_step(self) -> None:
        check_learners(self)
        if self._stage() != self._published_stage:
            self.publish_weights()
        figures, self._drained = self._drained, PipelineFigures()
        figures.lost_requests += self.lost_at_restore
        self.lost_at_restore = 0
        self._runner_metrics: list[Any] = []
        for update in range(self.config.updates_per_iteration):
            started = time.perf_counter()
            batch = self._next_batch(figures)
            if batch is None:  # there is nothing to learn from, and the caller wants to go on
                break
            sampled = time.perf_counter()
            self.updating_since = time.monotonic()
            last = update + 1 == self.config.updates_per_iteration
            figures.trained_env_steps += self._update(batch, figures, reduce_metrics=last)
            learned = time.perf_counter()
            self.publish_weights()
            self.updating_since = None
            figures.wait_s += sampled - started
            figures.learn_s += learned - sampled
            figures.sync_s += time.perf_counter() - learned
        if self._runner_metrics:
            self.metrics.aggregate(self._runner_metrics, key=ENV_RUNNER_RESULTS)
        figures.log(self.metrics, PIPELINE)
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise LearningFailed(
                f"the gradients of {self._skipped_in_a_row} updates in a row were no finite "
                "numbers; a smaller training.lr may help"
            )

    # Sampling -----------------------------------------------------------------------------

    def _next_batch(self, figures: PipelineFigures) -> EpisodeBatch | None:
        """The episodes of the next update; None if there are none and `give_way()`."""
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
        return batches[0] if len(batches) == 1 else concatenate(batches)

    def _next_fragments(self, wanted: int, figures: PipelineFigures) -> list[Fragment] | None:
        """Fragments with at least `wanted` episodes, none older than `max_policy_age`."""
        taken: list[Fragment] = []
        per_update = self._fragments_per_update()
        waiting_since = time.monotonic()
        while sum(len(fragment.batch) for fragment in taken) < wanted:
            self._request_fragments(len(taken))
            fragment = self._next_waiting(per_update - len(taken))
            if fragment is None:
                self._fetch(figures)
                if not self._fragments and not self._wait_on(waiting_since):
                    self._fragments.extendleft(reversed(taken))
                    return None
                continue
            # Below 0: played before the algorithm was set back to an older state.
            if not 0 <= self._age(fragment) <= self.config.max_policy_age:
                figures.drop(fragment)
                self._runner_metrics.append(fragment.metrics)  # it was sampled all the same
            else:
                taken.append(fragment)
        if not self.config.max_policy_age:
            # Only this order depends on which runner was faster; each one's own are in order.
            taken.sort(key=lambda fragment: fragment.env_runner)
        # The next update's fragments are played while this one is learned from.
        self._request_fragments(len(taken))
        return taken

    def _wait_on(self, since: float) -> bool:
        """Brings runners back where all are gone; False if waiting any longer is not wanted."""
        if not self.env_runner_group.healthy_env_runner_ids():
            restored = self.restore_env_runners(self.env_runner_group)
            if restored:
                self._make_on_env_runners_recreated_callbacks(
                    config=self.config,
                    env_runner_group=self.env_runner_group,
                    restored_env_runner_indices=restored,
                )
            time.sleep(_NOBODY_THERE_S)
        # An iteration is cut short only where it would take long: its end is then no longer where
        # another run of the same seed has it.
        return time.monotonic() - since < _PATIENCE_S or not self.give_way()

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
        limit = self.config.max_policy_age
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
        worth at a time. With `taken` fragments going into the present update, max_policy_age
        updates' worth more may be under way or waiting.
        """
        group, config = self.env_runner_group, self.config
        allowed = self._fragments_per_update() * (config.max_policy_age + 1)
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
            if self.config.max_policy_age:
                runner = min(free, key=lambda r: (self.requests.of(r), in_turn[r]))
            else:
                runner = min(runners, key=in_turn.__getitem__)
                if runner not in free:
                    return
            self._next_runner = runner + 1
            sent = group.foreach_env_runner_async(
                "sample_fragment",
                tag=_SAMPLE,
                kwargs={"state": self._weights, "request": self.requests.next_number()},
                remote_worker_ids=[runner],
            )
            if not sent:
                return
            self.requests.send(runner, self._updates + 1)

    def _fetch(self, figures: PipelineFigures) -> None:
        """Takes in the fragments that are ready, and gives up the requests that died or hang."""
        group = self.env_runner_group
        for runner, fragment in group.fetch_ready_async_reqs(tags=_SAMPLE, timeout_seconds=_POLL_S):
            if self.requests.answer(fragment.request):  # else it was given up, and counted as lost
                self._take_in(runner, fragment, figures)
        self.requests.look()
        for runner in self.requests.hung(self.config.sample_timeout_s):
            figures.hung_env_runners += 1
            self._replace(runner)
        figures.lost_requests += self.requests.lose_all_but(group.healthy_env_runner_ids())

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
        # RLlib has no public way to end an actor that it manages.
        manager = self.env_runner_group._worker_manager
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
        runners = group._worker_manager.actor_ids()
        if restored:  # what they were asked for before they died
            others = [runner for runner in runners if runner not in restored]
            self._drained.lost_requests += self.requests.lose_all_but(others)
        for runner in runners:
            if runner not in healthy and runner not in restored:  # at most two pings each
                group.foreach_env_runner_async(
                    _PING, tag=_PING, healthy_only=False, remote_worker_ids=[runner]
                )
        return restored

    def _age(self, fragment: Fragment) -> int:
        """Updates since the weights that played it were published."""
        return self._updates + 1 - fragment.weights_seq_no

    # Learning -----------------------------------------------------------------------------

    def _update(self, batch: EpisodeBatch, figures: PipelineFigures, reduce_metrics: bool) -> int:
        """One gradient step; returns the env steps that it learned from."""
        config = self.config
        shards = max(1, config.num_learners)
        columns = self._exploration.learner_columns(batch)
        batches = [_learner_batch(columns, shard, shards) for shard in range(shards)]
        data = (
            TrainingData(batch_refs=[ray.put(part) for part in batches])
            if config.num_learners
            else TrainingData(batch=batches[0])
        )
        results = self.learner_group.update(
            training_data=data,
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                    (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0
                )
            },
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
            **_equal_steps(config, batches),
            # Reducing RLlib's metrics takes as long as a small update: once an iteration will do.
            _no_metrics_reduce=not reduce_metrics,
        )
        self._updates += 1
        if reduce_metrics:
            figures.skipped_updates += _of_learner(results, SKIPPED_UPDATES)
            self._skipped_in_a_row = _of_learner(results, SKIPPED_IN_A_ROW)
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return sum(part.env_steps() for part in batches)

    def publish_weights(self) -> None:
        """Puts the learner's weights, numbered, into every request from now on.

        The reference travels with each request, so a runner never plays with weights older than
        its request and no separate message can be dropped.
        """
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        self._published_stage = self._stage()
        state = {
            COMPONENT_RL_MODULE: state[COMPONENT_RL_MODULE],
            WEIGHTS_SEQ_NO: self._updates + 1,
            EXPLORERS: self._exploration.for_runners(),
            # Ray may have put a new process in a runner's place that nobody told the stage.
            "stage": self._published_stage,
        }
        remote = self.env_runner_group.num_remote_env_runners() > 0
        self._weights = ray.put(state) if remote else state

    def _stage(self) -> int:
        """The curriculum's stage, as its callback set it."""
        return self.env_runner_group.local_env_runner.env.stage

    # Checkpoints --------------------------------------------------------------------------

    @override(Algorithm)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state, and everything else that the course of the run depends on.

        Env runners finish what they were asked for; those episodes are part of the state. What
        does not come within `DRAIN_S` is counted in it instead, as lost to whoever restores it.
        """
        state = super().get_state(components, not_components=not_components, **kwargs) | {
            "updates": self._updates,
            "exploration": self._exploration.get_state(),
        }
        if self._check_component(PIPELINE, components, not_components):
            state[PIPELINE] = self._pipeline_state()
        return state

    def _drain(self) -> None:
        """Takes in what is under way, as far as it comes in time."""
        deadline = time.perf_counter() + DRAIN_S
        while len(self.requests) and time.perf_counter() < deadline:
            self._fetch(self._drained)
        self.lost_at_restore += self._drained.lost_requests  # of runners that died just now
        self._drained.lost_requests = 0

    def _pipeline_state(self) -> dict[str, Any]:
        self._drain()
        group = self.env_runner_group
        quiet = [
            runner for runner in group.healthy_env_runner_ids() if not self.requests.of(runner)
        ]
        return {
            "fragments": [fragment_state(fragment) for fragment in self._fragments],
            "env_runners": runner_states(group, quiet),
            "next_runner": self._next_runner,
            "lost_requests": self.lost_at_restore + len(self.requests),
        }

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if COMPONENT_ENV_RUNNER in state:  # RLlib has set its count of env steps to the old total
            self.env_runner_group.local_env_runner.set_state(state[COMPONENT_ENV_RUNNER])
        if "updates" in state:
            self._updates = state["updates"]
            self._exploration.set_state(state["exploration"])
            self._drain()
            self._fragments.clear()  # played with the weights before
            # (By name, RLlib would not reach the local one.)
            self.env_runner_group.foreach_env_runner(_expect_any_weights)
            self.publish_weights()
        if PIPELINE in state:
            self._set_pipeline_state(state[PIPELINE])

    def _set_pipeline_state(self, state: dict[str, Any]) -> None:
        classes: Any = self.metrics.stats_cls_lookup
        self._fragments.extend(fragment_of(saved, classes) for saved in state["fragments"])
        self._next_runner = state["next_runner"]
        self.lost_at_restore = state["lost_requests"]
        stage = self.env_runner_group.local_env_runner.env.stage
        restore_runners(self.env_runner_group, state["env_runners"], stage, self._updates)


def _expect_any_weights(env_runner: BatchedEnvRunner) -> None:
    env_runner.expect_any_weights()


def _of_learner(results: list[dict[str, Any]], name: str) -> int:
    """A count of the learners', which are all the same; 0 where nothing was counted."""
    stats = results[0].get(DEFAULT_MODULE_ID, {}).get(name)
    value = 0.0 if stats is None else float(stats.peek())
    return 0 if math.isnan(value) else round(value)


def _learner_batch(columns: dict[str, np.ndarray], shard: int, shards: int) -> MultiAgentBatch:
    """One learner's share: every `shards`-th episode, cut to the longest one's steps."""
    columns = {name: column[shard::shards] for name, column in columns.items()}
    steps = int(columns["lengths"].max())
    for name in STEP_COLUMNS:
        columns[name] = columns[name][:, :steps]
    return MultiAgentBatch(
        {DEFAULT_MODULE_ID: SampleBatch(columns)},
        env_steps=int(columns["lengths"][~columns["replayed"]].sum()),
    )


def _equal_steps(config: Any, batches: list[MultiAgentBatch]) -> dict[str, int]:
    """The same number of gradient steps for all learners, whose shares may differ by an episode:
    one with a minibatch more than the others would wait for their gradients for ever."""
    if len(batches) == 1 or not config.minibatch_size:
        return {}
    fewest = min(len(part[DEFAULT_MODULE_ID]["lengths"]) for part in batches)
    return {"num_total_minibatches": max(1, config.num_epochs * fewest // config.minibatch_size)}
