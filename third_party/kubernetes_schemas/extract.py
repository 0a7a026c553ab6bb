"""Makes the JSON schemas of the kinds that deploy/ uses, from those of all of Kubernetes.

    pip download --no-deps kubernetes-validate==1.37.0
    python3 extract.py kubernetes_validate-1.37.0-py3-none-any.whl

That package (https://github.com/willthames/kubernetes-validate, Apache-2.0) has what Kubernetes publishes (Apache-2.0) as
JSON schemas. Kept are the strict ones, which know no other field than those of the API, without descriptions and status.
They are made stricter in one thing: null is no value.
"""

import json
import os
import sys
import zipfile

# The oldest release that the overlays are checked against, and the newest that there was.
RELEASES = ["1.29", "1.37"]
KINDS = [
    "Namespace",
    "ServiceAccount",
    "Service",
    "StatefulSet",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "HorizontalPodAutoscaler",
]
GROUPS = {"": "v1", "apps": "v1", "policy": "v1", "networking.k8s.io": "v1", "autoscaling": "v2"}
PREFIX = "#/$defs/"


def slim(node, is_schema=True):
    """The schema without what only people read. Names of properties are no schema words."""
    if isinstance(node, list):
        return [slim(item) for item in node]
    if not isinstance(node, dict):
        return node
    if not is_schema:
        return {name: slim(value) for name, value in node.items()}
    result = {}
    for word, value in node.items():
        if word == "description" or word.startswith("x-kubernetes-"):
            continue
        if word == "properties":
            value = {name: schema for name, schema in value.items() if name != "status"}
        if word == "type" and isinstance(value, list):
            value = [name for name in value if name != "null"]
            value = value[0] if len(value) == 1 else value
        result[word] = slim(value, is_schema=word != "properties")
    return result


def references(node):
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        for word, value in node.items():
            if word == "$ref":
                yield value[len(PREFIX) :]
            else:
                yield from references(value)


def extract(definitions):
    kinds, kept, open_names = {}, {}, []
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if kind["kind"] in KINDS and GROUPS.get(kind["group"]) == kind["version"]:
                kinds["/".join(filter(None, [kind["group"], kind["version"], kind["kind"]]))] = name
                open_names.append(name)
    while open_names:
        name = open_names.pop()
        if name in kept:
            continue
        kept[name] = slim(definitions[name])
        open_names.extend(references(kept[name]))
    return {"kinds": dict(sorted(kinds.items())), "$defs": dict(sorted(kept.items()))}


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        for release in RELEASES:
            path = f"kubernetes_validate/kubernetes-json-schema/v{release}.0-local-strict/_definitions.json"
            schemas = extract(json.loads(wheel.read(path))["$defs"])
            target = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"v{release}.json")
            with open(target, "w", encoding="utf-8") as file:
                json.dump(schemas, file, indent=0, separators=(",", ":"))
                file.write("\n")


if __name__ == "__main__":
    main()
