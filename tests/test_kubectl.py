"""The manifests' pods as `kubectl` reads them, without a server: `pytest -m cluster_real`, as root.

`kubectl set env --local` decodes a pod into Kubernetes' own type, which drops what it does not
have. `kubectl apply --dry-run=client` would need a server, which names the kinds it knows.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml
from machines import install
from processes import ROOT

pytestmark = pytest.mark.cluster_real

FOLDER = ROOT / "cluster" / "kubernetes"


def pods():
    """What has pods: the stateful set, and the groups of the custom resources."""
    found = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if manifest["kind"] == "StatefulSet":
                found[f"{file.stem}-StatefulSet"] = manifest
            if manifest["apiVersion"] != "ray.io/v1":
                continue
            spec = manifest["spec"]
            spec = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                found[f"{file.stem}-{group.get('groupName', 'head')}"] = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "pod"},
                    "spec": group["template"]["spec"],
                }
    return found


MANIFESTS = pods()


def read(manifest, tmp_path):
    """The manifest as kubectl gives it back, with one variable more in each container."""
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest))
    command = ["kubectl", "set", "env", "--local", "--filename", file, "-o", "json", "A=b"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def lost(given, kept, path=""):
    """Where `kept` has not what was given."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [at for key in given for at in lost(given[key], kept.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) <= len(kept):
        pairs = enumerate(zip(given, kept, strict=False))
        return [at for place, (a, b) in pairs for at in lost(a, b, f"{path}[{place}]")]
    return [] if given == kept else [path]


@pytest.fixture(scope="module", autouse=True)
def kubectl():
    if shutil.which("kubectl") is None:
        install("kubernetes-client")


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubectl_keeps_all_of_it(name, tmp_path):
    assert lost(MANIFESTS[name], read(MANIFESTS[name], tmp_path)) == []


def test_kubectl_drops_what_is_mistyped(tmp_path):
    manifest = json.loads(json.dumps(MANIFESTS["raycluster-head"]))
    manifest["spec"]["containers"][0]["volumeMount"] = []
    expected = [".spec.containers[0].volumeMount"]
    assert lost(manifest, read(manifest, tmp_path)) == expected
