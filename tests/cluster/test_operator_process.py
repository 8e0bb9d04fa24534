"""The operator's roles as processes of their own, as a container runs them."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

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


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
