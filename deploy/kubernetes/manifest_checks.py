"""What a rendered overlay must keep; each check returns sentences about what it does not keep."""

import re

import jsonschema

# Not a kind of Kubernetes: the fields of the Prometheus operator's ServiceMonitor that we use, after its documentation.
SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
                },
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["port"],
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                            "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                        },
                    },
                },
            },
        },
    },
}

# Likewise of the PrometheusRule; promtool looks at the groups.
PROMETHEUS_RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PrometheusRule"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["groups"],
            "properties": {"groups": {"type": "array", "minItems": 1}},
        },
    },
}
OF_THE_OPERATOR = {
    "monitoring.coreos.com/v1/ServiceMonitor": SERVICE_MONITOR,
    "monitoring.coreos.com/v1/PrometheusRule": PROMETHEUS_RULE,
}
GRPC_SERVICE = "santa.attention.v1.AttentionService"


def seconds(text):
    """Of '20s' or '1m', as the server's flags write durations."""
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m|h)", text).groups()
    return float(number) * {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]


def bytes_of(text):
    """Of '3Gi' (Kubernetes) or '2GiB' (the server)."""
    number, unit = re.fullmatch(r"([0-9.]+)([KMGT]i)B?", text).groups()
    return float(number) * 2 ** {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[unit]


def schema_problems(document, schemas):
    """SCHEMAS: as third_party/kubernetes_schemas has them, of one release. A kind without a schema is a problem."""
    kind = f"{document.get('apiVersion')}/{document.get('kind')}"
    if kind in OF_THE_OPERATOR:
        schema = OF_THE_OPERATOR[kind]
    elif kind in schemas["kinds"]:
        schema = {"$defs": schemas["$defs"], "$ref": "#/$defs/" + schemas["kinds"][kind]}
    else:
        return [f"{kind}: there is no schema of this kind"]
    validator = jsonschema.Draft202012Validator(schema)
    return [
        f"{kind} {'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(document)
    ]


def security_problems(pod):
    """The Pod Security Standard "restricted", as far as a pod of a Linux node goes, and a read-only root."""
    problems = []

    def need(condition, sentence):
        if not condition:
            problems.append(sentence)

    context = pod.get("securityContext", {})
    need(context.get("runAsNonRoot") is True, "the pod may run as root")
    need(context.get("runAsUser", 0) != 0, "the pod runs as user 0")
    need(context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"), "no seccomp profile")
    need(pod.get("automountServiceAccountToken") is False, "a token of the Kubernetes API is mounted")
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        need(not pod.get(field), f"{field} is set")
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        need(
            kinds
            <= {
                "configMap",
                "csi",
                "downwardAPI",
                "emptyDir",
                "ephemeral",
                "persistentVolumeClaim",
                "projected",
                "secret",
            },
            f'volume {volume["name"]} is of kind {kinds}',
        )
    for container in pod["containers"] + pod.get("initContainers", []):
        own, name = container.get("securityContext", {}), container["name"]
        need(own.get("allowPrivilegeEscalation") is False, f"{name}: privilege escalation is allowed")
        need(own.get("readOnlyRootFilesystem") is True, f"{name}: the root file system can be written")
        need(not own.get("privileged"), f"{name}: privileged")
        need(own.get("runAsNonRoot") is not False and own.get("runAsUser", 1) != 0, f"{name}: runs as root")
        capabilities = own.get("capabilities", {})
        need("ALL" in capabilities.get("drop", []), f"{name}: not all capabilities are dropped")
        need(set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}, f"{name}: adds capabilities")
        need(own.get("seccompProfile", {}).get("type") != "Unconfined", f"{name}: seccomp is off")
        need(all("hostPort" not in port for port in container.get("ports", [])), f"{name}: takes a port of the node")
    return problems


def flag_problems(arguments, known):
    """KNOWN: the names of the server's flags."""
    problems = []
    for argument in arguments:
        match = re.fullmatch(r"--([a-z_0-9]+)=(.+)", argument)
        if match is None:
            problems.append(f"{argument} is not --flag=value")
        elif match.group(1) not in known:
            problems.append(f"the server has no flag --{match.group(1)}")
    names = [argument.split("=")[0] for argument in arguments]
    problems += [f"{name} is given twice" for name in set(names) if names.count(name) > 1]
    return problems


def agreement_problems(stateful_set):
    """What the arguments say must agree with what Kubernetes is told: ports, grace, memory, threads, files."""
    pod = stateful_set["spec"]["template"]["spec"]
    container = pod["containers"][0]
    flags = dict(argument[2:].split("=", 1) for argument in container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    resources = container["resources"]
    problems = []

    def need(condition, sentence):
        if not condition:
            problems.append(sentence)

    need(int(flags["listen"].rsplit(":", 1)[1]) == ports["grpc"], "the gRPC port differs from --listen")
    need(int(flags["http_port"]) == ports["http"], "the HTTP port differs from --http_port")
    need(not flags["listen"].startswith("127."), "the server listens to its own pod alone")
    need(
        pod["terminationGracePeriodSeconds"] >= seconds(flags["drain_grace"]) + 5,
        "terminationGracePeriodSeconds leaves no 5 s after --drain_grace",
    )
    need("memory" in resources["limits"], "no limit of memory")
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        need(("grpc" in probe) != ("httpGet" in probe), f"the {name} is not one of gRPC and HTTP")
        if "grpc" in probe:
            need("tls_cert" not in flags, f"the {name} is gRPC's, which knows no TLS")
            need(probe["grpc"] == {"port": ports["grpc"], "service": GRPC_SERVICE}, f"the {name} asks for another service")
        else:
            need(probe["httpGet"]["port"] == "http", f"the {name} asks another port")
    need("httpGet" in container["livenessProbe"], "the livenessProbe would kill a server that drains")
    if flags["backend"] == "cpu":
        need(
            "kv_bytes" in flags and bytes_of(flags["kv_bytes"]) + 2**29 <= bytes_of(resources["limits"]["memory"]),
            "the limit of memory leaves no 512 MiB beside --kv_bytes",
        )
        need(flags.get("threads") == str(resources["requests"]["cpu"]), "--threads differs from the CPUs asked for")
        need("nvidia.com/gpu" not in resources["limits"], "a GPU is asked for and not used")
    else:
        need(
            flags["backend"] == "cuda" and resources["limits"].get("nvidia.com/gpu") == 1, "not one GPU for one server"
        )
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
    need(set(mounts.values()) == {volume["name"] for volume in pod.get("volumes", [])}, "mounts differ from volumes")
    for flag in ("auth_tokens_file", "tls_cert", "tls_key"):
        if flag in flags:
            need(flags[flag].rsplit("/", 1)[0] in mounts, f"--{flag} is in no mounted folder")
    need(("tls_cert" in flags) == ("auth_tokens_file" in flags), "tokens without TLS, or TLS without tokens")
    return problems


def reference_problems(documents):
    """Selectors, targets and names of ports must meet something in the same overlay."""
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    (stateful_set,) = by_kind["StatefulSet"]
    (service,) = by_kind["Service"]
    labels = stateful_set["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in stateful_set["spec"]["template"]["spec"]["containers"][0]["ports"]}
    problems = []

    def need(condition, sentence):
        if not condition:
            problems.append(sentence)

    def selects(selector):
        return bool(selector) and selector.items() <= labels.items()

    need(selects(stateful_set["spec"]["selector"]["matchLabels"]), "the StatefulSet does not select its pods")
    need(stateful_set["spec"]["serviceName"] == service["metadata"]["name"], "serviceName is no Service")
    need(service["spec"]["clusterIP"] == "None", "the Service is not headless")
    need(selects(service["spec"]["selector"]), "the Service does not select the pods")
    need({port["targetPort"] for port in service["spec"]["ports"]} == ports, "ports of Service and pod differ")
    for budget in by_kind.get("PodDisruptionBudget", []):
        need(selects(budget["spec"]["selector"]["matchLabels"]), "the PodDisruptionBudget does not select the pods")
    for policy in by_kind.get("NetworkPolicy", []):
        need(selects(policy["spec"]["podSelector"]["matchLabels"]), "the NetworkPolicy does not select the pods")
        for rule in policy["spec"]["ingress"]:
            need({port["port"] for port in rule["ports"]} <= ports, "the NetworkPolicy names a port that is not there")
    for scaler in by_kind.get("HorizontalPodAutoscaler", []):
        target = scaler["spec"]["scaleTargetRef"]
        need(
            (target["kind"], target["name"]) == ("StatefulSet", stateful_set["metadata"]["name"]),
            "the autoscaler scales something else",
        )
        need("replicas" not in stateful_set["spec"], "replicas is set beside an autoscaler")
    for kind in ("Namespace", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"):
        need(len(by_kind.get(kind, [])) == 1, f"there is not one {kind}")
    namespace = by_kind["Namespace"][0]["metadata"]
    need(namespace["labels"].get("pod-security.kubernetes.io/enforce") == "restricted", "Pod Security is not enforced")
    for document in documents:
        if document["kind"] != "Namespace":
            need(document["metadata"].get("namespace") == namespace["name"], f"{document['kind']}: another namespace")
    return problems
