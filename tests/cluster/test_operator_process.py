"""The operator's roles, and the controller, as processes of their own, as containers run them."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from aoe_core.resources.kubernetes import KubernetesLeases
from aoe_core.resources.leases import WENT_BACK
from aoe_lab.kubernetes.control_plane import ControlPlane


def test_sigterm_ends_the_cluster_role_in_good_order(clean: ControlPlane) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/healthz"
    where = (f"--kubeconfig={clean.kubeconfig}", "--namespace=default")
    role = subprocess.Popen(
        [sys.executable, "-m", "aoe_operator", "cluster", *where, f"--liveness={url}"],
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not _answers(url) and role.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _answers(url)
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        health = f"127.0.0.1:{free.getsockname()[1]}"
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


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
