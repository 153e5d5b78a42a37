"""Search files: what loads, what is refused and in which words; scores, names, shares."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import refusals
import yaml
from ray import tune
from ray.tune import Trainable
from ray.tune.experiment import Experiment, Trial
from ray.tune.registry import register_trainable
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console

from toolagent import cli
from toolagent.cli.activity import Activity
from toolagent.cluster.ray_session import Cluster
from toolagent.cluster.tune_state import OptunaTrials, SeededVariants, TrialsAtOnce
from toolagent.config import (
    build_algorithm_config,
    find_search,
    settings_from_text,
    shipped_configs,
    shipped_searches,
    to_yaml,
)
from toolagent.errors import UserError
from toolagent.files import lock_folder
from toolagent.installation import install_command
from toolagent.tune import report as tune_report
from toolagent.tune.folder import SearchFolder
from toolagent.tune.progress import SearchProgress
from toolagent.tune.report import best_config, judge, summarize, write_report
from toolagent.tune.resources import plan
from toolagent.tune.rows import TrialRow, in_order, is_base, ranking, reports_of, trial_table
from toolagent.tune.search import (
    SEEDS,
    SearchSettings,
    TrialLimits,
    load_search,
    search_from_texts,
    search_yaml,
)
from toolagent.tune.space import Distribution, short_names, value_text
from toolagent.tune.trial import score
from toolagent.tune.tuner import ASHA, ResumedASHA, in_time

GOOD = {
    "space": {"training.lr": {"loguniform": [1e-3, 1e-2]}},
    "trial": {"max_env_steps": 1000},
}


@pytest.fixture
def write(tmp_path):
    """Writes a search that is good but for the given entries."""

    def write_search(**changes):
        path = tmp_path / "given.yaml"
        document = {key: value for key, value in (GOOD | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(document))
        return path

    return write_search


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    return message


# Good searches ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_searches())
def test_every_shipped_search_loads(name):
    search = load_search(name)
    assert search.num_trials >= 2
    again = search_from_texts(search_yaml(search), search.base_yaml, "written")
    assert again == search


def test_searches_are_no_configs():
    assert not set(shipped_searches()) & set(shipped_configs())
    assert find_search("tune_optuna").name == "tune_optuna.yaml"
    assert find_search(None).name == "tune_calculator.yaml"


def test_flags_and_settings_reach_the_trials(write):
    path = write(settings={"training.gamma": 0.9, "seed": 3}, num_samples=5)
    search = load_search(path, ["training.gamma=0.8", "run.dashboard=false"], 7, 60.0)
    assert search.base.sections["training"]["gamma"] == 0.8
    assert search.base.seed == 3
    assert not search.base.run.dashboard
    assert search.num_trials == 7 + 1  # and the base
    assert search.settings.stop_time_s == 60.0


def test_a_grid_has_every_combination(write):
    space = {
        "training.lr": {"choice": [1e-3, 3e-3]},
        "seed": {"choice": [1, 2, 3]},
    }
    search = load_search(write(space=space, search="grid", num_samples=2))
    assert search.num_trials == 12 + 1  # and the base


def test_joined_keys_get_one_value(write):
    key = "training.episodes_per_update, env_runners.num_envs_per_env_runner"
    search = load_search(write(space={key: {"choice": [64, 128]}}))
    row = TrialRow(1, SearchFolder, {key: 64}, {"score": 0.5, "certified": True} | RESULT)
    written = best_config(search, row)
    settings = settings_from_text(written, "best")
    assert settings.sections["training"]["episodes_per_update"] == 64
    assert settings.sections["env_runners"]["num_envs_per_env_runner"] == 64
    build_algorithm_config(settings)


# What is refused --------------------------------------------------------------------------

LR = "training.lr"
# A row for each check: what is changed, and what must be named: the key, and what would be right.
WRONG = [
    ({"space": None}, "space: missing"),
    ({"trial": {}}, "trial: ", "max_env_steps", "max_time_s"),
    ({"trial": {"max_time_s": 9.0}}, "trial.max_env_steps: missing", "env_steps"),
    ({"objective": "seconds"}, "trial.max_time_s: missing", "seconds"),
    ({"objective": "speed"}, "objective: ", "'accuracy'"),
    ({"num_sampels": 3}, "num_sampels: ", "'num_samples'"),
    ({"num_samples": 0}, "num_samples: "),
    ({"base": "defualt"}, "base: ", "'default'"),
    ({"base": "expression_long"}, "base: ", "'student'", "--set student=null"),
    ({"space": {"student.training.lr": {"choice": [1e-3]}}}, "space.student.training.lr: "),
    ({"settings": {LR: -1.0}}, "settings.training.lr: "),
    ({"settings": {LR: 1e-3}}, "space.training.lr: ", "settings.training.lr"),
    ({"space": {"training.lrr": {"uniform": [0, 1]}}}, "space.training.lrr: ", "'lr'"),
    ({"space": {"curriculum.levels.9.stage": {"choice": [1]}}}, "levels.9.stage: ", "'9'"),
    ({"space": {"run.stop_time_s": {"choice": [1.0]}}}, "space.run.stop_time_s: ", "'trial'"),
    ({"space": {LR: 0.1}}, "space.training.lr: ", "distribution"),
    ({"space": {LR: {"unifrom": [0, 1]}}}, "space.training.lr.unifrom: ", "'uniform'"),
    ({"space": {LR: {"uniform": [1, 1]}}}, "space.training.lr", "is empty"),
    ({"space": {LR: {"uniform": [0]}}}, "space.training.lr.uniform: ", "[low, high]"),
    ({"space": {LR: {"uniform": ["a", 1]}}}, "space.training.lr.uniform.0: ", "number"),
    ({"space": {LR: {"uniform": [0, float("inf")]}}}, "space.training.lr", "finite"),
    ({"space": {LR: {"loguniform": [0, 1]}}}, "space.training.lr.loguniform.0: ", "greater than 0"),
    ({"space": {"seed": {"randint": [0.5, 3]}}}, "space.seed.randint.0: ", "integer"),
    ({"space": {LR: {"quniform": [0, 1, 0]}}}, "space.training.lr", "step 0"),
    ({"space": {LR: {"quniform": [0, 1, 0.3]}}}, "space.training.lr", "step 0.3"),
    ({"space": {LR: {"quniform": [0.001, 0.002, 1e-320]}}}, "space.training.lr", "step"),
    ({"space": {LR: {"choice": []}}}, "space.training.lr", "list"),
    ({"space": {LR: {"choice": [0.1, 0.1]}}}, "space.training.lr", "0.1"),
    ({"space": {LR: {"choice": [0.1, "fast"]}}}, "space.training.lr: ", "'fast'"),
    ({"space": {LR: {"uniform": [-1, 1]}}}, "space.training.lr: ", "-1"),
    ({"space": {"training.episodes_per_update": {"uniform": [1, 9]}}}, "episodes_per_update: "),
    ({"space": {LR: {"choice": [1e-3]}, f"{LR}, seed": {"choice": [1]}}}, f"space.{LR}"),
    ({"search": "grid"}, "space.training.lr: ", "'choice'"),
    ({"scheduler": "pbt", "search": "optuna"}, "search: ", "pbt"),
    ({"scheduler": "pbt", "num_samples": 1}, "num_samples: ", "2"),
    ({"scheduler": "pbt", "seeds": 2}, "seeds: ", "pbt"),
    ({"search": "optuna", "seeds": 2}, "seeds: ", "optuna"),
    ({"space": {"seed": {"choice": [1, 2]}}, "seeds": 2}, "space.seed: ", "'seeds'"),
    ({"scheduler": "pbt", "space": {"seed": {"choice": [1, 2]}}}, "space.seed: ", "training.*"),
]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: str(row[0])[:60])
def test_a_wrong_search_is_refused(write, row):
    changes, *named = row
    said = refusal(load_search, write(**changes))
    assert [part for part in ("given.yaml: ", *named) if part not in said] == [], said


def test_a_key_that_is_searched_over_cannot_be_set(write):
    said = refusal(load_search, write(), ["training.lr=0.1"])
    assert "space.training.lr: " in said and "--set training.lr=0.1" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "expected a search"), ("- 1\n", "expected a search"), ("a: [", "line ")],
)
def test_what_is_no_search_file_is_refused(tmp_path, text, message):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    assert message in refusal(load_search, path)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Calls the command, which must refuse, and name the given parts; returns its line."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("task: calculator\n")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.yaml").write_text("space: {}\n")
    (tmp_path / "search" / "base.yaml").write_text("task: calculator\n")
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "search.yaml").write_bytes(b"\xff\x00")
    (tmp_path / "garbled" / "base.yaml").write_text("seed: 0\n")
    (tmp_path / "garbled-base").mkdir()
    (tmp_path / "garbled-base" / "search.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "garbled-base" / "base.yaml").write_bytes(b"\xff\x00")
    monkeypatch.chdir(tmp_path)
    return lambda line, *named: refusals.refusal(capfd, "tune", line.split(), named)


COMMAND = [
    ("--config tune_calculater", "'tune_calculater'", "'tune_calculator'"),
    ("--output-dir full", "--output-dir full", "not empty"),
    ("--output-dir search", "--output-dir search", "--resume search"),
    ("--output-dir file", "--output-dir file", "a file"),
    ("--output-dir /proc/new", "--output-dir /proc/new"),
    ("--output-dir new\udcff", "UTF-8"),
    ("--resume missing", "--resume missing"),
    ("--resume empty", "--resume empty", "search.yaml"),
    ("--resume run", "python -m toolagent.run --resume run"),
    ("--resume search", "--resume search", "space"),
    ("--resume garbled", "search.yaml", "UTF-8"),
    ("--resume garbled-base", "base.yaml", "UTF-8"),
    ("--resume search --config tune_pbt", "--config", "--resume"),
    ("--resume search --set seed=1", "--set", "--resume"),
    ("--set seed=-1", "--set seed"),
    ("--set training.lr=0.1", "training.lr", "--set training.lr=0.1"),
]


@pytest.mark.parametrize("row", COMMAND, ids=lambda row: ascii(row[0]))
def test_the_command_refuses(command, row):
    command(*row)


def test_a_search_keeps_others_out_of_its_folder(command):
    resumed, new = SearchFolder(Path("search")), SearchFolder(Path("empty"))
    lock_folder(resumed.path, resumed, "--resume", "search")
    command("--resume search", "--resume search", "a search is at work")
    lock_folder(new.path, new, "--output-dir", "search")
    other = SearchFolder.new("empty", "")  # which finds it as empty as the first did
    with pytest.raises(UserError, match="--output-dir empty: a search is at work in it"):
        other.make("", "")
    assert list(Path("empty").iterdir()) == []


def test_optuna_is_asked_for_where_it_is_missing(monkeypatch, command):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert install_command("tune") in command("--config tune_optuna")


# Distributions and names ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "extremes"),
    [
        ({"choice": [1, "a", None]}, [1, "a", None]),
        ({"uniform": [0, 1]}, [0.0, 1.0]),
        ({"loguniform": [1e-3, 1]}, [1e-3, 1.0]),
        ({"quniform": [0, 1, 0.25]}, [0.0, 1.0]),
        ({"randint": [1, 9]}, [1, 8]),
        ({"lograndint": [1, 9]}, [1, 8]),
    ],
)
def test_a_distribution_draws_between_its_extremes(written, extremes):
    distribution = Distribution.model_validate(written)
    assert distribution.extremes == extremes
    assert distribution.model_dump() == written
    domain = distribution.domain()
    drawn = [domain.sample() for _ in range(200)]
    if distribution.kind == "choice":
        assert set(drawn) == set(extremes)
    else:
        assert extremes[0] <= min(drawn) and max(drawn) <= extremes[1]


def test_names_are_as_short_as_they_can_be():
    keys = ["training.lr", "a.b.size", "c.b.size, d.e"]
    assert short_names(keys) == {
        "training.lr": "lr",
        "a.b.size": "a.b.size",
        "c.b.size, d.e": "c.b.size",
    }
    values = [0.00123456, 12, True, None, "text", [1, 2], 1e-5]
    shown = ["0.001235", "12", "true", "null", "text", "[1,2]", "1e-05"]
    assert [value_text(value) for value in values] == shown


# Scores and ranking -----------------------------------------------------------------------

RESULT = {"env_steps": 500, "seconds": 5.0, "accuracy": 1.0, "ended": "certified", "done": True}


def settings_for(objective):
    return SearchSettings(
        space={"seed": {"choice": [1]}},
        objective=objective,
        trial=TrialLimits(max_env_steps=1000, max_time_s=10.0),
    )


def test_scores_put_the_certified_first_and_the_cheapest_of_them_on_top():
    settings = settings_for("env_steps")
    scores = [
        score(settings, 0.1, None),
        score(settings, 0.999, None),
        score(settings, 1.0, 1000),
        score(settings, 1.0, 500),
        score(settings, 1.0, 10),
    ]
    assert all(worse < better for worse, better in itertools.pairwise(scores))
    assert score(settings, 1.0, 500) == 1.5
    assert score(settings, 1.0, 5000) == 1.0  # over the budget: no cheaper than the budget
    assert score(settings_for("seconds"), 1.0, 2.5) == 1.75
    assert score(settings_for("accuracy"), 0.7, 2.5) == 0.7


def test_a_failed_trial_is_neither_good_nor_bad(write, tmp_path):
    search = load_search(write())
    rows = [
        TrialRow(1, tmp_path, {LR: 0.1}, {"score": 9.0} | RESULT, error="OSError: full"),
        TrialRow(2, tmp_path, {LR: 0.2}, {"score": 1.2, "certified": True} | RESULT),
        TrialRow(3, tmp_path, {LR: 0.3}, {}),
        TrialRow(4, tmp_path, {LR: 0.4}, RESULT | {"score": 0.4, "ended": None}),
    ]
    assert [row.number for row in ranking(rows)] == [2, 4]
    statuses = ["failed", "certified", "unfinished", "stopped_early"]
    assert [row.status for row in rows] == statuses
    summary = summarize(search, rows, SearchFolder(tmp_path), "completed", 1.0)
    assert summary["failed"] == 1
    assert summary["best"]["number"] == 2
    assert summary["best"]["settings"] == {LR: 0.2}
    assert summary["trials"][0]["error"] == "OSError: full"
    assert summarize(search, rows[:1], SearchFolder(tmp_path), "completed", 1.0)["best"] is None


def trial(number, score, settings=None, certified=True, **more):
    """A row with what a ranking looks at; without settings, the base."""
    metrics = RESULT | {"score": score, "certified": certified}
    metrics |= {} if certified else {"ended": None}
    return TrialRow(number, Path(), settings or {}, metrics, **more)


@pytest.mark.parametrize(
    ("objective", "rows", "number", "beats_base"),
    [
        ("env_steps", [trial(1, 1.3), trial(2, 1.2, {LR: 2})], 1, False),
        ("env_steps", [trial(1, 1.2), trial(2, 1.3, {LR: 2})], 2, True),
        # 73.2% against 73.1% on a plateau is noise.
        ("env_steps", [trial(1, 0.731, None, False), trial(2, 0.732, {LR: 2}, False)], 1, False),
        ("accuracy", [trial(1, 0.7), trial(2, 0.8, {LR: 2})], 2, True),
        ("env_steps", [trial(1, 0, error="OSError"), trial(2, 1.2, {LR: 2})], 2, None),
    ],
)
def test_what_is_recommended_is_never_known_to_be_worse_than_the_base(
    write, tmp_path, objective, rows, number, beats_base
):
    limits = {"max_env_steps": 1000, "max_time_s": 10.0}
    search = load_search(write(objective=objective, trial=limits))
    summary = summarize(search, rows, SearchFolder(tmp_path), "completed", 1.0)
    assert (summary["best"]["number"], summary["beats_base"]) == (number, beats_base)
    written = settings_from_text(best_config(search, judge(search, rows).row), "best")
    assert (to_yaml(written) == search.base_yaml) == (number == 1)


def test_of_several_seeds_the_median_counts(write):
    search = load_search(write(seeds=3, num_samples=2))
    assert search.num_trials == 3 * (2 + 1) and search.seeds == [0, 1, 2]
    rows = [trial(n, score, None, seed=n) for n, score in enumerate((1.1, 1.4, 1.5))]
    lucky = [trial(n, score, {LR: 1}, seed=n) for n, score in enumerate((1.9, 1.2, 1.3), 3)]
    assert [row.metrics["score"] for row in ranking(rows + lucky)] == [1.4, 1.3]
    assert judge(search, rows + lucky).row.settings == {}


def test_importance_is_not_drawn_from_few_trials_or_from_noise(write, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(tune_report, "plot_learning_curves", lambda *arguments: None)
    monkeypatch.setattr(
        tune_report, "plot_settings", lambda name, _, rows, path: drawn.update({name: rows})
    )
    search, folder = load_search(write()), SearchFolder(tmp_path)
    folder.importance.write_bytes(b"of an earlier session")
    rows = [trial(1, 0.5, None, False)]
    rows += [trial(n, n / 100, {LR: n / 1000}, n < 11) for n in range(2, 30)]
    summary = summarize(search, rows, folder, "completed", 1.0)
    (note,) = write_report(search, rows, folder, summary)
    assert "besides the base: 9; it takes 10" in note
    assert not folder.importance.exists()
    assert {name: len(rows) for name, rows in drawn.items()} == {"plot_parallel_coordinate": 9}


def test_a_base_that_falls_behind_goes_on_and_others_are_stopped():
    asha = ASHA(**RUNGS)
    asha.set_search_properties("score", "max")
    trials = [Trial("PPO", trial_id=f"ab_{number:05d}", stub=True) for number in range(3)]
    trials[0].config, trials[2].config = {LR: 1e-3}, {LR: 2e-3}
    for each in trials:
        asha.on_trial_add(None, each)
    scores = (0.9, 0.1, 0.1)  # the base is the second
    decisions = [
        asha.on_trial_result(None, each, report(0, 1, score))
        for each, score in zip(trials, scores, strict=True)
    ]
    assert decisions == ["CONTINUE", "CONTINUE", "STOP"]


def test_the_table_of_trials_fits_80_columns():
    search = load_search("tune_calculator")
    keys = list(search.space)
    settings = {keys[0]: 0.002134, keys[1]: 0.01234, keys[2]: 1024, keys[3]: 0.2134}
    rows = [trial(1, 1.2), trial(13, 0.731, settings, False)]
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    cli.print_table(console, trial_table(search, [(r, r.status) for r in rows]))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "1 base" in stream.getvalue()


# Shares of a cluster ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runners", "at_once", "cpus", "expected"),
    [(0, None, 2, 2), (1, None, 2, 1), (1, None, 8, 4), (3, None, 2, 1), (3, 2, 2, 2)],
)
def test_as_many_trials_at_once_as_fit(write, runners, at_once, cpus, expected):
    from toolagent.tune.trial import trial_class

    path = write(
        settings={"env_runners.num_env_runners": runners}, trials_at_once=at_once, num_samples=4
    )
    search = load_search(path)
    trials, share, notes = plan(search, Cluster(cpus, 0.0, 1, False))
    assert trials == expected
    assert notes[0].startswith(f"{expected} trial")
    request = trial_class(search, share).default_resource_request({LR: 1e-3})
    assert request.required_resources["CPU"] * trials <= cpus + 1e-9


def test_more_gpus_than_there_are_are_refused_before_any_trial(write):
    search = load_search(write(settings={"learners.num_gpus_per_learner": 1}))
    assert "num_gpus_per_learner" in refusal(plan, search, Cluster(2.0, 0.0, 1, False))


# What a person sees -----------------------------------------------------------------------


class FakeTrial:
    """As far as the display looks at one."""

    path, checkpoint = "folder", None

    def __init__(self, number, status="RUNNING", result=None, error=None):
        self.trial_id, self.status, self.last_result = f"id{9 - number}", status, result
        self.experiment_tag = f"{number}_lr={number / 1000}"
        self.config, self.error = {LR: number / 1000}, error

    def get_error(self):
        return self.error

    def is_finished(self):
        return self.status in ("TERMINATED", "ERROR")

    def __str__(self):
        return f"lr={self.config[LR]:g}"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_shows_running_trials_ended_ones_and_failures(write, terminal):
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=terminal, width=100, markup=False, highlight=False)
    done = {"score": 1.5, "stage": 2, "certified": True} | RESULT
    trials = [
        FakeTrial(1, "TERMINATED", done),
        FakeTrial(2),
        FakeTrial(3, "ERROR", None, "Traceback ...\nValueError: no such thing\n"),
    ]
    trials.reverse()  # Tune has those of a resumed search in another order
    search = load_search(write(num_samples=3))
    with Activity(screen) as activity:
        progress = SearchProgress(activity, search)
        progress.setup()
        progress.on_trial_complete(1, trials, trials[2])
        progress.on_trial_error(1, trials, trials[0])
        progress._shown = -1e9  # the last table is old
        progress.on_step_end(1, trials)
        progress.on_experiment_end(trials)
    shown = stream.getvalue()
    assert "trial 1/4: certified at 500 env steps, 5.0 s; lr=0.001" in shown
    assert "trial 3/4: FAILED: ValueError: no such thing; lr=0.003" in shown
    assert "running" in shown and "failed" in shown and "100.0%" in shown


# A resumed search ------------------------------------------------------------------------------


def report(trial_number, iteration, score):
    return {
        "training_iteration": iteration,
        "env_steps": 100 * iteration,
        "score": score,
        "timestamp": 10 * trial_number + iteration,
    }


def earlier_search(*trials):
    """Trials as Tune reads them from a folder: (status, reports, iteration of the checkpoint)."""
    found, frames = [], {}
    for number, (status, reports, checkpoint) in enumerate(trials):
        trial = Trial("PPO", trial_id=f"ab_{number:05d}", stub=True)
        trial.status = status
        trial.config = {LR: 1e-3 * (number + 1)}
        if checkpoint:
            trial._restore_checkpoint_result = SimpleNamespace(
                metrics={"training_iteration": checkpoint}
            )
        found.append(trial)
        frames[trial.trial_id] = pandas.DataFrame(reports)
    return SimpleNamespace(trials=found, trial_dataframes=frames)


RUNGS = {"time_attr": "env_steps", "max_t": 1000, "grace_period": 100, "reduction_factor": 3}


def test_asha_goes_on_with_what_the_trials_reported_before_it_was_resumed():
    reports = [
        [report(0, iteration, 0.9) for iteration in range(1, 5)],
        [report(1, iteration, 0.5) for iteration in range(1, 4)],
    ]
    uninterrupted = ASHAScheduler(**RUNGS)
    uninterrupted.set_search_properties("score", "max")
    earlier = earlier_search(("TERMINATED", reports[0], 4), ("PENDING", reports[1], 2))
    for trial, of_trial in zip(earlier.trials, reports, strict=True):
        uninterrupted.on_trial_add(None, trial)
        for row in of_trial if trial.is_finished() else of_trial[:2]:
            uninterrupted.on_trial_result(None, trial, row)
    resumed = ResumedASHA(earlier, **RUNGS)
    assert resumed.set_search_properties("score", "max")
    new = Trial("PPO", trial_id="ab_00002", stub=True)
    new.config = {LR: 1e-3}
    for scheduler in (uninterrupted, resumed):
        for trial in (*earlier.trials[1:], new):
            scheduler.on_trial_add(None, trial)
    following = [
        (new, report(2, 1, 0.7)),  # in the better third? no: 0.9 is
        (earlier.trials[1], reports[1][2]),  # made again, from the checkpoint on
        (earlier.trials[1], report(1, 4, 0.95)),
    ]
    decisions = [
        [scheduler.on_trial_result(None, trial, row) for trial, row in following]
        for scheduler in (uninterrupted, resumed)
    ]
    assert decisions[0] == decisions[1]
    assert decisions[1][0] == "STOP"  # an ASHA that knows of no other trial goes on with any


def test_iterations_that_were_made_again_count_once():
    reports = [report(0, 1, 0.1), report(0, 2, 0.2), report(0, 3, 0.3)]
    again = [report(1, 2, 0.4), report(1, 3, 0.5)]
    earlier = earlier_search(("PENDING", reports + again, 2))
    (trial,) = earlier.trials
    assert reports_of(earlier, trial) == [reports[0], *again]
    assert [row for _, row, _ in in_time(earlier)] == [reports[0], again[0]]
    empty = earlier_search(("PENDING", [], None))
    assert reports_of(empty, empty.trials[0]) == []


@pytest.mark.parametrize("search", ["random", "grid"])
def test_a_resumed_search_draws_what_it_would_have_drawn(tmp_path, search):
    space = {
        LR: {"choice": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]},
        "training.gamma": {"choice": [0.9, 0.99]},
    }

    def draw(earlier=()):
        generator = SeededVariants(max_concurrent=1, random_state=5)
        samples = 10 if search == "random" else 1
        domains = {
            key: Distribution.model_validate(value).domain(search == "grid")
            for key, value in space.items()
        }
        experiment = Experiment(
            "trials", "__fake", config=domains, num_samples=samples, storage_path=str(tmp_path)
        )
        if earlier:
            generator.go_on_after(experiment, earlier)
        else:
            generator.add_configurations([experiment])
        drawn = []
        while (trial := generator.next_trial()) is not None:
            generator.on_trial_complete(trial.trial_id)
            drawn.append(trial)
        return drawn

    register_trainable("__fake", type("Fake", (Trainable,), {}))
    whole = draw()
    for trial in whole:
        trial.status = "TERMINATED"
    assert len(whole) == 10
    rest = draw(whole[:4])
    assert [trial.config for trial in rest] == [trial.config for trial in whole[4:]]
    assert [trial.trial_id for trial in rest] == [trial.trial_id for trial in whole[4:]]
    assert [trial.experiment_tag for trial in rest] == [t.experiment_tag for t in whole[4:]]
    whole[3].status = "PENDING"  # goes on first: one trial at once
    assert draw(whole[:4]) == []


def experiment_of(folder, config, samples=1):
    register_trainable("__fake", type("Fake", (Trainable,), {}))
    return Experiment(
        "trials", "__fake", config=config, num_samples=samples, storage_path=str(folder)
    )


def all_trials(searcher):
    found = []
    while (trial := searcher.next_trial()) is not None:
        for tell in (searcher.on_trial_result, searcher.on_trial_complete):
            tell(trial.trial_id, {"score": 0.5, "training_iteration": 1})
        found.append(trial)
    return found


def test_each_setting_has_all_seeds_and_the_base_comes_first(tmp_path):
    seeds = {SEEDS: tune.grid_search([4, 5])}
    space = {LR: Distribution(choice=[1e-3, 2e-3, 3e-3]).domain()}
    base, experiment = experiment_of(tmp_path, seeds), experiment_of(tmp_path, space | seeds, 3)

    def generator():
        return SeededVariants(base, random_state=5, constant_grid_search=True)

    whole = generator()
    whole.add_configurations([experiment])
    trials = all_trials(whole)
    assert [trial.config.get(SEEDS) for trial in trials] == [4, 5] * 4
    assert [is_base(trial.config) for trial in trials] == [True] * 2 + [False] * 6
    rates = [trial.config[LR] for trial in trials[2:]]
    assert rates[::2] == rates[1::2] and len(set(rates)) > 1
    assert in_order(reversed(trials)) == trials
    for trial in trials:
        trial.status = "TERMINATED"
    rest = generator()
    rest.go_on_after(experiment, trials[:3])  # in the middle of a setting
    assert [trial.config for trial in all_trials(rest)] == [t.config for t in trials[3:]]


def test_optunas_first_trial_is_the_base_of_which_it_is_not_told(tmp_path):
    optuna_search = pytest.importorskip("ray.tune.search.optuna")
    space = {LR: Distribution(loguniform=[1e-3, 1e-2]).domain()}
    searcher = OptunaTrials(TrialsAtOnce(optuna_search.OptunaSearch(seed=0), max_concurrent=2))
    searcher.set_search_properties("score", "max", space)
    searcher.add_configurations([experiment_of(tmp_path, space, 3)])
    base, *others = all_trials(searcher)
    assert is_base(base.config) and in_order([*others, base])[0] is base
    assert len(others) == 3 and all(1e-3 <= t.config[LR] <= 1e-2 for t in others)
