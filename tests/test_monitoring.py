"""A live run, scraped by a real Prometheus: series, dashboard queries, alerts; and their files."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from browser import browser, needs_browser
from monitored import MONITORING, exported, lasting_cluster, live_run, suspended
from processes import wait_for

from toolagent.trackers.prometheus import COUNTERS, GAUGES

DASHBOARD = json.loads((MONITORING / "grafana" / "toolagent.json").read_text())
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
MAY_BE_EMPTY = {"GPU", "Alerts"}  # where there is no GPU, and all is well
RUN = '{run="calculating"}'

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Debian's package prometheus",
)


@pytest.fixture(scope="module")
def live():
    with live_run(
        "--num-env-runners=2",
        "--num-learners=1",
        "--set=run.stop_when_solved=false",
        "--set=run.checkpoint_every_s=1",
    ) as run:
        wait_for(lambda: run.prometheus.query(f"ray_toolagent_checkpoint_seconds{RUN}"), "series")
        yield run


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expression_of(alert):
    return next(rule["expr"] for rule in RULES if rule["alert"] == alert)


@pytest.mark.full
@needs_prometheus
@pytest.mark.timeout(1200)
class TestLive:
    def test_every_metric_is_there_with_its_description_and_tags(self, live):
        metadata = live.prometheus.get("metadata")
        for name, description in GAUGES.items():
            [(labels, _), *_] = wait_for(
                lambda name=name: live.prometheus.query(f"ray_toolagent_{name}"), name
            )
            assert (labels["run"], labels["task"]) == ("calculating", "calculator")
            assert metadata[f"ray_toolagent_{name}"][0]["help"] == description
            assert metadata[f"ray_toolagent_{name}"][0]["type"] == "gauge"
        for name in set(COUNTERS) - {"ended"}:
            query = f"ray_toolagent_{name}_total{RUN}"
            wait_for(lambda query=query: live.prometheus.query(query), query)
            family = f"ray_toolagent_{name}"  # the format says whether `_total` belongs to it
            [entry] = metadata.get(family) or metadata[f"{family}_total"]
            assert (entry["type"], entry["help"]) == ("counter", COUNTERS[name])
        assert live.prometheus.query("ray_toolagent_ended_total") == []
        names = live.prometheus.get("label/__name__/values")
        ours = {name for name in names if name.startswith("ray_toolagent_")}
        assert len(ours) == len(GAUGES) + len(COUNTERS) - 1

    def test_the_values_are_those_of_progress_jsonl(self, live):
        def samples(name):
            # A scrape that came late leaves a moment without an answer.
            query = f"ray_toolagent_{name}{RUN}"
            return wait_for(lambda: live.prometheus.query(query), query)

        def value(name):
            [(_, number)] = samples(name)
            return number

        counted, rates = value("env_steps_total"), value("env_steps_per_second")
        iterations, entropy = value("iterations_total"), value("entropy")
        accuracies, advances = samples("accuracy"), value("curriculum_events")
        rows = wait_for(live.rows)  # afterwards: of what is published, the row is written
        assert counted in {row["env_steps"] for row in rows}
        assert rates in {row["env_steps_per_s"] for row in rows}
        assert iterations in {row["iteration"] for row in rows}
        assert entropy in {row["entropy"] for row in rows}
        assert {labels["stage"] for labels, _ in accuracies} == {"0", "1", "2"}
        for labels, accuracy in accuracies:
            assert accuracy in {row["accuracy"][labels["stage"]] for row in rows}
        assert value("stage") in {0, 1, 2}
        events = sum(row["curriculum_event"] is not None for row in rows)
        assert 0 <= advances <= events
        for name in ("env_runners_healthy", "env_runners_configured"):
            assert value(name) == 2
        for name in ("learners_healthy", "learners_configured"):
            assert value(name) == 1
        assert value("env_runner_restarts") == 0
        assert abs(value("last_update_timestamp_seconds") - time.time()) < 60
        assert abs(value("last_checkpoint_timestamp_seconds") - time.time()) < 60
        assert 0 < value("checkpoint_seconds") < 60
        assert 0 <= value("learner_idle_ratio") <= 1
        assert 0 <= value("sampler_idle_ratio") <= 1

    @pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
    def test_each_query_of_the_grafana_dashboard_has_an_answer(self, live, panel):
        for target in panel["targets"]:
            query = target["expr"].replace("$run", "calculating")
            query = query.replace("$__rate_interval", "10s")
            assert "$" not in query
            if panel["title"] in MAY_BE_EMPTY:
                live.prometheus.query(query)
                continue
            # Ray reports on its nodes every few seconds only.
            samples = wait_for(lambda query=query: live.prometheus.query(query), query)
            for labels, value in samples:
                assert value == value, query  # not NaN
                for label in ("run", "stage", "ip"):
                    assert (f"{{{{{label}}}}}" in target["legendFormat"]) <= (label in labels)

    def test_the_dashboard_s_variable_and_annotation(self, live):
        variable = DASHBOARD["templating"]["list"][1]
        assert variable["query"]["query"] == "label_values(ray_toolagent_stage, run)"
        parameters = {"match[]": "ray_toolagent_stage"}
        assert live.prometheus.get("label/run/values", **parameters) == ["calculating"]
        annotation = DASHBOARD["annotations"]["list"][1]["expr"].replace("$run", ".*")
        live.prometheus.query(annotation)

    def test_the_alerts_are_loaded_and_quiet(self, live):
        def evaluated():
            [group] = live.prometheus.get("rules")["groups"]
            return all(rule["health"] == "ok" for rule in group["rules"]) and group["rules"]

        rules = wait_for(evaluated, "evaluation")
        assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
        firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
        assert not {name for name in firing if name.startswith("Toolagent")}

    def test_the_metrics_ports_of_a_local_run_listen_on_loopback(self, live):
        driver = psutil.Process(live.process.pid)
        listening = set()
        for process in (driver, *driver.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = process.net_connections("inet")
                listening |= {c.laddr for c in connections if c.status == psutil.CONN_LISTEN}
        file = live.ray_folder / "prom_metrics_service_discovery.json"
        targets = json.loads(file.read_text())[0]["targets"]
        # Another cluster of this machine may have taken those of the dashboard and autoscaler.
        ports = {int(target.rpartition(":")[2]) for target in targets}
        hosts = {address.ip for address in listening if address.port in ports}
        assert hosts and hosts <= {"127.0.0.1", "::ffff:127.0.0.1"}

    @needs_browser
    def test_ray_s_dashboard_shows_the_job_the_actors_and_the_machine(self, live):
        with browser() as page:
            page.open(live.dashboard, "Authentication Token Required", "No jobs yet")
            page.driver.add_cookie({"name": "ray-authentication-token", "value": live.token})
            page.open(f"{live.dashboard}/#/jobs", "-m toolagent.run", "RUNNING")
            page.keep("jobs")
            page.open(f"{live.dashboard}/#/actors", "env runner 1", "env runner 2", "learner")
            page.keep("actors")
            page.open(f"{live.dashboard}/#/cluster", "127.0.0.1", "ALIVE")
            page.keep("cluster")
            # Its pictures come out of Grafana, and it says so where there is none.
            page.open(f"{live.dashboard}/#/metrics", "Set up Prometheus and Grafana")
            page.keep("metrics")

    @needs_browser
    def test_prometheus_own_page_draws_a_metric_and_lists_the_alerts(self, live):
        with browser() as page:
            query = "g0.expr=ray_toolagent_accuracy&g0.tab=0&g0.range_input=1m"
            page.open(
                f"{live.prometheus.url}/graph?{query}", "ray_toolagent_accuracy{", 'stage="2"'
            )
            page.keep("prometheus")
            page.driver.find_element("link text", "Alerts").click()
            wait_for(lambda: "ToolagentTrainingStalled" in page.text())
            page.keep("alerts")

    def test_a_killed_env_runner_is_counted_when_it_is_back(self, live):
        restarts = f"ray_toolagent_env_runner_restarts{RUN}"
        [(_, before)] = wait_for(lambda: live.prometheus.query(restarts), restarts)
        os.kill(live.pid("env runner 2"), signal.SIGKILL)

        def back():
            return (
                live.prometheus.value(restarts) == before + 1
                and live.prometheus.value(f"ray_toolagent_env_runners_healthy{RUN}") == 2
            )

        wait_for(back, "the env runner's return")
        assert live.pid("env runner 2")

    def test_a_stalled_learner_is_seen(self, live):
        stalled = expression_of("ToolagentTrainingStalled").replace("> 300", "> 4")
        vanished = expression_of("ToolagentRunVanished")
        wait_for(lambda: not live.prometheus.query(stalled), "an iteration of less than 4 s")
        with suspended(live.pid("learner")):
            wait_for(lambda: live.prometheus.query(stalled), "the alert")
            # Its driver lives: what has vanished stays so. (A late scrape looks like it.)
            wait_for(lambda: not live.prometheus.query(vanished), "its driver's metrics")
        wait_for(lambda: not live.prometheus.query(stalled), "the next iteration")

    def test_a_driver_that_does_nothing_at_all_is_seen(self, live):
        vanished = expression_of("ToolagentRunVanished")
        wait_for(lambda: not live.prometheus.query(vanished), "its driver's metrics")
        with suspended(live.process.pid):
            [(labels, _)] = wait_for(lambda: live.prometheus.query(vanished), "the alert")
            assert labels["run"] == "calculating"
        wait_for(lambda: not live.prometheus.query(vanished), "the driver's return")


@pytest.mark.full
@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments):
    *command, file = arguments
    done = subprocess.run(
        ["promtool", *command, str(MONITORING / file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_every_metric_a_panel():
    tests = (MONITORING / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tests] == []
    queries = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    names = {*GAUGES, *(f"{name}_total" for name in COUNTERS)}
    # How often checkpoints are due is for the alert; that a run ended too.
    unseen = names - {"checkpoint_every_seconds", "ended_total"}
    assert sorted(name for name in unseen if f"ray_toolagent_{name}{{" not in queries) == []


@pytest.mark.full
def test_grafana_s_own_models_know_every_field_of_the_dashboard():
    """They are generated from Grafana's schema; whatever they don't know is lost on the way."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    back = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))

    def lost(given, kept, path=""):
        if isinstance(given, dict):
            return [
                entry
                for key, value in given.items()
                for entry in (
                    lost(value, kept[key], f"{path}/{key}") if key in kept else [f"{path}/{key}"]
                )
            ]
        if isinstance(given, list):
            assert len(given) == len(kept), path
            pairs = enumerate(zip(given, kept, strict=True))
            return [entry for i, (g, k) in pairs for entry in lost(g, k, f"{path}/{i}")]
        return [] if given == kept else [f"{path}: {given} became {kept}"]

    # Two of annotations, which Grafana's Prometheus plugin adds.
    plugin = {"/annotations/list/0/builtIn", "/annotations/list/1/titleFormat"}
    assert set(lost(DASHBOARD, back)) == plugin


def test_panels_read_from_the_chosen_data_source():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_s_provisioning_names_what_ray_and_the_dashboard_look_for():
    from ray.dashboard.modules.metrics.metrics_head import DEFAULT_PROMETHEUS_NAME

    provisioning = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "toolagent.yml").read_text())[
        "datasources"
    ]
    assert source["name"] == DEFAULT_PROMETHEUS_NAME and source["type"] == "prometheus"
    providers = yaml.safe_load((provisioning / "dashboards" / "toolagent.yml").read_text())
    assert providers["providers"][0]["options"] == {"path": "$TOOLAGENT_GRAFANA"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_a_lasting_cluster_an_ended_run_leaves_no_gauge_and_says_that_it_ended(tmp_path):
    with lasting_cluster() as (environment, address, discovery):
        flags = f"--address {address} --stop-time-s 3 --num-env-runners 1 --output-dir run".split()
        done = subprocess.run(
            [sys.executable, "-m", "toolagent.run", *flags],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())

        def left():
            series = exported(discovery)
            return "ray_toolagent_stage" not in series and series

        assert wait_for(left, "the gauges' end") == {
            "ray_toolagent_ended_total": 1,
            "ray_toolagent_env_steps_total": summary["env_steps"],
            "ray_toolagent_iterations_total": summary["iterations"],
        }
