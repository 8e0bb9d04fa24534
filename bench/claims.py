"""`python -m bench.claims`: a hundred claims at once, a claim's way to a running pod, and what our pods take.

On a cluster of two storage machines and one compute machine. The hundred are compared with the same sidecar over a
driver that only makes directories, plus the bare lvcreate commands at the same parallelism. Writes
docs/evidence/claims.md; exit 1 when a bar is missed.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aoe_lab.kubernetes.cluster import THIN_POOL, VOLUME_GROUP, Cluster
from aoe_lab.kubernetes.helm import NAMESPACE
from aoe_lab.kubernetes.images import WORKLOAD
from bench import directory_driver, hand
from bench.report import Ratio, Report

BAR = 1.5
NODE_MIB = 60
STEADY = 1.2
"""How much longer the slowest of a round's fixed pieces of work may take than the fastest."""
SIZE_BYTES = 16 << 20
OURS, THEIRS = "bench-aoe", "bench-directory"
SPACE = "bench"
"""Namespace of claims, pods, and of the driver to compare with."""
WAIT_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.claims")
    parser.add_argument("--claims", type=int, default=100, help="at once (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all that is measured (%(default)s)")
    parser.add_argument("--attach", metavar="NAME", help="a running cluster with aoe-csi; nothing is written then")
    options = parser.parse_args()
    report = Report("claims", "make bench-claims")
    if options.attach:
        measure(Cluster.attach(options.attach), report, options.claims, options.rounds)
        return 1 if report.missed else 0
    with Cluster.start(storage=2, compute=1, name="bench-claims") as cluster:
        cluster.install()
        cluster.await_ready()
        measure(cluster, report, options.claims, options.rounds)
    report.write()
    return 1 if report.missed else 0


def measure(cluster: Cluster, report: Report, claims: int, rounds: int) -> None:
    prepare(cluster)
    crowd(cluster, report, claims, rounds)
    one_pod(cluster, report, rounds)
    footprint(cluster, report)
    cluster.plane.kubectl("delete", "namespace", SPACE, "--timeout=300s", timeout_s=330)


# --- a hundred at once ----------------------------------------------------------------------------------------------


def crowd(cluster: Cluster, report: Report, count: int, rounds: int) -> None:
    """Bind many claims at once: the directories' and the same number of lvcreate, then ours.

    A round is counted if a fixed piece of work took a processor nearly as long at its end as at its begin: the speed of
    a host that others use may double between two parts of one.
    """
    ours: list[float] = []
    theirs: list[float] = []
    for storage_class in (OURS, THEIRS):  # Warms up: the first use of a shelf asks the wire.
        bind(cluster, storage_class, 5)
        clear(cluster)
    for number in range(2 * rounds):
        paces = [pace()]
        sidecar_ms = bind(cluster, THEIRS, count)
        clear(cluster)
        bare_ms = by_hand(cluster, count, f"b{number}-")
        paces.append(pace())
        # Last: to delete them takes longer than all of this.
        ours_ms = bind(cluster, OURS, count)
        paces.append(pace())
        clear(cluster)
        steady = max(paces) <= STEADY * min(paces)
        report.say(
            f"{count} claims: {ours_ms:.0f} ms, the sidecar over directories {sidecar_ms:.0f} ms, as many bare lvcreate"
            f" {bare_ms:.0f} ms; a fixed piece of work before, between and after:"
            f" {', '.join(f'{one:.0f}' for one in paces)} ms{'' if steady else ': not counted'}"
        )
        if steady:
            ours.append(ours_ms)
            theirs.append(sidecar_ms + bare_ms)
        if len(ours) == rounds:
            break
    what = f"{count} claims at once to Bound, to the sidecar over directories plus bare lvcreate"
    if len(ours) < rounds:
        report.require(False, f"{what}: {len(ours)} rounds of {rounds} on a host of steady speed")
        return
    report.add(Ratio(what=what, ours=ours, theirs=theirs, unit="ms", bar=BAR))


def bind(cluster: Cluster, storage_class: str, count: int) -> float:
    """Return the milliseconds until so many claims, made at once, are Bound."""
    claims = [claim(f"{storage_class}-{number}", storage_class) for number in range(count)]
    begin = time.monotonic()
    put(cluster, "create", *claims)
    until(cluster, lambda: phases(cluster).count("Bound") == count, f"{count} claims of {storage_class}")
    return (time.monotonic() - begin) * 1000


def clear(cluster: Cluster) -> None:
    """Delete all claims, and wait until their volumes are gone."""
    cluster.plane.kubectl(f"-n{SPACE}", "delete", "pvc", "--all", "--wait=false")
    until(cluster, lambda: not volumes(cluster), "the volumes to be gone")


def pace() -> float:
    """Return the milliseconds that a processor of this host takes for a fixed piece of work, waiting not counted."""
    spent: list[float] = []
    for _ in range(3):
        begin = time.process_time()
        for _ in range(10_000_000):
            pass
        spent.append((time.process_time() - begin) * 1000)
    return statistics.median(spent)


def by_hand(cluster: Cluster, count: int, prefix: str) -> float:
    """Return the milliseconds that bare lvcreate takes, half on each storage machine, as many at a time as ours."""
    machines = cluster.storage_machines
    spent: list[float] = []
    share, at_a_time = count // len(machines), workers(cluster) // len(machines)

    def create(machine: Any) -> None:
        words = (VOLUME_GROUP, THIN_POOL, prefix, str(SIZE_BYTES), str(share), str(at_a_time))
        spent.append(hand.run(machine, "bare-lvcreate-many.sh", *words))

    threads = [threading.Thread(target=create, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for machine in machines:
        names = " ".join(f"{VOLUME_GROUP}/{prefix}{number}" for number in range(1, share + 1))
        machine.run(f"lvremove -qq -y {names}", timeout_s=300)
    assert len(spent) == len(machines), "a machine's lvcreate failed"
    return max(spent)


def workers(cluster: Cluster) -> int:
    """Return how many claims the provisioner works on at once."""
    (words,) = [one["args"] for one in controller(cluster)["containers"] if one["name"] == "csi-provisioner"]
    return next(int(word.partition("=")[2]) for word in words if word.startswith("--worker-threads="))


# --- one claim's way ------------------------------------------------------------------------------------------------


def one_pod(cluster: Cluster, report: Report, rounds: int) -> None:
    """Split the time from a claim and its pod to the running pod: with mkfs, and again with the file system there."""
    for what, keep in (("a new claim", False), ("a claim used before", True)):
        parts: list[dict[str, float]] = []
        for number in range(rounds):
            name = f"one-{number}"
            if keep:
                way(cluster, name, new=True)
                end(cluster, name, keep_claim=True)
            parts.append(way(cluster, name, new=not keep))
            end(cluster, name, keep_claim=False)
        median = {part: statistics.median(one[part] for one in parts) for part in parts[0]}
        told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in median.items())
        report.say(f"from {what} with its pod to the pod running: {told} (medians of {rounds}, looked at every 0.2 s)")


def way(cluster: Cluster, name: str, *, new: bool) -> dict[str, float]:
    """Return part → seconds of one pod's way."""
    node = cluster.compute_machines[0].name
    begin = time.monotonic()
    put(cluster, "create", *([claim(name, "thin")] if new else []), pod(name, node))
    seen: dict[str, float] = {}

    def look() -> bool:
        listed = cluster.plane.kubectl(f"-n{SPACE}", "get", "pvc,pods,volumeattachments", "-ojson").stdout
        now, items = time.monotonic() - begin, json.loads(listed)["items"]
        # The driver to compare with has a pod in this namespace, too.
        items = [one for one in items if one["kind"] == "VolumeAttachment" or one["metadata"]["name"] == name]
        bound_now = any(one["kind"] == "PersistentVolumeClaim" and one["status"]["phase"] == "Bound" for one in items)
        attached = any(one["kind"] == "VolumeAttachment" and one.get("status", {}).get("attached") for one in items)
        running = any(one["kind"] == "Pod" and one["status"]["phase"] == "Running" for one in items)
        for part, there in (("bound", bound_now), ("attached", attached), ("running", running)):
            if there:
                seen.setdefault(part, now)
        return running

    until(cluster, look, f"pod {name}", every_s=0.1)
    calls = csi_calls(cluster, time.monotonic() - begin)
    return {
        "all": seen["running"],
        "scheduled and bound": seen["bound"],
        "attached": seen["attached"] - seen["bound"],
        "staged, mounted and started": seen["running"] - seen["attached"],
        **{f"of that {method}": milliseconds / 1000 for method, milliseconds in calls.items()},
    }


def csi_calls(cluster: Cluster, within_s: float) -> dict[str, float]:
    """Return method → milliseconds, of the calls answered lately that made something."""
    wanted = ("CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume")
    found = dict.fromkeys(wanted, 0.0)
    for component in ("controller", "node"):
        chosen = (
            f"-lapp.kubernetes.io/component={component}",
            "-caoe-csi",
            f"--since={within_s + 1:.0f}s",
            "--tail=-1",
        )
        for line in cluster.plane.kubectl("logs", f"-n{NAMESPACE}", *chosen).stdout.splitlines():
            said = json.loads(line) if line.startswith("{") else {}
            method = str(said.get("method", "")).rpartition("/")[2]
            if method in wanted and said.get("code") == "OK":
                found[method] = max(found[method], float(said["ms"]))
    return found


def end(cluster: Cluster, name: str, *, keep_claim: bool) -> None:
    things = [f"pod/{name}", *([] if keep_claim else [f"pvc/{name}"])]
    cluster.plane.kubectl(f"-n{SPACE}", "delete", *things, "--timeout=120s", timeout_s=150)
    listed = "volumeattachments" if keep_claim else "volumeattachments,aoevolumes"
    until(cluster, lambda: not cluster.plane.kubectl("get", listed, "-oname").stdout, f"{name} to be let go")


# --- what it takes --------------------------------------------------------------------------------------------------


def footprint(cluster: Cluster, report: Report) -> None:
    """Tell containers and memory of each kind of pod; the node server has a bar."""
    listed = json.loads(cluster.plane.kubectl("get", "pods", f"-n{NAMESPACE}", "-ojson").stdout)["items"]
    told: set[str] = set()
    for one in listed:
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        if component in told:
            continue
        told.add(component)
        names = [part["name"] for part in (*one["spec"].get("initContainers", []), *one["spec"]["containers"])]
        memory = resident_mib(cluster, one)
        each = ", ".join(f"{program} {mib:.0f}" for program, mib in sorted(memory.items()))
        report.say(f"pod of {component}: {len(names)} containers, {sum(memory.values()):.0f} MiB resident ({each})")
        if component == "node":
            report.require(sum(memory.values()) <= NODE_MIB, f"the node server has at most {NODE_MIB} MiB")
    for component in ("controller", "cluster", "storage", "node"):
        report.require(component in told, f"a pod of {component} was looked at")


def resident_mib(cluster: Cluster, one: dict[str, Any]) -> dict[str, float]:
    """Return program → MiB resident, of all processes of a pod, found by its control group."""
    machine = cluster.lab.machine(one["spec"]["nodeName"])
    uid = one["metadata"]["uid"].replace("-", "_")
    listing = (
        f"for p in $(grep -ls pod{uid} /proc/[0-9]*/cgroup | cut -d/ -f3); do"
        " echo $(tr '\\0' ' ' < /proc/$p/cmdline | cut -c1-200)'|'$(grep VmRSS /proc/$p/status); done"
    )
    found: dict[str, float] = {}
    for line in machine.run(listing, check=False).stdout.splitlines():
        command, _, resident = line.partition("|")
        kib = [int(word) for word in resident.split() if word.isdigit()]
        if kib and "sleep 2147483647" not in command:
            words = [Path(word).name for word in command.split()]
            program = next((word for word in words if word.startswith(("aoe-", "csi-"))), words[0])
            found[program] = found.get(program, 0) + kib[0] / 1024
    return found


# --- the cluster ----------------------------------------------------------------------------------------------------


def prepare(cluster: Cluster) -> None:
    """Make classes, a namespace, and the driver to compare with, its csi-provisioner as our chart runs it."""
    ours = {"provisioner": "aoe-csi.dev", "parameters": {"pool": "thin"}, "metadata": {"name": OURS}}
    theirs = {"provisioner": directory_driver.NAME, "metadata": {"name": THEIRS}}
    common = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "volumeBindingMode": "Immediate"}
    put(cluster, "apply", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    put(cluster, "apply", common | ours, common | theirs)
    pattern = controller(cluster)
    (provisioner,) = [one for one in pattern["containers"] if one["name"] == "csi-provisioner"]
    (image,) = [one["image"] for one in pattern["initContainers"] if one["name"] == "aoe-csi"]
    left_out = ("--enable-capacity", "--capacity-", "--strict-topology", "--immediate-topology")  # It has neither.
    sidecar = {
        **{key: provisioner[key] for key in ("name", "image", "imagePullPolicy", "env", "volumeMounts")},
        "args": [word for word in provisioner["args"] if not word.startswith(left_out)],
    }
    driver = {
        "name": "driver",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3.11", "/bench/directory_driver.py", "/csi/csi.sock", "/volumes"],
        "volumeMounts": [
            {"name": "socket", "mountPath": "/csi"},
            {"name": "volumes", "mountPath": "/volumes"},
            {"name": "program", "mountPath": "/bench"},
        ],
    }
    labels = {"app": THEIRS}
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [driver, sidecar],
            "nodeSelector": {"kubernetes.io/hostname": cluster.compute_machines[0].name},
            "securityContext": {"runAsUser": 65532, "fsGroup": 65532},
            "volumes": [
                {"name": "socket", "emptyDir": {}},
                {"name": "volumes", "emptyDir": {}},
                {"name": "program", "configMap": {"name": THEIRS}},
            ],
        },
    }
    put(
        cluster,
        "apply",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": THEIRS},
         "data": {"directory_driver.py": Path(directory_driver.__file__).read_text(encoding="utf-8")}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": THEIRS},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
         "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": SPACE}]},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": THEIRS},
         "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}},
    )  # fmt: skip
    cluster.plane.kubectl(f"-n{SPACE}", "rollout", "status", f"deployment/{THEIRS}", "--timeout=180s", timeout_s=200)


def controller(cluster: Cluster) -> dict[str, Any]:
    """Return the spec of our controller's pods."""
    found = cluster.plane.kubectl("get", "deployment", "aoe-csi-controller", f"-n{NAMESPACE}", "-ojson").stdout
    return dict(json.loads(found)["spec"]["template"]["spec"])


def put(cluster: Cluster, verb: str, *objects: dict[str, Any]) -> None:
    content = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.plane.kubectl(f"-n{SPACE}", verb, "-f", "-", stdin=json.dumps(content), timeout_s=120)


def claim(name: str, storage_class: str) -> dict[str, Any]:
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(SIZE_BYTES)}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def pod(name: str, node: str) -> dict[str, Any]:
    container = {
        "name": "workload",
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "command": ["sleep", "1000000"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "containers": [container],
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def phases(cluster: Cluster) -> list[str]:
    """Return the phase of each claim."""
    return cluster.plane.kubectl(f"-n{SPACE}", "get", "pvc", "-ojsonpath={.items[*].status.phase}").stdout.split()


def volumes(cluster: Cluster) -> str:
    return cluster.plane.kubectl("get", "pv,aoevolumes", "-oname").stdout


def until(cluster: Cluster, is_so: Callable[[], bool], what: str, *, every_s: float = 0.5) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {WAIT_S:g} s in vain for {what}\n{cluster.describe()}")
        time.sleep(every_s)


if __name__ == "__main__":
    sys.exit(main())
