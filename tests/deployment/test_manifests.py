"""What the manifests say fits the product, the cluster's schemas, and each other."""

import json
import re

import jsonschema
import kubernetes_validate
import pytest

from fourfold.serve import GRACEFUL_SECONDS
from gateway.app import create_app as create_gateway
from gateway.routes import SERVICES
from gateway.settings import GatewaySettings
from services.iqa.api import DOMAIN
from shared.jobs.queue import QUEUES
from shared.jobs.worker import WorkerSettings
from shared.service import create_service
from shared.settings import ServiceSettings
from tests.deployment.rendered import OVERLAYS, ROOT, container, named, of_kind, pod_labels, render, selects
from tests.deployment.schemas import CUSTOM

OLDEST, NEWEST = "1.34", "1.37"
WORKLOADS = ("Deployment", "StatefulSet")
KNOWN_SETTINGS = {
    f"FOURFOLD_{name.upper()}"
    for kind in (GatewaySettings, ServiceSettings, WorkerSettings)
    for name in kind.model_fields
}
overlays = pytest.mark.parametrize("overlay", OVERLAYS)
# The keys of the Secret that docs/kubernetes.md has a person make.
SECRET_KEYS = set(re.findall(r"--from-literal=(\w+)=", (ROOT / "docs" / "kubernetes.md").read_text()))


def ours(overlay):
    return of_kind(render(overlay), "Deployment")


@overlays
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_has_the_schema_of_the_oldest_and_the_newest_cluster(overlay, version):
    for item in render(overlay):
        if item["kind"] in CUSTOM:
            jsonschema.Draft202012Validator(CUSTOM[item["kind"]]).validate(item)
        else:
            kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_field_would_be_found():
    deployment = json.loads(json.dumps(ours("base")[0]))
    container(deployment)["comand"] = ["x"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)
    (scaler, *_) = of_kind(render("overlays/prod"), "ScaledObject")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**scaler, "spec": {**scaler["spec"], "cooldown": 1}}, CUSTOM["ScaledObject"])


@overlays
def test_every_service_has_its_deployment_its_service_and_its_address(overlay):
    objects = render(overlay)
    config = next(item for item in of_kind(objects, "ConfigMap") if item["metadata"]["name"].startswith("fourfold"))
    addresses = json.loads(config["data"]["FOURFOLD_SERVICES"])
    assert set(addresses) == set(SERVICES)
    for name, address in addresses.items():
        match = re.fullmatch(r"http://([a-z-]+):(\d+)", address)
        assert match, address
        host, port = match.groups()
        service = named(objects, "Service", host)
        (ports,) = [entry for entry in service["spec"]["ports"] if entry["port"] == int(port)]
        (deployment,) = [item for item in ours(overlay) if selects(service["spec"]["selector"], pod_labels(item))]
        assert ports["targetPort"] in {entry["name"] for entry in container(deployment)["ports"]}
        assert pod_labels(deployment)["app.kubernetes.io/component"] == name
        assert (
            container(deployment)["image"].partition(":")[0] == f"fourfold-service-{name}"
        )  # which serves that domain


@overlays
def test_selectors_meet_exactly_the_pods_they_mean(overlay):
    objects = render(overlay)
    workloads = of_kind(objects, *WORKLOADS)
    for item in workloads:
        assert selects(item["spec"]["selector"]["matchLabels"], pod_labels(item))
    for item in of_kind(objects, "Service"):
        assert len([one for one in workloads if selects(item["spec"]["selector"], pod_labels(one))]) == 1
    for deployment in ours(overlay):
        budgets = [
            item
            for item in of_kind(objects, "PodDisruptionBudget")
            if selects(item["spec"]["selector"]["matchLabels"], pod_labels(deployment))
        ]
        assert len(budgets) == 1, deployment["metadata"]["name"]
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        assert named(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])


@overlays
def test_what_is_referred_to_exists(overlay):
    objects = render(overlay)
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    assert SECRET_KEYS
    for item in of_kind(objects, *WORKLOADS):
        spec = item["spec"]["template"]["spec"]
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for source in container(item).get("envFrom", []):
            if "configMapRef" in source:
                assert ("ConfigMap", source["configMapRef"]["name"]) in names
            else:
                assert source["secretRef"]["name"] == "fourfold"
        for variable in container(item).get("env", []):
            key = variable.get("valueFrom", {}).get("secretKeyRef")
            assert key is None or (key["name"] == "fourfold" and key["key"] in SECRET_KEYS)
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container(item).get("volumeMounts", [])} <= volumes
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or ("PersistentVolumeClaim", claim["claimName"]) in names
    for item in of_kind(objects, "TriggerAuthentication"):
        assert {entry["key"] for entry in item["spec"]["secretTargetRef"]} <= SECRET_KEYS
    for item in of_kind(objects, "ScaledObject"):
        for trigger in item["spec"]["triggers"]:
            assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in names
    for item in of_kind(objects, "HTTPRoute"):
        for rule in item["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                ports = named(objects, "Service", backend["name"])["spec"]["ports"]
                assert backend["port"] in {port["port"] for port in ports}


@overlays
def test_probes_ask_for_paths_that_the_applications_have(overlay, tmp_path):
    gateway = create_gateway(GatewaySettings(home=tmp_path))
    service = create_service(DOMAIN, ServiceSettings(home=tmp_path))
    paths = {
        "fourfold-gateway": set(gateway.openapi()["paths"]),
        "fourfold-service": set(service.openapi()["paths"]),
    }
    for item in ours(overlay):
        one = container(item)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "httpGet" in one.get(probe, {}):
                asked = one[probe]["httpGet"]
                role = re.sub(r"^(fourfold-service)-.*", r"\1", one["image"].partition(":")[0])
                assert asked["path"] in paths[role], (item["metadata"]["name"], probe)
                assert asked["port"] in {port["name"] for port in one["ports"]}
        assert "startupProbe" in one


@overlays
def test_pods_keep_to_the_restricted_standard(overlay):
    for item in of_kind(render(overlay), *WORKLOADS):
        pod, one = item["spec"]["template"]["spec"], container(item)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert one["resources"]["limits"]["memory"]
        assert one["resources"]["requests"]["cpu"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@overlays
def test_no_secret_is_contained_and_every_image_of_an_overlay_has_a_tag(overlay):
    objects = render(overlay)
    assert not of_kind(objects, "Secret")
    if overlay != "base":
        for item in of_kind(objects, *WORKLOADS):
            assert re.search(r":(?!latest)[\w.-]+$", container(item)["image"]), item["metadata"]["name"]


@overlays
def test_every_variable_is_a_setting(overlay):
    objects = render(overlay)
    given = {name for item in of_kind(objects, "ConfigMap") for name in item["data"]}
    given |= {entry["name"] for item in ours(overlay) for entry in container(item).get("env", [])}
    given |= SECRET_KEYS
    assert {name for name in given if name.startswith("FOURFOLD_")} <= KNOWN_SETTINGS


@overlays
def test_workers_take_the_queues_that_there_are(overlay):
    taken = []
    for item in ours(overlay):
        for entry in container(item).get("env", []):
            if entry["name"] == "FOURFOLD_QUEUES":
                taken += json.loads(entry["value"])
    assert set(taken) <= set(QUEUES)
    assert len(taken) == len(set(taken))
    assert set(taken) == (set(QUEUES) if overlay == "overlays/prod" else set(QUEUES) - {"train.gpu"})
    for item in of_kind(render(overlay), "ScaledObject"):
        worker = named(render(overlay), "Deployment", item["spec"]["scaleTargetRef"]["name"])
        queues = json.loads(next(e["value"] for e in container(worker)["env"] if e["name"] == "FOURFOLD_QUEUES"))
        assert [trigger["metadata"]["listName"] for trigger in item["spec"]["triggers"]] == queues


@overlays
def test_a_pod_has_the_time_that_it_takes_to_end(overlay):
    for item in ours(overlay):
        pod, one = item["spec"]["template"]["spec"], container(item)
        if "lifecycle" in one:
            sleep = one["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] >= sleep + GRACEFUL_SECONDS + 5
        if one["image"].startswith("fourfold-worker"):
            assert pod["terminationGracePeriodSeconds"] >= 300


def test_a_gpu_worker_asks_for_a_gpu_and_for_a_node_that_has_one():
    item = named(render("overlays/prod"), "Deployment", "worker-gpu")
    pod = item["spec"]["template"]["spec"]
    assert container(item)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(item)["image"].startswith("fourfold-worker-gpu:")
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert "nvidia.com/gpu.present" in pod["nodeSelector"]


def test_the_network_is_shut_but_for_the_products_own_paths():
    objects = render("overlays/prod")
    policies = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for item in ours("overlays/prod"):
        labels = pod_labels(item)
        open_ports = {
            port["port"]
            for name, policy in policies.items()
            if name != "default-deny" and selects(policy["podSelector"].get("matchLabels", {}), labels)
            for rule in policy.get("ingress", [])
            for port in rule["ports"]
        }
        assert open_ports == {port["containerPort"] for port in container(item).get("ports", [])}
        assert selects(policies["state"]["podSelector"]["matchLabels"], labels)
    # A service is reached by the gateway alone.
    (rule,) = policies["service"]["ingress"]
    (origin,) = rule["from"]
    assert selects(origin["podSelector"]["matchLabels"], pod_labels(named(objects, "Deployment", "gateway")))
