"""`toolagent` on PyPI is another project: no hint of ours may install it from there."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from toolagent.installation import DISTRIBUTION, install_command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# A command that installs, and what follows it up to the end of the line or a comment.
INSTALLS = re.compile(
    r"(?:\b(?:pip3?|pipx|uv|conda|poetry|hatch)\b[^\n]*?\b(?:install|add|download|wheel|run|inject)\b"
    r"|--with\b|\buvx\b|[\"']?\b(?:pip|uv|packages|dependencies|requirements)\b[\"']?\s*[:=]\s*\[)"
    r"(.*)"
)
# This project by name, neither as a path nor with one ('toolagent-rl[serve] @ file:...').
BY_NAME = re.compile(
    r"(?<![\w./@:-])toolagent(?:-rl)?(?:\[[^\]]*\])?(?:\s*[=<>~!]=?[^'\"\s]*)?(?=['\"`,;\s\])]|$)"
    r"(?!\s*@)"
)


def faults(text):
    """The lines of a text that install this project from an index."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        command = INSTALLS.search(line)
        arguments = re.split(r"\s#|&&|;\s|`", command[1])[0] if command else ""
        if BY_NAME.search(arguments):
            found.append(line)
    # A list in YAML, or a file of requirements.
    for block in re.findall(r"\bpip:\s*\n((?:\s*-.*\n)+)", text):
        found += [line for line in block.splitlines() if BY_NAME.search(line.replace("- ", ""))]
    return found


def test_no_file_installs_it_from_an_index():
    files = [path for path in ROOT.glob("*.md")] + [ROOT / ".ci" / "run"]
    for folder in ("toolagent", "cluster", "rllib_configs", "tests"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    wrong = []
    for path in files:
        if path == Path(__file__) or "__pycache__" in path.parts or path.suffix in (".png", ".npz"):
            continue
        wrong += [f"{path.relative_to(ROOT)}: {line}" for line in faults(path.read_text("utf-8"))]
    assert not wrong


def test_the_distribution_has_a_name_of_its_own():
    assert PROJECT["name"] == DISTRIBUTION != "toolagent"


def test_every_extra_that_is_named_exists():
    used = set()
    for path in (ROOT / "toolagent").rglob("*.py"):
        used |= set(re.findall(r"install_command\(['\"]([\w-]+)", path.read_text("utf-8")))
    assert {"serve", "tune", "export", "mlflow", "wandb"} <= used <= set(EXTRAS)


@pytest.mark.parametrize("extra", ["serve", "export"])
def test_the_command_of_a_checkout_installs_that_checkout(extra):
    *command, where = shlex.split(install_command(extra))
    assert command == ["pip", "install", "-e"]
    path, _, given = where.partition("[")
    assert Path(path) == ROOT and given == f"{extra}]"


def installed(tmp_path, metadata):
    """The command as a package says it that lies in no checkout."""
    site = tmp_path / "site"
    (site / "toolagent").mkdir(parents=True)
    shutil.copy(ROOT / "toolagent" / "installation.py", site / "toolagent")
    (site / "toolagent" / "__init__.py").touch()
    if metadata is not None:
        (site / "toolagent_rl-0.1.dist-info").mkdir()
        (site / "toolagent_rl-0.1.dist-info" / "METADATA").write_text(metadata)
    code = "from toolagent.installation import *; print(install_command('export'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def test_the_command_of_a_wheel_installs_the_packages_that_are_missing(tmp_path):
    lines = [f"Requires-Dist: {package}; extra == 'export'" for package in EXTRAS["export"]]
    lines += ["Requires-Dist: numpy>=1", "Requires-Dist: wandb; extra == 'wandb'"]
    head = f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: 0.1\n"
    command = installed(tmp_path, head + "\n".join(lines) + "\n")
    pip, install, *packages = shlex.split(command)
    assert (pip, install) == ("pip", "install")
    names = [Requirement(package).name for package in packages]
    assert names == [Requirement(package).name for package in EXTRAS["export"]]


def test_without_metadata_no_package_is_named(tmp_path):
    assert "pip" not in installed(tmp_path, None)


def test_ci_runs_with_every_version_of_python_that_is_named():
    prefix = "Programming Language :: Python :: 3."
    named = [line for line in PROJECT["classifiers"] if line.startswith(prefix)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    setup = next(s for s in jobs["everything"]["steps"] if "setup-python" in s.get("uses", ""))
    oldest = setup["with"]["python-version"]
    versions = [oldest, *jobs["quick"]["strategy"]["matrix"]["python-version"]]
    assert versions == [line.rpartition(" ")[2] for line in named]
    assert PROJECT["requires-python"] == f">={oldest}"
