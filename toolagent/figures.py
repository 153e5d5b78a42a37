"""The figures of an iteration: each declared once, for all who write, publish or draw it.

A figure is a column of `progress.jsonl`. These names are public: scripts, dashboards and alerts
read them.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where a figure comes from.
LOOP = "loop"  # what the training loop itself knows
FAULTS = "faults"  # the counts of `run.faults`
ENV_RUNNERS = "env_runners"  # these three: a part of RLlib's result
LEARNER = "learner"
PIPELINE = "pipeline"


@dataclass(frozen=True)
class Gauge:
    """A figure as Prometheus has it; `ray_toolagent_` comes before the name."""

    name: str
    help: str


@dataclass(frozen=True)
class Chart:
    """A figure as the report draws it."""

    title: str
    unit: str = ""
    percent: bool = False  # a share 0..1, drawn as 0..100


@dataclass(frozen=True)
class Figure:
    """A number that each iteration has, or has not (None)."""

    name: str  # the column of `progress.jsonl`
    source: str
    key: str | None = None  # in the source; None: the name
    tag: str | None = None  # in TensorBoard, MLflow and W&B; None: not there
    gauge: Gauge | None = None
    chart: Chart | None = None


# In the order of the columns and of the charts.
FIGURES = (
    Figure("time_s", LOOP, tag="charts/time_s"),
    Figure(
        "env_steps_per_s",
        LOOP,
        tag="charts/SPS",
        gauge=Gauge("env_steps_per_second", "Env steps per second of the last iteration"),
        chart=Chart("Speed", "env steps/s"),
    ),
    Figure("stage", LOOP, tag="charts/stage", gauge=Gauge("stage", "Stage that is trained on")),
    Figure(
        "episode_return_mean",
        ENV_RUNNERS,
        tag="charts/episodic_return",
        gauge=Gauge("episode_return_mean", "Mean return of the policy's training episodes"),
        chart=Chart("Mean return of training episodes"),
    ),
    Figure(
        "episode_len_mean",
        ENV_RUNNERS,
        tag="charts/episodic_length",
        chart=Chart("Mean length of training episodes", "actions"),
    ),
    Figure("policy_loss", LEARNER, tag="losses/policy_loss", chart=Chart("Policy loss")),
    Figure("vf_loss", LEARNER, tag="losses/value_loss", chart=Chart("Value loss")),
    Figure(
        "entropy",
        LEARNER,
        tag="losses/entropy",
        gauge=Gauge("entropy", "Mean entropy of the policy, in nats"),
        chart=Chart("Entropy of the policy", "nats"),
    ),
    Figure(
        "imitation_loss",
        LEARNER,
        tag="losses/imitation_loss",
        chart=Chart("Imitation loss"),
    ),
    Figure(
        "lessons_right",
        LEARNER,
        tag="charts/lessons_right",
        chart=Chart("Lessons that the student writes", percent=True),
    ),
    Figure(
        "approximate_kl",
        LEARNER,
        "approx_kl",
        tag="losses/approx_kl",
        chart=Chart("Divergence from the policy that played", "nats"),
    ),
    Figure(
        "clipped_share",
        LEARNER,
        "clipfrac",
        tag="losses/clipfrac",
        chart=Chart("Clipped steps", "% of the steps", percent=True),
    ),
    Figure(
        "explained_variance",
        LEARNER,
        "vf_explained_var",
        tag="losses/explained_variance",
        chart=Chart("Variance explained by the critic"),
    ),
    Figure(
        "learning_rate",
        LEARNER,
        "default_optimizer_learning_rate",
        tag="charts/learning_rate",
    ),
    Figure(
        "gradient_norm",
        LEARNER,
        "gradients_default_optimizer_global_norm",
        tag="losses/gradient_norm",
    ),
    Figure(
        "policy_age_mean",
        PIPELINE,
        tag="pipeline/policy_age_mean",
        gauge=Gauge(
            "policy_age_updates",
            "Mean age of the weights that played what was learned from, in updates",
        ),
    ),
    Figure("policy_age_max", PIPELINE, tag="pipeline/policy_age_max"),
    Figure(
        "learner_idle_share",
        PIPELINE,
        tag="pipeline/learner_idle_share",
        gauge=Gauge(
            "learner_idle_ratio", "Share of the time in which the learner waits for episodes"
        ),
        chart=Chart("Learner idle", "% of the time", percent=True),
    ),
    Figure(
        "sampler_idle_share",
        PIPELINE,
        tag="pipeline/sampler_idle_share",
        gauge=Gauge(
            "sampler_idle_ratio", "Share of the time in which the env runners wait for requests"
        ),
        chart=Chart("Env runners idle", "% of the time", percent=True),
    ),
    Figure(
        "dropped_episodes_lifetime",
        PIPELINE,
        tag="pipeline/dropped_episodes_lifetime",
        gauge=Gauge(
            "dropped_episodes",
            "Episodes since the run began that came too late to be learned from",
        ),
    ),
    Figure(
        "lost_requests_lifetime",
        PIPELINE,
        tag="pipeline/lost_requests_lifetime",
        gauge=Gauge(
            "lost_requests", "Requests since the run began that died with their env runner"
        ),
    ),
    Figure(
        "env_runner_restarts_lifetime",
        FAULTS,
        "env_runner_restarts",  # new processes that play, whatever ended the ones before
        gauge=Gauge(
            "env_runner_restarts",
            "Env runner processes since the run began that took a lost one's place",
        ),
    ),
    # Of those, ended because they did not answer.
    Figure("hung_env_runners_lifetime", FAULTS, "hung_env_runners"),
    # Fragments that can't be what was played.
    Figure("rejected_batches_lifetime", FAULTS, "rejected_batches"),
    # Gradient steps whose gradient was no number.
    Figure("skipped_updates_lifetime", FAULTS, "skipped_updates"),
    # Times that learning was started again from a checkpoint.
    Figure("learner_restarts_lifetime", FAULTS, "learner_restarts"),
    # Could not be written.
    Figure("failed_checkpoints_lifetime", FAULTS, "failed_checkpoints"),
)
