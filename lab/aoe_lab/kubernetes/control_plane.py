"""The control plane of a lab: etcd, kube-apiserver, kube-controller-manager and kube-scheduler in its network.

Owns: their certificates, their start, and a port on this host's loopback through which programs outside the lab's
network reach the API server. They end with the network. Refuses: durability; etcd forgets nothing only while it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aoe_lab import process, progress
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.errors import CommandTimedOut, LabError
from aoe_lab.kubernetes.certificates import Authority
from aoe_lab.kubernetes.programs import ensure_programs
from aoe_lab.topology import GATEWAY

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import TracebackType

    from aoe_lab.lab import Lab
    from aoe_lab.process import Child, Finished

PORT = 6443
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
FRONT_PROXY = "front-proxy-client"
"""Who may say in whose name he asks, when the API server passes a request on."""
READY_S, TOLD_S = 120.0, 60.0
DEFINITIONS = CHECKOUT / "charts" / "aoe-csi" / "files" / "crds"


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """A running control plane. `port` is the API server's on this host's loopback."""

    lab: Lab
    directory: Path
    programs: dict[str, Path]
    authority: Authority
    port: int
    children: dict[str, Child]

    @classmethod
    def start(cls, lab: Lab) -> Self:
        """Start it in a lab's network and wait until it answers.

        Raises: LabError with the end of the log of what does not start.
        """
        programs = ensure_programs()
        directory = lab.directory / "control-plane"
        authority = Authority(directory=directory)
        authority.create()
        authority.issue(
            "apiserver", user="apiserver",
            hosts=(f"IP:{GATEWAY}", "IP:127.0.0.1", f"IP:{SERVICE_ADDRESS}", "DNS:kubernetes", "DNS:localhost"),
        )  # fmt: skip
        authority.issue("admin", user="admin", group="system:masters")
        authority.issue("controller-manager", user="system:kube-controller-manager")
        authority.issue("scheduler", user="system:kube-scheduler")
        authority.issue("kubelet-client", user="apiserver-kubelet", group="system:masters")
        authority.issue("front-proxy", user=FRONT_PROXY)
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        plane = cls(lab=lab, directory=directory, programs=programs, authority=authority, port=port, children={})
        with progress.step("starting the control plane"):
            plane._relay(listening)
            plane._start_etcd()
            plane._start_apiserver()
            plane._await("kube-apiserver", "/readyz")
            plane._start_controllers()
        return plane

    @classmethod
    def attach(cls, lab: Lab) -> Self:
        """Return the control plane that another process started in this lab; it goes on after us."""
        directory = lab.directory / "control-plane"
        authority = Authority(directory=directory)
        config = json.loads((directory / "admin.conf").read_text())
        port = int(config["clusters"][0]["cluster"]["server"].rpartition(":")[2])
        return cls(
            lab=lab, directory=directory, programs=ensure_programs(), authority=authority, port=port, children={}
        )

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig, for programs outside the lab's network."""
        return self.directory / "admin.conf"

    def identity(self, name: str, *, user: str, group: str = "") -> Path:
        """Return a kubeconfig for another user, for programs outside the lab's network."""
        self.authority.issue(name, user=user, group=group)
        return self.authority.kubeconfig(name, f"https://127.0.0.1:{self.port}")

    def bearer(self, account: str, *, namespace: str, node: str | None = None, inside: bool = False) -> Path:
        """Return a kubeconfig with a service account's token, bound to a node as the token of a pod there is.

        `inside`: for programs in the lab's network.
        """
        words = ["create", "token", account, f"--namespace={namespace}", "--duration=24h"]
        if node is not None:
            words += ["--bound-object-kind=Node", f"--bound-object-name={node}"]
        token = self.kubectl(*words).stdout.strip()
        name = "-".join(part for part in (account, node, "inside" if inside else None) if part)
        server = f"https://{GATEWAY}:{PORT}" if inside else f"https://127.0.0.1:{self.port}"
        return self.authority.token_kubeconfig(name, server, token)

    def define_resources(self) -> None:
        """Define our custom resources, without the rest of the chart."""
        self.kubectl("apply", "--server-side", "-f", DEFINITIONS)
        self.await_defined("-f", DEFINITIONS)

    def await_defined(self, *which: str | Path) -> None:
        """Wait until custom resources can be made of definitions, picked by words of kubectl's.

        A busy API server tells of a new kind only a while after it has taken it. Raises: LabError.
        """
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *which, timeout_s=90)
        names = {line.rpartition("/")[2] for line in self.kubectl("get", *which, "-oname").stdout.splitlines()}
        until = time.monotonic() + TOLD_S
        while missing := names - set(self.kubectl("api-resources", "--cached=false", "-oname").stdout.splitlines()):
            if time.monotonic() > until:
                raise LabError(f"the API server never tells of {', '.join(sorted(missing))}")
            time.sleep(0.5)

    def start_beside(self, name: str, program: Path, *words: str) -> None:
        """Start a controller that a cluster has besides ours, as an administrator; it ends with the lab."""
        self.authority.issue(name, user=name, group="system:masters")
        kubeconfig = self.authority.kubeconfig(name, f"https://{GATEWAY}:{PORT}")
        self.programs[name] = program
        self._start(name, f"--kubeconfig={kubeconfig}", *words)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of the programs, whoever started it. Raises: LabError when it does not run."""
        found = self._pids(name)
        if not found:
            raise LabError(f"{name} does not run")
        for pid in found:
            os.kill(pid, number)

    def back_up(self) -> Path:
        """Return a copy of what etcd holds; the API server is away meanwhile."""
        copy = self.directory / f"backup-{time.monotonic_ns()}"
        self._without_etcd(lambda: shutil.copytree(self._etcd_data, copy))
        return copy

    def restore(self, backup: Path) -> None:
        """Put etcd back to a backup, as an administrator does after a disaster."""

        def put_back() -> None:
            shutil.rmtree(self._etcd_data)
            shutil.copytree(backup, self._etcd_data)

        self._without_etcd(put_back)

    def _without_etcd(self, act: Callable[[], object]) -> None:
        # The controllers too: some end by themselves when their API server goes, the others would remember a future.
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            process.kill(self._pids(name))
            if (child := self.children.pop(name, None)) is not None:
                child.wait()
        act()
        self._start_etcd()
        self._start_apiserver()
        self._await("kube-apiserver", "/readyz")
        self._start_controllers()

    @property
    def _etcd_data(self) -> Path:
        return self.directory / "etcd"

    def _pids(self, name: str) -> list[int]:
        program = str(self.programs[name])
        return [pid for pid in self.lab.network.processes() if process.is_running(pid, mark=program)]

    def kubectl(
        self,
        *words: str | Path,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = 60,
        as_: str = "admin",
    ) -> Finished:
        """Run kubectl as an administrator, or as another identity. Raises: CommandFailed unless `check` is false."""
        config = f"--kubeconfig={self.directory / f'{as_}.conf'}"
        return process.run([self.programs["kubectl"], config, *words], stdin=stdin, check=check, timeout_s=timeout_s)

    def apply(self, *objects: dict[str, Any], namespace: str | None = None) -> None:
        """Apply objects, as an administrator. `namespace`: that of them all; each may name its own otherwise."""
        content = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        where = [] if namespace is None else [f"--namespace={namespace}"]
        self.kubectl("apply", *where, "-f", "-", stdin=json.dumps(content))

    def stop(self) -> None:
        """End it; what it remembered is gone with the lab's directory."""
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _relay(self, listening: socket.socket) -> None:
        listening.set_inheritable(True)
        relay = Path(__file__).with_name("relay.py")
        self.children["relay"] = process.start(
            [*self.lab.network.enter, sys.executable, relay, str(listening.fileno()), GATEWAY, str(PORT)],
            output=self.directory / "relay.log",
            pass_fds=(listening.fileno(),),
        )
        listening.close()
        self.authority.kubeconfig("admin", f"https://127.0.0.1:{self.port}")

    def _start_etcd(self) -> None:
        self._start(
            "etcd",
            f"--data-dir={self._etcd_data}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # Nothing here outlives the lab, and a fsync costs more than all the rest.
            "--unsafe-no-fsync",
        )

    def _start_apiserver(self) -> None:
        place = self.directory
        self._start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={GATEWAY}",
            f"--advertise-address={GATEWAY}",
            f"--secure-port={PORT}",
            f"--tls-cert-file={place / 'apiserver.crt'}",
            f"--tls-private-key-file={place / 'apiserver.key'}",
            f"--client-ca-file={self.authority.certificate}",
            f"--service-account-key-file={place / 'sa.pub'}",
            f"--service-account-signing-key-file={place / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--kubelet-client-certificate={place / 'kubelet-client.crt'}",
            f"--kubelet-client-key={place / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            # Aggregated APIs and webhooks of what may be installed: by their pods' addresses, since nobody here serves
            # those of services.
            "--enable-aggregator-routing=true",
            f"--requestheader-client-ca-file={self.authority.certificate}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={place / 'front-proxy.crt'}",
            f"--proxy-client-key-file={place / 'front-proxy.key'}",
        )

    def _start_controllers(self) -> None:
        inside = f"https://{GATEWAY}:{PORT}"
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.authority.kubeconfig('controller-manager', inside)}",
            f"--service-account-private-key-file={self.directory / 'sa.key'}",
            f"--root-ca-file={self.authority.certificate}",
            f"--cluster-signing-cert-file={self.authority.certificate}",
            f"--cluster-signing-key-file={self.authority.key}",
            "--use-service-account-credentials",
            "--leader-elect=false",
        )
        self._start(
            "kube-scheduler", f"--kubeconfig={self.authority.kubeconfig('scheduler', inside)}", "--leader-elect=false"
        )

    def _start(self, name: str, *words: str) -> None:
        self.children[name] = process.start(
            [*self.lab.network.enter, self.programs[name], *words], output=self.directory / f"{name}.log"
        )

    def _await(self, name: str, path: str) -> None:
        deadline = time.monotonic() + READY_S
        while (answer := self._asked(path)) is not None:
            ended = [one for one in ("etcd", name) if one in self.children and self.children[one].poll() is not None]
            if ended or time.monotonic() > deadline:
                culprit = ended[0] if ended else name
                log = (self.directory / f"{culprit}.log").read_text(errors="replace")[-2000:]
                raise LabError(f"{culprit} did not start ({answer}); the end of its log:\n{log}")
            time.sleep(0.3)

    def _asked(self, path: str) -> str | None:
        """Return None once the API server answers well, else what is wrong."""
        try:
            finished = self.kubectl("get", f"--raw={path}", timeout_s=10, check=False)
        except CommandTimedOut as error:
            return str(error)
        return None if finished.code == 0 else finished.stderr.strip()
