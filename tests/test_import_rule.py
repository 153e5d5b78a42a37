"""Layers: a file imports from its own package and from those above it, and no further."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from trained import untrained_network

from toolagent.checkpoints.policy import save_policy

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toolagent"

# Package or file: what it may import of toolagent. Every one is named here, in the order of the
# layers: an entry may name only entries above it, so no two import each other.
MAY_IMPORT = {
    "errors": "",
    "files": "errors",
    "installation": "",
    "figures": "",
    "phases": "",
    "vocabulary": "",
    "outside": "errors",
    "tasks": "errors outside vocabulary",
    "models": "errors outside phases tasks vocabulary",
    "cluster": "__init__ errors outside phases",
    "envs": "tasks vocabulary",
    "__init__": "envs",
    "examples": "cluster envs models tasks vocabulary",
    "checkpoints": "__init__ errors figures files models outside tasks vocabulary",
    "rollouts": "__init__ cluster envs errors models outside phases tasks vocabulary",
    "learning": "cluster envs errors figures models phases rollouts tasks vocabulary",
    "curriculum": "models rollouts tasks",
    "cli": "errors outside rollouts tasks",
    "config": "__init__ cluster curriculum envs errors models outside rollouts tasks",
    "trackers": "__init__ checkpoints cli cluster errors figures files installation",
    "evaluate": "checkpoints cli errors files installation models rollouts tasks vocabulary",
    "explain": "checkpoints cli errors files models rollouts tasks vocabulary",
    "export": "checkpoints cli errors files installation models rollouts tasks vocabulary",
    "report": "__init__ checkpoints cli config errors figures files tasks vocabulary",
    "run": (
        "__init__ checkpoints cli cluster config curriculum errors figures files learning "
        "models phases report rollouts tasks trackers vocabulary"
    ),
    "api": "checkpoints cli envs errors evaluate models rollouts run tasks",
    "serve": (
        "__init__ checkpoints cli cluster errors installation models rollouts tasks vocabulary"
    ),
    "tune": "checkpoints cli cluster config curriculum errors files installation rollouts tasks",
    "__main__": "cli errors",
    "benchmark": (
        "checkpoints cli cluster config curriculum envs errors figures files installation learning "
        "models rollouts run tasks vocabulary"
    ),
}

STANDARD = set(sys.stdlib_module_names)
# Packages besides the standard library; layers not named here may import any.
OUTSIDE = {
    "vocabulary": {"numpy"},
    "errors": set(),
    "files": set(),
    "installation": set(),
    "figures": set(),
    "phases": {"psutil"},
    "tasks": {"numpy"},
    "models": {"llvmlite", "numpy", "torch", "ray"},
    "__init__": set(),
}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path, module_level_only=False):
    """The dotted names that a file imports, `from x import y` as x.y."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found = set()

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import, line {child.lineno}"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if not (module_level_only and function):
                visit(child)

    visit(tree)
    return found


def own_layers(imports):
    """The layers of toolagent among dotted names; the package itself counts as none."""
    parts = [name.split(".") for name in imports]
    known = {layer_of(path) for path in files()}
    return {p[1] for p in parts if p[0] == "toolagent" and len(p) > 1 and p[1] in known}


def outside(imports):
    return {name.split(".")[0] for name in imports} - STANDARD - {"toolagent"}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_layer_and_those_above(path):
    layer, imports = layer_of(path), imports_of(path)
    wrong = own_layers(imports) - set(MAY_IMPORT[layer].split()) - {layer}
    assert not wrong, f"'{layer}' must not import {sorted(wrong)}"
    if layer in OUTSIDE:
        wrong = outside(imports) - OUTSIDE[layer]
        assert not wrong, f"'{layer}' must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "envs").glob("*.py")), ids=lambda p: p.name)
def test_environments_import_ray_on_request_only(path):
    assert outside(imports_of(path, module_level_only=True)) <= {"numpy", "gymnasium"}
    if path.name != "registration.py":
        assert outside(imports_of(path)) <= {"numpy", "gymnasium"}


def test_no_two_packages_import_each_other():
    """Each entry names only those above it, the version of `toolagent` apart."""
    assert {layer_of(path) for path in files()} == set(MAY_IMPORT)
    above = {"__init__"}
    for layer, names in MAY_IMPORT.items():
        assert set(names.split()) <= above, layer
        above.add(layer)


def modules():
    """Dotted name -> file, a package by its own name."""
    names = (path.relative_to(ROOT).with_suffix("").parts for path in files())
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path
        for parts, path in zip(names, files(), strict=True)
    }


def imported_modules(name, known):
    """The modules of toolagent that a module imports anywhere in it, in functions too."""
    found = set()
    for imported in imports_of(known[name]):
        while imported and imported not in known:
            imported = imported.rpartition(".")[0]
        found.add(imported)
    return found - {name, ""}


def test_no_files_import_each_other_in_a_circle():
    """Imports in functions and for type checkers count: none is allowed to close a circle."""
    known = modules()
    order = graphlib.TopologicalSorter({name: imported_modules(name, known) for name in known})
    order.prepare()  # raises CycleError, which names the circle


def test_the_curriculum_s_rule_knows_neither_ray_nor_torch():
    assert not {"ray", "torch"} & outside(imports_of(PACKAGE / "curriculum" / "rule.py"))


def run(code):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "modules",
    [
        "toolagent",
        "toolagent.tasks",
        "toolagent.tasks.oracle",
        "toolagent.envs",
        "toolagent.envs.single, toolagent.envs.vector",
        "toolagent.curriculum.rule",
    ],
)
def test_importing_loads_neither_ray_nor_torch(modules):
    heavy = run(
        f"import sys, {modules}\n"
        "print(sorted({'ray', 'torch'} & {name.split('.')[0] for name in sys.modules}))"
    )
    assert heavy.strip() == "[]"


def test_an_environment_is_made_and_stepped_without_ray_and_torch():
    heavy = run(
        "import sys, gymnasium, toolagent, numpy\n"
        "envs = gymnasium.make_vec('toolagent/Calculator-v0', num_envs=2)\n"
        "envs.reset(seed=0); envs.step(numpy.array([11, 14]))\n"
        "env = gymnasium.make('toolagent/Tutorial-v0')\n"
        "env.reset(seed=0); env.step(14)\n"
        "print(sorted({'ray', 'torch'} & {name.split('.')[0] for name in sys.modules}))"
    )
    assert heavy.strip() == "[]"


@pytest.mark.full
def test_evaluate_and_explain_start_no_ray(tmp_path):
    save_policy(tmp_path, untrained_network(), "calculator")
    file = tmp_path / "problems.csv"
    file.write_text("stage,a,b,c,d,e\n0,1,2,3,,\n")
    heavy = run(
        "import sys\n"
        "from toolagent import cli\n"
        "from toolagent.evaluate.__main__ import command as evaluate\n"
        "from toolagent.explain.__main__ import command as explain\n"
        f"assert cli.main(evaluate, [{str(tmp_path)!r}, '--problems', {str(file)!r}]) == 0\n"
        f"assert cli.main(explain, [{str(tmp_path)!r}]) == 0\n"
        "print('ray' in sys.modules)"
    )
    assert heavy.split()[-1] == "False"


def test_importing_toolagent_costs_little_beyond_gymnasium():
    seconds = [
        float(
            run(
                "import time, gymnasium\n"
                "started = time.process_time()\n"
                "import toolagent\n"
                "print(time.process_time() - started)"
            )
        )
        for _ in range(2)
    ]
    assert min(seconds) < 0.5


@pytest.mark.full
def test_the_default_configuration_is_built_without_torch_s_compiler():
    """Which takes as long to import as the rest of torch."""
    out = run(
        "import sys\n"
        "from toolagent.config import build_algorithm_config, load_settings\n"
        "build_algorithm_config(load_settings(None))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert out.split()[-1] == "False"
