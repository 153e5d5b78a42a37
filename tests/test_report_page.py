"""The report: what it says against the files, how it looks in a browser, what it refuses.

`TOOLAGENT_SCREENSHOTS=DIR TOOLAGENT_SCREENSHOT_RUN=RUN python -m pytest -k looks` keeps
the pictures that README shows, of the run in RUN.
"""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_browser
from refusals import refusal
from trained import trained_network

from toolagent import cli
from toolagent.checkpoints.run_files import FirstSolved, RunState
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.config import load_settings, to_yaml
from toolagent.errors import UserError
from toolagent.report import __main__ as report
from toolagent.report import charts, comparison, facts
from toolagent.report.page import write_comparison, write_report
from toolagent.report.run_files import read_run
from toolagent.report.sources import Group, groups_of, read_source
from toolagent.rollouts.certification import certify
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.results import behaviour, sample_trajectories, summarize
from toolagent.run.training import Outcome
from toolagent.tasks import get_task

HOSTILE = "<script>document.title='x'</script>$\\frac{&"
PROGRAMS = (
    ("MUL ADD ANS", "MUL ADD ANS", "MUL ADD ANS"),
    ("MUL ADD SUB ANS", "MUL ADD SUB ANS", "MUL ADD SUB ANS"),
    ("MUL ADD SUB ANS", "MUL ADD ANS", "MUL ADD STO MUL RCL SUB ANS"),
)
ITERATIONS = 24


def row_of(iteration, seed):
    """A row as the training loop writes it, along a made-up course of learning."""
    done = iteration / ITERATIONS
    accuracy = {str(s): round(float(np.clip(2.2 * done - 0.4 * s, 0, 1)), 3) for s in range(3)}
    programs = {}
    for stage in range(3):
        program = PROGRAMS[stage][min(2, int(3 * done))]
        tools = {tool: 1.0 for tool in program.split()}
        programs[str(stage)] = {
            "program": program,
            "share": round(0.5 + done / 2, 4),
            "distinct": 40 - iteration,
            "tools": tools,
            "solved_length": float(len(program.split())),
        }
    stage, next_stage = min(2, int(3 * done)), min(2, int(3 * (iteration + 1) / ITERATIONS))
    return {
        "iteration": iteration,
        "time_s": 0.4 * iteration,
        "env_steps": 21_000 * iteration + 500 * seed,
        "env_steps_per_s": 60_000.0 + 4_000 * np.sin(iteration + seed),
        "stage": stage,
        "next_stage": next_stage,
        "curriculum_event": f"stage {next_stage} begins: test" if stage != next_stage else None,
        "measured": True,
        "accuracy": accuracy,
        **({"accuracy_at_start": dict.fromkeys(accuracy, 0.125)} if iteration == 1 else {}),
        "mean_return": {},
        "programs": programs,
        "episode_return_mean": done,
        "episode_len_mean": 5.0 - done,
        "policy_loss": -0.05 * (1 - done),
        "vf_loss": 0.25 * (1 - done) + 0.01,
        "entropy": 2.0 - 1.5 * done,
        "approximate_kl": 0.004,
        "clipped_share": 0.05,
        "explained_variance": done,
        "learner_idle_share": 0.1,
        "sampler_idle_share": 0.5,
    }


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Makes the folder of a finished run, with the functions that a run itself writes it with."""
    network, task = trained_network(), get_task("calculator")
    stages = certify(network, task)

    def make(name="first", seed=0):
        settings = load_settings(None, [f"seed={seed}", "run.sample_trajectories=5"])
        folder = RunFolder(tmp_path_factory.mktemp("runs") / name)
        folder.make(to_yaml(settings))
        for iteration in range(1, ITERATIONS + 1):
            folder.append_progress(row_of(iteration, seed))
        last = row_of(ITERATIONS, seed)
        first = {str(stage): FirstSolved(1000 * stage + 1, 1.0) for stage in range(3)}
        state = RunState(ITERATIONS, last["env_steps"], last["time_s"], first)
        keeper = CheckpointKeeper(settings, None, None, folder, print)
        keeper.last = folder.checkpoints / "checkpoint_000024"
        outcome = Outcome(state, "solved", stages, [], keeper, network, task)
        folder.write_summary(summarize(outcome))
        samples = sample_trajectories(outcome)
        folder.write_behaviour(behaviour(outcome, samples))
        from toolagent.run.environment import describe_environment

        folder.add_environment(describe_environment(cluster={"cpus": 2}))
        return folder.path

    return make


@pytest.fixture(scope="module")
def finished(make_run):
    return make_run()


class Page(html.parser.HTMLParser):
    """The text and tags of a page; unbalanced tags fail."""

    VOID = frozenset(("meta", "br", "link", "img", "path", "use", "line"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open, self.ids = [], [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def command(*arguments):
    return cli.main(report.command, [str(argument) for argument in arguments])


# What it says ------------------------------------------------------------------------------


def test_the_page_says_what_the_files_say_and_needs_nothing_else(finished, capsys):
    assert command(finished) == 0
    out = capsys.readouterr().out
    assert f"wrote {finished / 'report.html'}" in out
    source = (finished / "report.html").read_text()
    page = Page(source)
    assert len(page.ids) == len(set(page.ids))
    # Nothing is loaded: no script, no link, no address but anchors on the page itself.
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    targets = {v for _, a in page.tags for n, v in a.items() if n in ("href", "src", "xlink:href")}
    assert targets and all(target.startswith("#") for target in targets)
    assert "url(http" not in source and "@import" not in source
    assert len(source) < 1_000_000
    summary = json.loads((finished / "summary.json").read_text())
    assert f"{summary['env_steps']:,} env steps in" in page.text
    for stage in summary["stages"]:
        assert f"{stage['solved']:,}/{stage['problems']:,}" in page.text
    assert "MUL ADD STO MUL RCL SUB ANS 7 7.00" in page.text  # shortest plan, length, agent's mean
    assert (finished / "config.yaml").read_text() in "".join(page.texts)
    assert "Missing" not in page.text
    figures = [a for tag, a in page.tags if tag == "div" and a.get("role") == "img"]
    rows = [json.loads(line) for line in (finished / "progress.jsonl").open()]
    known = {name for row in rows for name, value in row.items() if value is not None}
    assert len(figures) == 1 + 3 + len(charts.TRAINING.keys() & known)
    assert all(len(a["aria-label"]) > 40 for a in figures)
    assert sum(tag == "caption" for tag, _ in page.tags) >= len(figures)
    pictures = sorted(path.name for path in (finished / "report").iterdir())
    assert len(pictures) == len(figures) and all(name.endswith(".png") for name in pictures)


def test_curves_of_accuracy_begin_before_the_first_update(finished):
    table = charts.accuracy_chart(read_run(finished)).table
    assert table.rows[0] == ["0", "12.5", "12.5", "12.5"]


def test_tools_and_programs_over_time_are_read_off_the_measurements(finished):
    run = read_run(finished)
    table = {row[0]: row[1:] for row in facts.tools_first_used(run).rows}
    third = next(r for r in run.rows if "STO" in r.programs[2].tools)
    assert table["STO"] == ["never", "never", f"{third.env_steps:,} (100%)"]
    assert (
        table["SUB"][2] == f"{run.rows[0].env_steps:,} (100%)"
    )  # used first, then not, then again
    changes = [row[1] for row in facts.programs_over_time(run)[2].rows]
    assert changes == list(PROGRAMS[2])
    assert [row[1] for row in facts.programs_over_time(run)[0].rows] == ["MUL ADD ANS"]


def test_seeds_stand_side_by_side(finished, make_run, tmp_path, capsys):
    second = make_run("second", seed=1)
    assert command(finished, second, "--output", tmp_path / "both.html") == 0
    page = Page((tmp_path / "both.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    captions = [a["aria-label"] for tag, a in page.tags if tag == "div" and "aria-label" in a]
    assert "calculator, 2 runs" in page.text
    # They differ in nothing but the seed, so they are one line with a band.
    figure = next(text for text in captions if "Accuracy on stage 1" in text)
    assert figure.count("ends at") == 1
    assert not (second / "report.html").exists()
    assert (tmp_path / "both" / "accuracy_stage_2.png").is_file()


def changed(path, name, edit):
    """A copy of a run beside it, with another configuration."""
    copy = path.with_name(name)
    shutil.copytree(path, copy)
    config = copy / "config.yaml"
    config.write_text(edit(config.read_text()))
    return copy


def test_configurations_stand_side_by_side_with_what_they_differ_in(
    finished, make_run, tmp_path, capsys
):
    """A group of three seeds, two single runs, and a search: one page."""
    seeds = tmp_path / "three"
    for seed in range(3):
        shutil.copytree(make_run("seeded", seed), seeds / f"seed_{seed}")
    (seeds / "seeds.json").write_text(json.dumps({"seeds": [0, 1, 2, 3], "init_from": None}))
    faster = changed(finished, "faster", lambda text: text.replace("lr: 0.003", "lr: 0.01"))
    search = tmp_path / "search"
    lines = [
        {
            "training_iteration": n,
            "env_steps": 1000 * n,
            "seconds": float(n),
            "stage": 0,
            "certified": n == 3,
            **{f"accuracy_stage_{stage}": n / 3 for stage in range(3)},
        }
        for n in (1, 2, 2, 3)  # the second was made again, after a resume
    ]
    trials = []
    for number, values in enumerate(({}, {"training.lr": 0.02}), 1):
        folder = search / "trials" / str(number)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in lines))
        trial = {"number": number, "status": "certified", "settings": values}
        trials.append(trial | {"folder": f"trials/{number}"})
    (search / "search.yaml").write_text("space: {}\n")
    shutil.copy(finished / "config.yaml", search / "base.yaml")
    (search / "summary.json").write_text(json.dumps({"wall_time_s": 1.0, "trials": trials}))
    given = [seeds, finished, faster, search]
    groups = groups_of([read_source(path) for path in given])
    assert [(group.name, len(group.runs)) for group in groups] == [
        *[("three", 3), ("first", 1), ("faster", 1), ("trial 1", 1), ("trial 2", 1)]
    ]
    assert [row.iteration for row in groups[3].runs[0].rows] == [1, 2, 3]
    (row,) = comparison.differences(groups).rows
    assert row == ["training.lr", "0.003", "0.003", "0.01", "0.003", "0.02"]
    assert comparison.env_steps_to_solve(groups[3].runs[0]) == 3000
    assert command(*given, "--output", tmp_path / "all.html") == 0
    assert "seed 3 is left out" in capsys.readouterr().out
    page = Page((tmp_path / "all.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    figures = [a["aria-label"] for tag, a in page.tags if a.get("role") == "img"]
    rows = [row for group in groups for run in group.runs for row in run.rows]
    known = {name for name in charts.TRAINING if any(vars(row)[name] is not None for row in rows)}
    assert len(figures) == 3 + len(known)
    assert figures[0].count("ends at") == 5


def test_no_two_lines_of_a_chart_look_alike():
    looks = {
        (charts.SERIES[number % len(charts.SERIES)], charts.dashes_of(number))
        for number in range(charts.MAX_LINES)
    }
    assert len(looks) == charts.MAX_LINES >= 10


def test_a_line_over_several_runs_is_their_median_with_their_middle_half():
    """Against the runs themselves, on the env steps that they share."""
    rng = np.random.default_rng(0)
    steps = list(range(0, 1001, 5))
    runs = [charts.Line("", steps, rng.random(len(steps)).tolist()) for _ in range(5)]
    runs[0] = charts.Line("", steps[:101], runs[0].values[:101])  # ends in the middle
    line = charts.Line.over("x", runs, hold=True)
    for place, step in enumerate(line.steps):
        at = [np.interp(step, run.steps, run.values) for run in runs]
        assert line.values[place] == pytest.approx(np.median(at))
        assert [line.low[place], line.high[place]] == pytest.approx(np.quantile(at, [0.25, 0.75]))
    ended = charts.Line.over("x", [runs[0], runs[0], runs[1]], hold=False)
    assert ended.steps[-1] == pytest.approx(500, abs=6)  # one of three goes on


def test_labels_of_stages_do_not_touch():
    marks = [(100 * n, n) for n in range(1, 4)] + [(9000, 4)]
    assert charts._together(marks, 10_000) == [(100.0, "1, 2, 3"), (9000.0, "4")]
    assert [text for _, text in charts._together([(1, n) for n in range(9)], 10_000)] == ["0 ... 8"]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        *[(1, "100%"), (0, "0%"), (0.9912, "99.12%"), (0.99999, "99.99%"), (1e-6, "<0.01%")],
        *[(0.07, "7.00%"), (0.29, "29.00%"), (None, "-")],
    ],
)
def test_shares_have_two_decimals_and_are_never_rounded_up_to_all(share, text):
    assert facts.percent(share) == text


def test_names_and_texts_from_files_are_never_markup(make_run, tmp_path):
    path = make_run("hostile")
    config = path / "config.yaml"
    config.write_text(f"# {HOSTILE}\n{config.read_text()}")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"stopped_by": HOSTILE}))
    rows = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
    rows[3]["curriculum_event"] = HOSTILE
    rows[3]["programs"]["0"] |= {"program": HOSTILE, "tools": {HOSTILE: 0.5}}
    (path / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = path.parent / HOSTILE.replace("/", "|")
    shutil.copytree(path, named)
    file = tmp_path / "page.html"
    run, other = read_run(path), read_run(named)
    for write in (
        lambda: write_report(other, file),
        lambda: write_comparison([Group(run.name, [run]), Group(other.name, [other])], file),
    ):
        write()
        page = Page(file.read_text())
        assert not any(tag in ("script", "frac") for tag, _ in page.tags)
        assert HOSTILE in "".join(page.texts)


def test_an_older_run_and_a_killed_one_give_a_report_that_says_what_is_missing(
    make_run, capsys, tmp_path
):
    path = make_run("older")
    for name in ("behaviour.json", "environment.json", "summary.json"):
        (path / name).unlink()
    rows = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
    for row in rows:
        del row["programs"], row["approximate_kl"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "progress.jsonl").write_text(text + '{"iteration": 25, "tim')
    assert command(path) == 0
    out = capsys.readouterr().out
    assert "the last line of progress.jsonl is cut off; it is passed over" in out
    page = Page((path / "report.html").read_text())
    for missing in ("no summary.json", "no behaviour.json", "no environment.json", "no programs"):
        assert missing in page.text and missing in out
    assert "Divergence from the policy" not in page.text
    assert "it has not ended" in page.text


def test_long_runs_are_thinned_out():
    steps = range(100_000)
    line = charts.Line.of("", [(step, 1.0) for step in steps], 100)
    x, y = line.steps, line.values
    assert len(x) == len(y) == charts.MAX_POINTS and x[-1] == 99_999 and set(y) == {100.0}


@pytest.mark.full
def test_a_report_takes_less_than_two_seconds(finished, tmp_path):
    write_report(read_run(finished), tmp_path / "warm.html")
    seconds = []
    for _ in range(3):  # noise only slows
        started = time.process_time()
        write_report(read_run(finished), tmp_path / "page.html")
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2


# How it looks ------------------------------------------------------------------------------


@pytest.mark.full
@needs_browser
def test_it_looks_right_in_a_browser_wide_narrow_dark_and_in_print(finished, tmp_path):
    kept = Path(os.environ.get("TOOLAGENT_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    page = tmp_path / "report.html"
    shown = Path(os.environ.get("TOOLAGENT_SCREENSHOT_RUN", finished))
    write_report(read_run(shown), page)
    with browser() as chromium:
        for name, width, height, dark in (
            ("report", 1100, 900, False),
            ("report_dark_narrow", 360, 800, True),
        ):
            chromium.resize(width, height)
            chromium.prefer(dark=dark)
            chromium.open(page.resolve().as_uri())
            assert chromium.run("return document.documentElement.scrollWidth") <= width
            ink, paper = (
                chromium.run(f"return getComputedStyle(document.body).{name}")
                for name in ("color", "backgroundColor")
            )
            assert contrast(ink, paper) > 7
            # The text of charts follows, and can be read in a narrow window.
            fill, size = chromium.run(
                "const t = document.querySelector('figure svg text'); const s = "
                "getComputedStyle(t); return [s.fill, t.getBoundingClientRect().height]"
            )
            assert fill == ink and size > 9
            lines = chromium.run(
                "return [...document.querySelectorAll('figure svg path')].map(p => "
                "getComputedStyle(p).stroke).filter(s => s.startsWith('rgb'))"
            )
            assert lines and all(contrast(line, paper) > 1.2 for line in set(lines))
            chromium.screenshot(kept / f"{name}.png")
            assert chromium.console() == []
        chromium.resize(1100, 800)
        chromium.screenshot(tmp_path / "dark.png")
        chromium.pdf(tmp_path / "report.pdf")
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext (poppler-utils)")
    text = subprocess.run(
        ["pdftotext", tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True
    ).stdout
    # What is folded on the screen is printed: all trajectories and the configuration.
    samples = read_run(shown).behaviour.trajectories
    assert text.count("runner-up") >= len(samples) and "episodes_per_update" in text


def contrast(one, other):
    """The contrast ratio of two `rgb(...)`, as WCAG 2 defines it."""

    def luminance(colour):
        channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# What it refuses ---------------------------------------------------------------------------


@pytest.fixture
def broken(make_run, tmp_path):
    """A run's folder and a function that spoils one of its files."""
    path = tmp_path / "run"
    shutil.copytree(make_run(), path)
    return path


# A row for each check of a run's folder; what is in its files is tried further below.
SPOILT = [
    (shutil.rmtree, "no such folder"),
    (lambda path: (path / "config.yaml").unlink(), "config.yaml"),
    (lambda path: (path / "progress.jsonl").unlink(), "progress.jsonl"),
    (lambda path: (path / "progress.jsonl").write_text(""), "no iteration"),
    (lambda path: (path / "progress.jsonl").write_text("{}\n"), "line 1: "),
    (lambda path: (path / "progress.jsonl").write_text("x\n{}\n"), "line 1: "),
    (lambda path: (path / "behaviour.json").write_text("{}"), "behaviour.json"),
    (lambda path: (path / "config.yaml").write_text("a: [b"), "config.yaml"),
    (lambda path: (path / "report.html").mkdir(), "report.html"),
    (lambda path: (path / "report").write_text(""), "report: is a file"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILT)
def test_what_is_no_run_is_refused_in_one_line(broken, spoil, named, capsys):
    spoil(broken)
    refusal(capsys, "report", [broken], [named], broken.parent)


def test_wrong_flags_are_refused(finished, broken, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(broken, other)
    text = (other / "config.yaml").read_text().replace("task: calculator", "task: tutorial")
    (other / "config.yaml").write_text(text)
    for arguments, named in (
        ([finished, broken], "--output"),
        ([finished, finished], "twice"),
        ([broken / "config.yaml"], "config.yaml: is a file"),
        ([finished, "--output", tmp_path / "no" / "x.html"], str(tmp_path / "no")),
        ([finished, other, "--output", tmp_path / "x.html"], "different tasks"),
    ):
        refusal(capsys, "report", arguments, [named], tmp_path)


def test_a_page_written_to_a_pipe_has_no_charts_beside_it(finished, tmp_path):
    os.mkfifo(tmp_path / "page")
    found = []
    reader = threading.Thread(
        target=lambda: found.append((tmp_path / "page").read_text()), daemon=True
    )
    reader.start()
    assert command(finished, "--output", tmp_path / "page") == 0
    reader.join(10)
    assert Page(found[0]).text
    assert list(tmp_path.iterdir()) == [tmp_path / "page"] and (tmp_path / "page").is_fifo()


def numbers_in(document, path=()):
    """The places of all numbers in a JSON document, each kind of place once."""
    if isinstance(document, dict):
        entries = document.items()
    elif isinstance(document, list):
        entries = enumerate(document[:1])
    else:
        return [path] if type(document) in (int, float) else []
    return [place for key, value in entries for place in numbers_in(value, (*path, key))]


def edited(document, place, value):
    *above, last = place
    for key in above:
        document = document[key]
    document[last] = value


# What no number in a run's files can be; 0 apart, of which there are none.
IMPOSSIBLE = ["true", '"1"', "NaN", "Infinity", "1e999", "1" + "0" * 400, "[1]"]


@pytest.mark.parametrize("name", ["progress.jsonl", "summary.json", "behaviour.json"])
def test_no_number_can_be_what_it_cannot(broken, name):
    """Every number of every file a report reads in turn: refused in a line that names it."""
    text = (broken / name).read_text()
    head, *rest = text.splitlines(keepends=True) if name == "progress.jsonl" else [text]
    unread = {
        "iterations",
        "seed",
        "checkpoints_written",
        "checkpoints_s",
        "mean_return",
        "probabilities",
    }
    places = numbers_in(json.loads(head))
    assert len(places) >= 8
    for place in places:
        if unread & set(place) or place[-1] == "accuracy" or "registers" in place:
            continue
        for value in IMPOSSIBLE:
            document = json.loads(head)
            edited(document, place, "HERE")
            spoiled = json.dumps(document).replace('"HERE"', value)
            (broken / name).write_text("".join([spoiled, "\n", *rest]))
            if value[:3] == "100" and place[-1] in ("target", "answer"):
                continue  # an answer may have any number of digits
            with pytest.raises(UserError, match=f"{name}: .*{place[0]}"):
                read_run(broken)


@pytest.mark.parametrize(
    ("name", "edit", "field"),
    [
        ("summary.json", lambda d: d["stages"][0].update(solved=10**6), "stages.0: solved"),
        ("summary.json", lambda d: d["stages"][0].update(problems=0), "stages.0.problems"),
        ("summary.json", lambda d: d["stages"][0].update(stage=-1), "stages.0.stage"),
        ("summary.json", lambda d: d.update(env_steps=-1), "env_steps"),
        ("summary.json", lambda d: d.update(wall_time_s=-1.0), "wall_time_s"),
        ("behaviour.json", lambda d: d["stages"][0].update(solved_in=[-1]), "stages.0.solved_in.0"),
        ("environment.json", lambda d: d["sessions"][0].update(cores=-1), "sessions.0.cores"),
        ("progress.jsonl", lambda d: d.update(accuracy={"0": 1.5}), "line 1: accuracy.0"),
        ("progress.jsonl", lambda d: d.update(accuracy={"-1": 0.5}), "line 1: accuracy.-1"),
        ("progress.jsonl", lambda d: d.update(iteration=2), "line 2: iteration 2"),
        ("progress.jsonl", lambda d: d.update(env_steps=10**9), "line 2: iteration 2, env_steps"),
    ],
)
def test_counts_and_shares_have_bounds(broken, name, edit, field):
    head, *rest = (
        (broken / name).read_text().splitlines(keepends=True)
        if name == "progress.jsonl"
        else [(broken / name).read_text()]
    )
    document = json.loads(head)
    edit(document)
    (broken / name).write_text("".join([json.dumps(document), "\n", *rest]))
    with pytest.raises(UserError) as caught:
        read_run(broken)
    assert f"{name}: {field}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"null", b""])
@pytest.mark.parametrize(
    "name", ["progress.jsonl", "summary.json", "behaviour.json", "environment.json", "config.yaml"]
)
def test_what_is_no_document_is_refused(broken, name, content):
    (broken / name).write_bytes(content + b"\n" if name == "progress.jsonl" else content)
    with pytest.raises(UserError, match=name):
        read_run(broken)


@pytest.mark.parametrize("name", ["summary.json", "behaviour.json", "environment.json"])
def test_a_file_without_an_end_is_not_read_to_it(broken, name):
    (broken / name).unlink()
    (broken / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no regular file"):
        read_run(broken)
    (broken / name).unlink()
    with open(broken / name, "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match="bytes"):
        read_run(broken)


def test_resuming_reads_what_it_goes_on_with_before_it_starts_anything(broken):
    folder = RunFolder(broken)
    folder.check_files()
    for name in ("progress.jsonl", "environment.json"):
        kept = (broken / name).read_bytes()
        (broken / name).write_bytes(b"[" * 100_000 + b"\n")
        with pytest.raises(UserError, match=name):
            folder.check_files()
        (broken / name).write_bytes(kept)
