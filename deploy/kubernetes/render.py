"""Renders a Kustomize folder with the packaged kubectl, for tests.

Debian 12's kubectl (1.20) has the Kustomize of 2019, which spells two fields of kustomization.yaml otherwise; the
folders use today's spelling, and a copy is respelled for such a kubectl.
"""

import json
import os
import shutil
import subprocess
import tempfile

import yaml


def _kubectl_minor():
    text = subprocess.run(["kubectl", "version", "--client", "--output=json"], check=True, capture_output=True).stdout
    return int(json.loads(text)["clientVersion"]["minor"].rstrip("+"))


def _respell(path):
    with open(path, encoding="utf-8") as file:
        kustomization = yaml.safe_load(file)
    folder = os.path.dirname(path)
    resources = kustomization.pop("resources", [])
    kustomization["bases"] = [name for name in resources if os.path.isdir(os.path.join(folder, name))]
    kustomization["resources"] = [name for name in resources if name not in kustomization["bases"]]
    patches = kustomization.pop("patches", [])
    for patch in patches:
        if set(patch) != {"path"}:
            raise ValueError(f'{path}: a patch other than "- path: FILE" has no spelling here')
    kustomization["patchesStrategicMerge"] = [patch["path"] for patch in patches]
    os.remove(path)  # the file may be a link into the source tree
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(kustomization, file)


def render(root, overlay):
    """The documents of ROOT/OVERLAY, in the order in which they are applied."""
    with tempfile.TemporaryDirectory() as work:
        copy = os.path.join(work, "kubernetes")
        shutil.copytree(root, copy)  # follows links: Kustomize reads nothing outside its root
        if _kubectl_minor() < 21:
            for folder, _, files in os.walk(copy):
                if "kustomization.yaml" in files:
                    _respell(os.path.join(folder, "kustomization.yaml"))
        done = subprocess.run(
            ["kubectl", "kustomize", os.path.join(copy, overlay)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0 or done.stderr:
        raise ValueError(f"kubectl kustomize {overlay}: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]
