"""How many trials run at once, and what each may use."""

from __future__ import annotations

from typing import Any

from toolagent.cluster.ray_session import Cluster
from toolagent.config import build_algorithm_config
from toolagent.tune.search import Search, trial_settings
from toolagent.tune.trial import Share, fit


def plan(search: Search, cluster: Cluster) -> tuple[int, Share, list[str]]:
    """Fits the search to the cluster.

    Without `trials_at_once`, as many trials run at once as get all the CPUs and GPUs that they ask
    for, and at least one. With it, that many share what there is.

    Returns:
        Trials at once, the share of each, and lines that say so.

    Raises:
        UserError: one trial alone asks for more GPUs than there are.
    """
    asked = [_asked(search, values) for values in _ends(search)]
    cpus, gpus = (max(column) for column in zip(*asked, strict=True))
    at_once = search.settings.trials_at_once
    if at_once is None:
        at_once = max(1, int(cluster.cpus // cpus)) if cpus else search.num_trials
        if gpus:
            at_once = max(1, min(at_once, int(cluster.gpus // gpus)))
    at_once = min(at_once, search.num_trials)
    share = Share(cluster.cpus / at_once, cluster.gpus / at_once, cluster.nodes)
    _, notes = fit(build_algorithm_config(search.base), share)
    noun = "trial" if at_once == 1 else "trials"
    return at_once, share, [f"{at_once} {noun} at once on {cluster.cpus:g} CPUs", *notes]


def _ends(search: Search) -> list[dict[str, Any]]:
    """The base, and the base with each end of each range: what asks for most is among them."""
    return [{}] + [
        {key: value}
        for key, distribution in search.space.items()
        for value in distribution.extremes
    ]


def _asked(search: Search, values: dict[str, Any]) -> tuple[float, float]:
    """CPUs and GPUs of a trial with nothing to share."""
    config = build_algorithm_config(trial_settings(search.base_yaml, values))
    request = config.algo_class.default_resource_request(config.to_dict())
    resources = request.required_resources
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)
