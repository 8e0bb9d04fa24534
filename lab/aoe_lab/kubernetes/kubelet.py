"""A machine of the lab as a node: containerd, its network, kubelet.

Owns: what a machine is given to join, as files and units of its own, so that it comes back by itself after a reboot.
"""

from __future__ import annotations

import io
import shlex
import tarfile
import time
from typing import TYPE_CHECKING

from aoe_lab.errors import LabError
from aoe_lab.kubernetes.containers import ARCHIVE, DIRECTORY, KEPT
from aoe_lab.kubernetes.control_plane import PORT, SERVICE_ADDRESS
from aoe_lab.kubernetes.images import SANDBOX
from aoe_lab.tools_disk import MOUNTED_AT
from aoe_lab.topology import GATEWAY

if TYPE_CHECKING:
    from aoe_lab.kubernetes.control_plane import ControlPlane
    from aoe_lab.machine import Machine

READY_S = 180.0
_POD_NETWORK = "10.244"
_CONTAINERD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  # Each time it walks through all that containers have written; nobody here asks how much it is.
  stats_collect_period = 600
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
_CNI = """
{{"cniVersion": "0.4.0", "name": "lab", "plugins": [{{
  "type": "bridge", "bridge": "pods", "isGateway": true, "mtu": 1500,
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{subnet}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"""
# What kube-proxy would do for the one service that there is, and a way back for what pods send.
_RULES = f"""
table ip lab-pods
flush table ip lab-pods
table ip lab-pods {{
  chain forward {{
    type nat hook prerouting priority -100;
    ip daddr {SERVICE_ADDRESS} tcp dport 443 dnat to {GATEWAY}:{PORT}
  }}
  chain out {{
    type nat hook output priority -100;
    ip daddr {SERVICE_ADDRESS} tcp dport 443 dnat to {GATEWAY}:{PORT}
  }}
  chain leave {{
    type nat hook postrouting priority 100;
    oifname "eth0" ip saddr {_POD_NETWORK}.0.0/16 masquerade
  }}
}}
"""
_KUBELET = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/node.crt
tlsPrivateKeyFile: /etc/kubernetes/node.key
cgroupDriver: systemd
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
registerNode: true
# Nobody serves names here; without it each pod would be warned of.
clusterDNS: [192.0.2.1]
evictionHard: {}
# The images were brought by hand; nobody could bring them again.
imageMinimumGCAge: 87600h
syncFrequency: 2m
"""
# Emulated, kubelet took half a processor of each node only by being there, and containerd a seventh: half of that was
# Go's threads looking for work, its garbage collection, and looks at what each container uses.
_FRUGAL = "Environment=GOMAXPROCS=1 GOGC=400"
_UNITS = {
    "lab-pods.service": f"""
[Unit]
Before=kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=modprobe -a overlay br_netfilter
ExecStart=nft -f /etc/kubernetes/pods.nft
ExecStart=sysctl -qw net.ipv4.ip_forward=1
ExecStart=ip route replace default via {GATEWAY}
[Install]
WantedBy=multi-user.target
""",
    "containerd.service.d/lab.conf": f"""
[Service]
{_FRUGAL}
""",
    "kubelet.service": f"""
[Unit]
After=containerd.service lab-pods.service
Wants=containerd.service lab-pods.service
[Service]
{_FRUGAL}
ExecStart={MOUNTED_AT}/bin/kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \\
    --hostname-override=%H --node-ip=@ADDRESS@ --housekeeping-interval=60s
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
""",
}


def pod_subnet(machine: Machine) -> str:
    """Return the addresses of a node's pods."""
    return f"{_POD_NETWORK}.{machine.spec.octet}.0/24"


def join(machine: Machine, plane: ControlPlane) -> None:
    """Make a machine a node and wait until it is Ready. Its tools disk has kubelet and the archive of the images.

    Raises: LabError with kubelet's log.
    """
    name, address = machine.name, machine.spec.address
    plane.authority.issue(
        f"node-{name}", user=f"system:node:{name}", group="system:nodes", hosts=(f"IP:{address}", f"DNS:{name}")
    )
    kubeconfig = plane.authority.kubeconfig(f"node-{name}", f"https://{GATEWAY}:{PORT}")
    files = {
        "/etc/kubernetes/ca.crt": plane.authority.certificate.read_text(),
        "/etc/kubernetes/node.crt": (plane.directory / f"node-{name}.crt").read_text(),
        "/etc/kubernetes/node.key": (plane.directory / f"node-{name}.key").read_text(),
        "/etc/kubernetes/kubelet.conf": kubeconfig.read_text(),
        "/etc/kubernetes/kubelet.yaml": _KUBELET,
        "/etc/kubernetes/pods.nft": _RULES,
        "/etc/containerd/config.toml": _CONTAINERD.format(sandbox=SANDBOX),
        "/etc/cni/net.d/10-lab.conflist": _CNI.format(subnet=pod_subnet(machine)),
        **{f"/etc/systemd/system/{unit}": text.replace("@ADDRESS@", address) for unit, text in _UNITS.items()},
    }
    # As one, since each command to an emulated machine takes it a second.
    machine.run("mkdir -p /opt/cni /var/lib/kubelet && tar -x -C /", stdin=_packed(files))
    unpack = shlex.join(["tar", "--extract", *KEPT, f"--file={MOUNTED_AT}/bin/{ARCHIVE}", f"--directory={DIRECTORY}"])
    machine.run(f"mkdir -p {DIRECTORY} && {unpack}", timeout_s=900)
    machine.run("systemctl daemon-reload; systemctl enable -q --now containerd lab-pods kubelet", timeout_s=300)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if "True" in plane.kubectl(
            "get", "node", name, "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}", check=False
        ).stdout:  # fmt: skip
            return
        time.sleep(0.5)
    log = machine.run("journalctl --no-pager -o cat -n 60 -u kubelet -u containerd", check=False).stdout
    raise LabError(f"node {name} is not Ready after {READY_S:g} s; the end of its log:\n{log}")


def _packed(files: dict[str, str]) -> bytes:
    """Return files that root alone may read as an archive; directories on the way to them are for everybody."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            content = text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
