"""aoe-csi without Kubernetes on a lab: configuration, preparation, services, and CSI clients for both ends.

Owns: what a person would do by hand on each machine after `docs/standalone.md`. Used by the tests, the demonstration
and the benchmarks alike, so that all three drive the same thing through the same calls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from aoe_csi.proto import csi_pb2 as pb
from aoe_csi.proto import csi_pb2_grpc as rpc
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.errors import LabError
from aoe_lab.lab import at_once
from aoe_lab.patience import OUTLASTING_DEADSECS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab import Lab, Machine

SOCKET = "/run/aoe-csi/csi.sock"
VOLUME_GROUP = "data"
THICK, THIN = "thick", "thin"
THIN_STORAGE = "storage1"
"""The one with a thin pool, which only exports; the others are thick, offer no snapshots, and attach too."""
THIN_POOL_BYTES = 3 << 30
CALL_S = 300.0
AccessMode = pb.VolumeCapability.AccessMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Settings a test may want otherwise; the defaults are short, so that tests need not wait."""

    deadsecs: int = 30
    rest_s: int = 31
    shelves_per_node: int = 2
    exporter: str = "/usr/sbin/vblade"
    extra_storage: str = ""
    extra_compute: str = ""


OUTLASTING = Tuning(deadsecs=OUTLASTING_DEADSECS, rest_s=OUTLASTING_DEADSECS + 60)
"""For machines that are booted under their users."""


@dataclass(slots=True)
class Endpoint:
    """One machine's CSI server, reached through a forwarded unix socket."""

    machine: Machine
    unit: str
    _channel: grpc.Channel | None = field(default=None, repr=False)

    def connect(self, timeout_s: float = 120.0) -> None:
        """Wait until the server answers Probe. Raises: LabError with the unit's log when it does not."""
        self.close()
        deadline = time.monotonic() + timeout_s
        while True:
            if self.machine.run(["test", "-S", SOCKET], check=False).code == 0:
                self._channel = grpc.insecure_channel(
                    f"unix:{self.machine.forward_from(SOCKET)}", options=[("grpc.enable_retries", 0)]
                )
                try:
                    rpc.IdentityStub(self._channel).Probe(pb.ProbeRequest(), timeout=10)
                except grpc.RpcError:
                    self.close()
                else:
                    return
            if time.monotonic() > deadline:
                raise LabError(f"{self.machine.name}: {self.unit} does not answer:\n{self.log()}")
            time.sleep(0.5)

    def boot(self, timeout_s: float = 120.0) -> None:
        """Switch its machine on, and wait until the server answers. Raises: LabError."""
        self.machine.boot()
        self.machine.wait_ready()
        self.connect(timeout_s)

    def close(self) -> None:
        """Drop the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def log(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        return self.machine.run(
            ["journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", self.unit], check=False
        ).stdout

    def restart(self) -> None:
        """Restart the service and connect again."""
        self.machine.run(["systemctl", "restart", self.unit])
        self.connect()

    def kill(self) -> None:
        """SIGKILL the server; systemd starts it again."""
        self.machine.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", self.unit])

    @property
    def channel(self) -> grpc.Channel:
        """The open connection."""
        if self._channel is None:
            self.connect()
        assert self._channel is not None
        return self._channel

    @property
    def controller(self) -> rpc.ControllerStub:
        """CSI Controller."""
        return rpc.ControllerStub(self.channel)

    @property
    def node(self) -> rpc.NodeStub:
        """CSI Node."""
        return rpc.NodeStub(self.channel)

    @property
    def identity(self) -> rpc.IdentityStub:
        """CSI Identity."""
        return rpc.IdentityStub(self.channel)


class Standalone:
    """Every storage machine of a lab serving its pools, every compute machine its node server."""

    def __init__(self, lab: Lab, tuning: Tuning | None = None) -> None:
        self.lab = lab
        self.tuning = tuning or Tuning()
        self.storage = {
            machine.name: Endpoint(machine, "aoe-csi-standalone") for machine in lab.machines if _is_storage(machine)
        }
        self.compute = {
            machine.name: Endpoint(machine, "aoe-csi-node") for machine in lab.machines if not _is_storage(machine)
        }

    def configuration(self, name: str) -> str:
        """Return one machine's /etc/aoe-csi/config.toml."""
        machine = self.lab.machine(name)
        storage = _is_storage(machine)
        tuning = self.tuning
        first = 10 + 100 * (sorted(self.storage).index(name) if storage else 0)
        lines = [f'node = "{name}"']
        if storage:
            lines += ["max_volume_bytes = 1099511627776"]
        lines += ["compute = false"] if name == THIN_STORAGE else []
        lines += ["", "[initiator]", f"deadsecs = {tuning.deadsecs}", "stage_s = 20.0"]
        lines += ["", "[exports]", f"rest_s = {tuning.rest_s}", f'exporter = "{tuning.exporter}"']
        for index, san in enumerate(self.lab.topology.sans):
            lines += ["", "[[san]]", f'name = "{san}"', f'interface = "{machine.san_interface(san)}"']
            if storage:
                shelf = first + 10 * index
                lines += [f"shelves = [[{shelf}, {shelf + tuning.shelves_per_node - 1}]]"]
        if storage:
            thin = [f'name = "{THIN}"\nthin_pool = "thinpool"'] if name == THIN_STORAGE else []
            for pool in (f'name = "{THICK}"', *thin):
                lines += ["", "[[pool]]", *pool.split("\n"), f'volume_group = "{VOLUME_GROUP}"']
            for node in sorted(self.compute):
                lines += ["", "[[known_node]]", f'name = "{node}"']
        return "\n".join(lines) + "\n" + (tuning.extra_storage if storage else tuning.extra_compute)

    def install(self) -> None:
        """Configure, prepare and start every machine."""
        servers = {endpoint.machine.name: endpoint for endpoint in self.endpoints()}

        def install(machine: Machine) -> None:
            self.install_on(servers[machine.name])
            servers[machine.name].connect()

        at_once(install, [endpoint.machine for endpoint in servers.values()])

    def install_on(self, endpoint: Endpoint) -> None:
        """Do on one machine what an administrator would do."""
        machine = endpoint.machine
        machine.run(["mkdir", "-p", "/etc/aoe-csi", "/etc/lvm"])
        machine.run("cat > /etc/aoe-csi/config.toml", stdin=self.configuration(machine.name))
        unit = (CHECKOUT / "deploy" / "systemd" / f"{endpoint.unit}.service").read_text()
        machine.run(f"cat > /etc/systemd/system/{endpoint.unit}.service", stdin=unit)
        if _is_storage(machine):
            disk = "/dev/disk/by-id/virtio-data0"
            machine.run(f"vgs {VOLUME_GROUP} >/dev/null 2>&1 || vgcreate -qq {VOLUME_GROUP} {disk}")
        if machine.name == THIN_STORAGE:
            thin_pool = f"lvcreate -qq -y --type thin-pool -L {THIN_POOL_BYTES}b -n thinpool {VOLUME_GROUP}"
            machine.run(f"lvs {VOLUME_GROUP}/thinpool >/dev/null 2>&1 || {thin_pool}")
        # What is ours is as good as on disk; what an administrator writes is not, and a power cut may follow at once.
        machine.run(f"sync /etc/aoe-csi/config.toml /etc/systemd/system/{endpoint.unit}.service")
        machine.run(["aoe-csi", "prepare-host"], timeout_s=180)
        machine.run("systemctl daemon-reload")
        machine.run(f"systemctl enable -q {endpoint.unit} && sync /etc/systemd/system/multi-user.target.wants")
        machine.run(f"systemctl restart {endpoint.unit}")

    def endpoints(self) -> Iterator[Endpoint]:
        """Return every server, storage first."""
        yield from self.storage.values()
        yield from self.compute.values()

    def node_id(self, compute: str) -> str:
        """Return a compute machine's CSI node_id."""
        return self.compute[compute].node.NodeGetInfo(pb.NodeGetInfoRequest(), timeout=CALL_S).node_id

    def close(self) -> None:
        """Drop every connection."""
        for endpoint in self.endpoints():
            endpoint.close()


def capability(
    *, block: bool = False, filesystem: str = "ext4", mode: int = AccessMode.SINGLE_NODE_WRITER
) -> pb.VolumeCapability:
    """Return a volume capability."""
    made = pb.VolumeCapability(access_mode=AccessMode(mode=mode))  # type: ignore[arg-type]
    if block:
        made.block.SetInParent()
    else:
        made.mount.fs_type = filesystem
    return made


@dataclass(slots=True, kw_only=True)
class Workload:
    """One volume's way through CSI, from a storage machine to a compute machine and back.

    Each method is one call, made as a container orchestrator makes it; paths follow kubelet's layout.
    """

    cluster: Standalone
    name: str
    storage: str = "storage1"
    pool: str = THIN
    capability: pb.VolumeCapability = field(default_factory=capability)
    size_bytes: int = 256 << 20
    volume_id: str = ""
    context: dict[str, dict[str, str]] = field(default_factory=dict)
    """Compute machine → publish_context."""

    @property
    def staging_path(self) -> str:
        """Where the volume is staged on every machine."""
        return f"/var/lib/kubelet/plugins/kubernetes.io/csi/aoe-csi.dev/{self.name}/globalmount"

    @property
    def target_path(self) -> str:
        """Where it is published."""
        kind = "volumeDevices/" if self.capability.HasField("block") else ""
        return f"/var/lib/kubelet/pods/{self.name}/{kind}volume"

    @property
    def controller(self) -> rpc.ControllerStub:
        """The controller of the volume's storage machine."""
        return self.cluster.storage[self.storage].controller

    def create(self, **more: object) -> pb.Volume:
        """CreateVolume."""
        request = pb.CreateVolumeRequest(
            name=self.name,
            capacity_range=pb.CapacityRange(required_bytes=self.size_bytes),
            volume_capabilities=[self.capability],
            parameters={"pool": self.pool},
            **more,  # type: ignore[arg-type]
        )
        volume = self.controller.CreateVolume(request, timeout=CALL_S).volume
        self.volume_id = volume.volume_id
        return volume

    def publish(self, compute: str, *, readonly: bool = False) -> dict[str, str]:
        """ControllerPublishVolume."""
        return self.publish_by_id(self.cluster.node_id(compute), readonly=readonly)

    def publish_by_id(self, node_id: str, *, readonly: bool = False) -> dict[str, str]:
        """ControllerPublishVolume to a node that may not answer."""
        compute = node_id.partition("|")[0]
        reply = self.controller.ControllerPublishVolume(
            pb.ControllerPublishVolumeRequest(
                volume_id=self.volume_id,
                node_id=node_id,
                volume_capability=self.capability,
                readonly=readonly,
            ),
            timeout=CALL_S,
        )
        self.context[compute] = dict(reply.publish_context)
        return self.context[compute]

    def stage(self, compute: str) -> None:
        """NodeStageVolume; like kubelet, makes the staging directory first."""
        endpoint = self.cluster.compute[compute]
        endpoint.machine.run(["mkdir", "-p", self.staging_path])
        endpoint.node.NodeStageVolume(
            pb.NodeStageVolumeRequest(
                volume_id=self.volume_id,
                publish_context=self.context[compute],
                staging_target_path=self.staging_path,
                volume_capability=self.capability,
            ),
            timeout=CALL_S,
        )

    def node_publish(self, compute: str, *, target_path: str = "", readonly: bool = False) -> str:
        """NodePublishVolume; like kubelet, makes the target's parent first. Returns the target path."""
        endpoint = self.cluster.compute[compute]
        target = target_path or self.target_path
        endpoint.machine.run(["mkdir", "-p", target.rsplit("/", 1)[0]])
        endpoint.node.NodePublishVolume(
            pb.NodePublishVolumeRequest(
                volume_id=self.volume_id,
                publish_context=self.context[compute],
                staging_target_path=self.staging_path,
                target_path=target,
                volume_capability=self.capability,
                readonly=readonly,
            ),
            timeout=CALL_S,
        )
        return target

    def attach(self, compute: str) -> str:
        """Publish, stage and node-publish; return the target path."""
        self.publish(compute)
        self.stage(compute)
        return self.node_publish(compute)

    def node_unpublish(self, compute: str, *, target_path: str = "") -> None:
        """NodeUnpublishVolume."""
        self.cluster.compute[compute].node.NodeUnpublishVolume(
            pb.NodeUnpublishVolumeRequest(volume_id=self.volume_id, target_path=target_path or self.target_path),
            timeout=CALL_S,
        )

    def unstage(self, compute: str) -> None:
        """NodeUnstageVolume."""
        self.cluster.compute[compute].node.NodeUnstageVolume(
            pb.NodeUnstageVolumeRequest(volume_id=self.volume_id, staging_target_path=self.staging_path), timeout=CALL_S
        )

    def unpublish(self, compute: str) -> None:
        """ControllerUnpublishVolume."""
        self.unpublish_by_id(self.cluster.node_id(compute))

    def unpublish_by_id(self, node_id: str) -> None:
        """ControllerUnpublishVolume of a node that may not answer."""
        self.controller.ControllerUnpublishVolume(
            pb.ControllerUnpublishVolumeRequest(volume_id=self.volume_id, node_id=node_id), timeout=CALL_S
        )

    def detach(self, compute: str) -> None:
        """Undo `attach`."""
        self.node_unpublish(compute)
        self.unstage(compute)
        self.unpublish(compute)

    def expand(self, size_bytes: int) -> int:
        """ControllerExpandVolume; return the new size."""
        reply = self.controller.ControllerExpandVolume(
            pb.ControllerExpandVolumeRequest(
                volume_id=self.volume_id,
                capacity_range=pb.CapacityRange(required_bytes=size_bytes),
                volume_capability=self.capability,
            ),
            timeout=CALL_S,
        )
        return reply.capacity_bytes

    def node_expand(self, compute: str, size_bytes: int) -> int:
        """NodeExpandVolume."""
        reply = self.cluster.compute[compute].node.NodeExpandVolume(
            pb.NodeExpandVolumeRequest(
                volume_id=self.volume_id,
                volume_path=self.target_path,
                staging_target_path=self.staging_path,
                capacity_range=pb.CapacityRange(required_bytes=size_bytes),
                volume_capability=self.capability,
            ),
            timeout=CALL_S,
        )
        return reply.capacity_bytes

    def snapshot(self, name: str) -> str:
        """CreateSnapshot; return its id."""
        reply = self.controller.CreateSnapshot(
            pb.CreateSnapshotRequest(source_volume_id=self.volume_id, name=name), timeout=CALL_S
        )
        return reply.snapshot.snapshot_id

    def delete(self) -> None:
        """DeleteVolume."""
        self.controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id=self.volume_id), timeout=CALL_S)


def from_snapshot(snapshot_id: str) -> pb.VolumeContentSource:
    """Return a snapshot as CreateVolume's content source."""
    return pb.VolumeContentSource(snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> pb.VolumeContentSource:
    """Return a volume as CreateVolume's content source."""
    return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=volume_id))


def _is_storage(machine: Machine) -> bool:
    return machine.name.startswith("storage")
