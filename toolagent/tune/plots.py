"""The pictures of a search: learning curves, and what Optuna draws of settings and scores."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolagent.installation import install_command
from toolagent.tune.rows import BASE, TrialRow
from toolagent.tune.search import SECONDS, Search
from toolagent.tune.space import CHOICE, short_names, value_text
from toolagent.tune.trial import SCORE

if TYPE_CHECKING:
    from optuna import Study

_MOST_NAMED = 8  # curves with an entry in the legend


def plot_learning_curves(search: Search, ranked: list[TrialRow], path: Path) -> None:
    """A PNG: accuracy over the budget, a curve a trial, the best ones named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    unit = search.settings.budget[0]
    names = short_names(list(search.space))
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(ranked):
        label = ", ".join(f"{names[k]}={value_text(v)}" for k, v in row.settings.items()) or BASE
        named = place < _MOST_NAMED
        axes.plot(
            [entry[unit] for entry in row.history],
            [100 * entry["accuracy"] for entry in row.history],
            label=f"{row.number}: {label}" if named else None,
            color=None if named else "lightgrey",
            marker="o" if len(row.history) < 40 else None,  # one result makes no line
            markersize=3,
            linewidth=2 if place == 0 else 1,
            zorder=3 if place == 0 else 2 if named else 1,
        )
    axes.set(
        xlabel="seconds of training" if unit == SECONDS else "env steps",
        ylabel="greedy accuracy, mean over the stages (%)",
        ylim=(-3, 103),
        title=f"{search.base.task}, {len(ranked)} trials",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best", title="trial: its settings, the best first")
    figure.savefig(path, dpi=120)


def plot_settings(function: str, search: Search, ranked: list[TrialRow], path: Path) -> str | None:
    """A PNG of what settings and scores have to do with each other.

    Args:
        function: of `optuna.visualization.matplotlib`, such as `plot_parallel_coordinate`.
        search: of the trials.
        ranked: the trials.
        path: of the picture.

    Returns:
        None, or why there is no picture.
    """
    try:
        import optuna
    except ImportError:
        return f"optuna is not installed; {install_command('tune')}"
    if len({row.metrics[SCORE] for row in ranked}) < 2:
        return "it takes two trials with different scores"
    import matplotlib

    matplotlib.use("Agg")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its own matplotlib plots experimental
        try:
            axes = getattr(optuna.visualization.matplotlib, function)(
                _study(search, ranked), target_name=SCORE
            )
        except (ValueError, RuntimeError) as error:  # too few trials, a setting that never varied
            return str(error)
        for drawn in (part for each in axes.figure.axes for part in each.collections):
            drawn.set_cmap("viridis_r")  # in Optuna's own, the worst trials are white on white
        axes.figure.set_size_inches(10, 5)
        axes.figure.savefig(path, dpi=120, bbox_inches="tight")
        pyplot.close(axes.figure)
    return None


def _study(search: Search, ranked: list[TrialRow]) -> Study:
    """The ranked trials as an Optuna study, whatever searched."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    names = short_names(list(search.space))
    domains = {
        names[key]: tune.choice([_plain(value) for value in entry.arguments])
        if entry.kind == CHOICE
        else entry.domain()
        for key, entry in search.space.items()
    }
    distributions = OptunaSearch.convert_search_space(domains)
    study = optuna.create_study(direction="maximize")
    for row in ranked:
        values = {names[key]: _plain(value) for key, value in row.settings.items()}
        with contextlib.suppress(ValueError):  # PBT perturbs values out of their ranges
            study.add_trial(
                optuna.trial.create_trial(
                    params=values, distributions=distributions, value=row.metrics[SCORE]
                )
            )
    return study


def _plain(value: Any) -> Any:
    """Optuna's categories are plain values; what is none, as text."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else value_text(value)
