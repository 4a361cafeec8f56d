"""What is under ``deploy/``, by the schemas of those who read it, and against the program itself.

No container engine is needed: test_containers.py builds the images and runs them, where one is.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import dockerfile_parse
import kubernetes_validate
import pytest
import yaml

from cloister.cli.main import cli
from cloister.platforms.tdx.programs import DIRECTORY as PROGRAMS

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
DOCUMENTATION = ROOT / "docs" / "deployment.md"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()

Document = dict[str, Any]


def documents() -> Iterator[tuple[str, Document]]:
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{path.name}: {document['kind']} {document['metadata']['name']}", document


ALL = dict(documents())
COMPOSE: Document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUSTOMIZATION: Document = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())


def workloads() -> dict[str, Document]:
    return {name: d for name, d in ALL.items() if d["kind"] in ("Deployment", "StatefulSet", "Job")}


def pod(workload: Document) -> Document:
    spec: Document = workload["spec"]["template"]
    return spec


# --- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", ALL)
def test_kubernetes_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(ALL[name], version, strict=True)


def test_the_kubernetes_schema_refuses_what_is_wrong() -> None:
    broken = copy.deepcopy(ALL["key-server.yaml: Deployment key-server"])
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def check_compose(text: str) -> None:
    """Put in the defaults of variables, as Compose does first, and validate."""
    plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    compose_spec.PyOptions(apply_merge=True).from_yaml(plain).validate()


def test_compose_schema() -> None:
    check_compose((DEPLOY / "compose.yaml").read_text())


def test_the_simulated_key_server_differs_in_whom_it_trusts() -> None:
    """Compose replaces a command as a whole, so it is there twice."""
    on_top: Document = yaml.safe_load((DEPLOY / "compose.simulated.yaml").read_text())
    assert on_top["services"].keys() == {"key-server"}
    here, there = COMPOSE["services"]["key-server"], on_top["services"]["key-server"]
    removed = [word for word in here["command"] if word not in there["command"]]
    added = [word for word in there["command"] if word not in here["command"]]
    assert [word.partition("=")[0] for word in removed] == ["--pccs"]
    assert added == [f"--trust-simulated=/run/secrets/{there['secrets'][0]}"]
    assert on_top["secrets"].keys() == set(there["secrets"])


@pytest.mark.parametrize(
    ("service", "change"),
    [
        ("pccs", {"comand": ["x"]}),
        ("key-server", {"secrets": ["no-such"]}),
        ("worker", {"networks": ["no-such"]}),
    ],
)
def test_the_compose_schema_refuses_what_is_wrong(service: str, change: Document) -> None:
    broken = copy.deepcopy(COMPOSE)
    broken["services"][service].update(change)
    with pytest.raises((ValueError, RuntimeError), match=r"comand|no-such"):
        check_compose(yaml.safe_dump(broken))


# --- the Dockerfile ------------------------------------------------------------------------------


@pytest.fixture
def dockerfile(tmp_path: Path) -> dockerfile_parse.DockerfileParser:
    copied = tmp_path / "Dockerfile"  # the parser may write to its file
    copied.write_text((DEPLOY / "Dockerfile").read_text())
    return dockerfile_parse.DockerfileParser(str(copied))


def stages(dockerfile: dockerfile_parse.DockerfileParser) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for item in dockerfile.structure:
        if item["instruction"] == "FROM":
            found[item["value"].split(" AS ")[1]] = current = []
        elif item["instruction"] not in ("ARG", "COMMENT") or found:
            current.append(item)
    return found


def test_every_instruction_is_one(dockerfile: dockerfile_parse.DockerfileParser) -> None:
    known = {"ARG", "CMD", "COMMENT", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
    assert {item["instruction"] for item in dockerfile.structure} <= known


def test_what_is_copied_exists_and_is_not_ignored(
    dockerfile: dockerfile_parse.DockerfileParser,
) -> None:
    let_in = [
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    built = stages(dockerfile)
    for items in built.values():
        for item in (item for item in items if item["instruction"] == "COPY"):
            words = item["value"].split()
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in built
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists()
                assert source in let_in


def test_nothing_runs_as_root(dockerfile: dockerfile_parse.DockerfileParser) -> None:
    for name, items in stages(dockerfile).items():
        users = [item["value"] for item in items if item["instruction"] == "USER"]
        assert users == ([] if name == "built" else ["10001:10001"]), name


def test_psycopg_is_the_one_that_is_tested() -> None:
    (pinned,) = re.findall(r"ARG PSYCOPG=(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert f"psycopg=={pinned}\n" in (ROOT / "requirements" / "test.txt").read_text()


def test_compose_builds_stages_that_exist(dockerfile: dockerfile_parse.DockerfileParser) -> None:
    for service in COMPOSE["services"].values():
        assert service["build"]["target"] in stages(dockerfile)
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


# --- the commands in them ------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in COMPOSE["services"].items():
        yield f"compose {name}", service["command"]
    for name, workload in workloads().items():
        for container in pod(workload)["spec"]["containers"]:
            if container["image"].startswith("cloister/"):
                yield name, container["args"]


@pytest.mark.parametrize(("where", "words"), list(commands()), ids=lambda value: str(value)[:30])
def test_the_program_knows_the_command(where: str, words: list[str]) -> None:
    context = cli.make_context("cloister", ["doctor"], resilient_parsing=True)
    command = cli.get_command(context, words[0])
    assert command is not None, where
    parsed, _, _ = command.make_parser(context).parse_args(words[1:])
    assert parsed


# --- whether the parts fit -----------------------------------------------------------------------


def selects(selector: Document) -> list[Document]:
    return [
        w for w in workloads().values() if selector.items() <= pod(w)["metadata"]["labels"].items()
    ]


def test_services_reach_ports_of_pods() -> None:
    for name, service in ALL.items():
        if service["kind"] == "Service":
            (workload,) = selects(service["spec"]["selector"])
            container = pod(workload)["spec"]["containers"][0]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"], name


def test_every_workload_selects_its_own_pods() -> None:
    for name, workload in workloads().items():
        if "selector" in workload["spec"]:
            assert selects(workload["spec"]["selector"]["matchLabels"]) == [workload], name


def test_probes_ask_ports_that_are_there_and_the_servers_health() -> None:
    (container,) = pod(ALL["key-server.yaml: Deployment key-server"])["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for kind in ("startupProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": "/healthz", "port": "admin"}
    assert f"--admin=0.0.0.0:{ports['admin']}" in container["args"]
    assert f"--listen=0.0.0.0:{ports['keys']}" in container["args"]


def test_secrets_come_from_the_generator_and_never_from_the_repository() -> None:
    made = {
        item["name"]: [file.partition("=")[0].rpartition("/")[2] for file in item["files"]]
        for item in KUSTOMIZATION["secretGenerator"]
    }
    assert not [name for name, document in ALL.items() if document["kind"] == "Secret"]
    for workload in workloads().values():
        spec = pod(workload)["spec"]
        named = [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v]
        assert set(named) <= made.keys()
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in made[reference["name"]]
    (server,) = pod(ALL["key-server.yaml: Deployment key-server"])["spec"]["containers"]
    read = re.findall(r"/run/secrets/cloister/(\S+)", " ".join(server["args"]))
    assert sorted(read) == sorted(made["key-server"])


def test_network_policies_name_pods_that_are_there_and_deny_by_default() -> None:
    policies = {
        d["metadata"]["name"]: d["spec"] for d in ALL.values() if d["kind"] == "NetworkPolicy"
    }
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        labels = policy["podSelector"].get("matchLabels", {})
        assert selects(labels)
        for rule in (*policy.get("ingress", []), *policy.get("egress", [])):
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "podSelector" in peer:
                    assert selects(peer["podSelector"]["matchLabels"])


def test_kustomization_names_files_that_are_there() -> None:
    owners = {path.name for path in MANIFESTS if not path.name.startswith("worker-")}
    assert set(KUSTOMIZATION["resources"]) == owners - {"kustomization.yaml"}


def test_the_owners_pods_pass_the_restricted_standard() -> None:
    for name, workload in workloads().items():
        if name.startswith("worker-"):
            continue
        spec = pod(workload)["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_workers_ask_for_the_hardware_that_they_name() -> None:
    spec = pod(ALL["worker-sgx.yaml: Job worker-sgx"])["spec"]
    limits = spec["containers"][0]["resources"]["limits"]
    assert {name for name in limits if name.startswith("sgx.intel.com/")} == {
        *("sgx.intel.com/epc", "sgx.intel.com/enclave", "sgx.intel.com/provision")
    }
    for name in ("worker-sgx.yaml: Job worker-sgx", "worker-tdx.yaml: Job worker-tdx"):
        spec = pod(ALL[name])["spec"]
        assert spec["nodeSelector"]
        assert "--require-hardware" in spec["containers"][0]["args"]


def test_workers_of_a_tdx_node_share_the_list_of_what_it_has_run() -> None:
    """RTMR 3 belongs to the node and lives as long as it; a list in the container would not."""
    spec = pod(ALL["worker-tdx.yaml: Job worker-tdx"])["spec"]
    mounted = {item["mountPath"]: item["name"] for item in spec["containers"][0]["volumeMounts"]}
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert volumes[mounted[str(PROGRAMS)]]["hostPath"]["path"] == str(PROGRAMS)


def test_the_documented_certificate_is_for_a_name_that_the_worker_finds() -> None:
    documented = re.findall(r"certs new \S+ --host (\S+)", DOCUMENTATION.read_text())
    networks = COMPOSE["services"]["key-server"]["networks"]
    assert documented
    assert set(documented) <= {*networks["workers"]["aliases"], "key-server"}


def test_the_documented_password_is_the_same_in_a_file_and_in_a_variable() -> None:
    """PostgreSQL strips a line end of its file; a variable from the same secret keeps it."""
    pattern = r"^(head -c .*) > secrets/postgresql.password$"
    (line,) = re.findall(pattern, DOCUMENTATION.read_text(), re.MULTILINE)
    password = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert len(password) == 32
    assert password == password.strip()
