"""The figures of an iteration: their names are public, in every place that has them."""

from types import SimpleNamespace

from toolagent.figures import FIGURES
from toolagent.run.faults import FaultCounts
from toolagent.run.rows import progress_row
from toolagent.trackers.metrics import metrics_of

# Column of `progress.jsonl`, tag in trackers, name in Prometheus: scripts read them.
NAMES = """
time_s                        charts/time_s                       -
env_steps_per_s               charts/SPS                          env_steps_per_second
stage                         charts/stage                        stage
episode_return_mean           charts/episodic_return              episode_return_mean
episode_len_mean              charts/episodic_length              -
policy_loss                   losses/policy_loss                  -
vf_loss                       losses/value_loss                   -
entropy                       losses/entropy                      entropy
imitation_loss                losses/imitation_loss               -
lessons_right                 charts/lessons_right                -
approximate_kl                losses/approx_kl                    -
clipped_share                 losses/clipfrac                     -
explained_variance            losses/explained_variance           -
learning_rate                 charts/learning_rate                -
gradient_norm                 losses/gradient_norm                -
policy_age_mean               pipeline/policy_age_mean            policy_age_updates
policy_age_max                pipeline/policy_age_max             -
learner_idle_share            pipeline/learner_idle_share         learner_idle_ratio
sampler_idle_share            pipeline/sampler_idle_share         sampler_idle_ratio
dropped_episodes_lifetime     pipeline/dropped_episodes_lifetime  dropped_episodes
lost_requests_lifetime        pipeline/lost_requests_lifetime     lost_requests
env_runner_restarts_lifetime  -                                   env_runner_restarts
hung_env_runners_lifetime     -                                   -
rejected_batches_lifetime     -                                   -
skipped_updates_lifetime      -                                   -
learner_restarts_lifetime     -                                   -
failed_checkpoints_lifetime   -                                   -
"""

CURRICULUM = {
    "reason": None,
    "stage": 1,
    "next_stage": 1,
    "measured": False,
    "accuracy": {},
    "mean_return": {},
    "programs": {},
}


def row_of(**parts):
    state = SimpleNamespace(iteration=1, time_s=2.0, env_steps=10, accuracy_at_start={})
    return (
        progress_row({"curriculum": CURRICULUM, **parts}, state, [])
        | FaultCounts({}, None).fields()
    )


def test_the_names_stay():
    names = [
        (figure.name, figure.tag or "-", figure.gauge.name if figure.gauge else "-")
        for figure in FIGURES
    ]
    assert names == [tuple(line.split()) for line in NAMES.strip().splitlines()]


def test_every_figure_is_a_column_also_where_nothing_is_known():
    """As of a stock algorithm, whose result has other parts."""
    row = row_of()
    assert {figure.name for figure in FIGURES} <= row.keys()
    assert row["entropy"] is None and row["stage"] == 1


def test_a_figure_goes_from_the_learner_s_name_to_a_tracker_s():
    learner = {"vf_explained_var": 0.5, "approx_kl": float("nan"), "clipfrac": 0.25}
    row = row_of(learners={"default_policy": learner}, pipeline={"learner_idle_share": 0.125})
    assert (row["explained_variance"], row["clipped_share"]) == (0.5, 0.25)
    assert row["approximate_kl"] is None  # NaN is no JSON
    tags = metrics_of(row)
    assert tags["losses/explained_variance"] == 0.5 and "losses/approx_kl" not in tags
    assert tags["pipeline/learner_idle_share"] == 0.125


def test_figures_of_rllib_s_own_evaluation_are_columns_and_tags():
    played = {"episode_return_mean": 0.5, "num_episodes": 10, "sample": 0.1, "timers": {"a": 1.0}}
    row = row_of(evaluation={"env_runners": played | {"episode_len_mean": float("nan")}})
    given = {name: value for name, value in row.items() if name.startswith("evaluation")}
    assert given == {
        "evaluation/episode_return_mean": 0.5,
        "evaluation/num_episodes": 10.0,
        "evaluation/episode_len_mean": None,  # NaN is no JSON
    }
    tags = metrics_of(row)
    assert tags["evaluation/episode_return_mean"] == 0.5
    assert "evaluation/episode_len_mean" not in tags
    assert not [name for name in row_of() if name.startswith("evaluation")]
