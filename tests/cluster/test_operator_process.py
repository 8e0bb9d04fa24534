"""The operator's roles, and the controller, as processes of their own, as containers run them."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from aoe_core.resources.kubernetes import KubernetesLeases
from aoe_core.resources.leases import WENT_BACK
from aoe_lab.kubernetes.control_plane import ControlPlane


def test_the_cluster_role_tells_prometheus_and_ends_in_good_order(clean: ControlPlane) -> None:
    health, metrics = _free_port(), _free_port()
    url = f"http://127.0.0.1:{health}/healthz"
    where = (f"--kubeconfig={clean.kubeconfig}", "--namespace=default", f"--metrics=127.0.0.1:{metrics}")
    leases = KubernetesLeases(clean.kubeconfig, "default")
    leases.renew_lease("storage1")
    leases.close()
    role = subprocess.Popen(
        [sys.executable, "-m", "aoe_operator", "cluster", *where, f"--liveness={url}"],
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not _answers(url) and role.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _answers(url)
        live = 'aoe_csi_storage_node_live{node="storage1"}'
        while live not in (said := _read(f"http://127.0.0.1:{metrics}/metrics")) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert live in said
        role.send_signal(signal.SIGTERM)
        _, log = role.communicate(timeout=60)
        assert (role.returncode, b"Traceback" in log) == (0, False), log.decode()
    finally:
        role.kill()
        role.communicate()


def test_the_controller_ends_when_its_api_server_was_put_back(clean: ControlPlane, tmp_path: Path) -> None:
    """And with it its sidecars, which would go on with what they saw since the backup."""
    backup = clean.back_up()
    # More than a starting control plane writes, so that the revision is the smaller one for a while.
    leases = KubernetesLeases(clean.kubeconfig, "default")
    for _ in range(2000):
        leases.renew_lease("storage1")
    leases.close()
    health = f"127.0.0.1:{_free_port()}"
    words = (f"--kubeconfig={clean.kubeconfig}", f"--endpoint=unix://{tmp_path}/csi.sock", f"--health={health}")
    controller = subprocess.Popen([sys.executable, "-m", "aoe_csi", "controller", *words], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not _answers(f"http://{health}/healthz") and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        assert controller.poll() is None
        clean.restore(backup)
        _, log = controller.communicate(timeout=60)
        assert (controller.returncode, WENT_BACK.encode() in log) == (0, True), log.decode()
    finally:
        controller.kill()
        controller.communicate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return str(reply.read().decode())


def _answers(url: str) -> bool:
    try:
        _read(url)
    except OSError:
        return False
    return True
