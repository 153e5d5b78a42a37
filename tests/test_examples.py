"""The files of `toolagent/examples/` do what they say: each is run as a reader would run it."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from processes import own_environment
from trained import ROOT, run_modules

EXAMPLES = ROOT / "toolagent" / "examples"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


@pytest.mark.full
def test_a_task_of_ones_own_is_trained_certified_explained_and_played(tmp_path):
    """Every line of its README, in a copy of the folder, with two remote runners."""
    work = tmp_path / "work"
    shutil.copytree(EXAMPLES / "own_task", work, ignore=shutil.ignore_patterns("__pycache__"))
    for text in "".join(blocks(work / "README.md", "bash")).splitlines():
        line = shlex.split(text)[1:]
        if "toolagent.run" in line:
            line += ["--num-env-runners", "2", "--set", "run.dashboard=false"]
        (done,) = run_modules(line, cwd=work)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (done,) = run_modules(["-c", *blocks(work / "README.md", "python")], cwd=work)
    assert re.fullmatch(r"F8: (LIFT|UP).* RING\[\S+\]  right\n", done.stdout), done.stderr
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "solved" and summary["task"] == "bells:BellsTask"
    assert len((work / "bells.py").read_text().splitlines()) < 80


@pytest.mark.full
def test_the_first_page_s_program_trains_and_plays(tmp_path):
    program = blocks(ROOT / "README.md", "python")[0]
    (done,) = run_modules(["-c", program], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "3*4+5-6*7: " in done.stdout.splitlines()[-2]


@pytest.mark.full
def test_stock_rllib_is_quiet(tmp_path):
    (done,) = run_modules(["-m", "toolagent.examples.stock_rllib", "2"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "iteration 1",
        "iteration 2",
    ]


@pytest.mark.full
def test_the_notebook_runs_and_floods_no_cell(tmp_path):
    """In a kernel of its own, as Jupyter runs it."""
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()\n"
        "nbformat.write(notebook, 'done.ipynb')\n"
    )
    file = EXAMPLES / "first_steps.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=tmp_path,
        env=own_environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    cells = [
        cell["outputs"]
        for cell in json.loads((tmp_path / "done.ipynb").read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    trained, plotted, played, certified, acted = cells
    # Lines of text, as in a log: no output of another kind, nothing on stderr, no live line.
    *printed, shown = trained
    assert {(output["output_type"], output.get("name")) for output in printed} == {
        ("stream", "stdout")
    }
    text = "".join("".join(output["text"]) for output in printed)
    assert len(text.splitlines()) < 60 and "\x1b" not in text and "\r" not in text
    assert shown["output_type"] == "execute_result"
    assert any("image/png" in output.get("data", {}) for output in plotted)
    assert re.search(r"MUL.*ADD.*STO.*MUL.*RCL.*SUB.*ANS.*right", str(played))
    assert "stage 2: 100,000 of 100,000 problems" in str(certified)
    assert re.search(r"(\d+) of \1 episodes solved", str(acted))


def test_a_notebook_is_kept_without_outputs():
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
