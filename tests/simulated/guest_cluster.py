"""A cluster in memory whose compute machines are hypervisors: a guest each, and a process that attaches its disks.

The process is a command that runs beside the node server. A machine that comes up does what its units say: devices are
made ready, and then libvirt starts the guests that are to start with it.
"""

from functools import partial
from typing import TYPE_CHECKING

from tests.simulated.cluster import Cluster

from aoe_core.fakes.world import Process
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.guests.host import GuestHost
from aoe_core.guests.records import GuestRecords
from aoe_core.model import AccessMode, NodeName, VolumeId
from aoe_core.settings import San, Settings

if TYPE_CHECKING:
    from aoe_core.fakes.hypervisor import Guest

COMMAND = "guest command"


class GuestCluster(Cluster):
    """A cluster with a guest `g1` on each compute machine, running, that starts with its machine."""

    def __init__(self, *, same_host: bool = False, free_addresses: int = 0) -> None:
        super().__init__(same_host=same_host, free_addresses=free_addresses)
        self.guest: dict[NodeName, Guest] = {}
        self.disks: dict[NodeName, GuestDisks] = {}
        self._readied: dict[NodeName, str] = {}
        """Node → the boot in which its devices were made ready."""
        for node, machine in self.compute.items():
            guest = self.guest[node] = machine.hypervisor.define("g1", autostart=True)
            machine.hypervisor.start(guest)
            self.disks[node] = self.new_command(node)
            self._readied[node] = machine.boot_id

    def new_command(self, node: NodeName) -> GuestDisks:
        """Return what a fresh command on a node works with; a former one is dead."""
        process = self._start(self.compute[node], COMMAND)
        return self.disks_of(node, process)

    def disks_of(self, node: NodeName, process: Process) -> GuestDisks:
        """Return the guests' disks as a process of a node has them."""
        host = GuestHost(
            hypervisor=process.hypervisor,
            links=process.links,
            record_files=process.records("guests"),
            locks=process.locks,
            now_s=self.world.clock.now,
            sleep=self.world.clock.sleep,
        )
        settings = Settings(node=node, san=(San(name=next(iter(self.settings.san)).name, interface="san0"),))
        return GuestDisks(settings, self.attacher_of(node, process), host)

    def restart(self) -> None:
        """As any cluster; and a machine that comes up readies its devices and starts its guests."""
        super().restart()
        for node in self.compute:
            if not self._processes[self.compute[node].name, COMMAND].alive:
                self.disks[node] = self.new_command(node)
        for node, machine in self.compute.items():
            if self._readied[node] == machine.boot_id:
                continue
            for volume_id in self.disks[node].to_ready():
                self.persist("readying", partial(self.disks[node].ready, volume_id))
            self._readied[node] = machine.boot_id
            assert machine.hypervisor.autostart() == (), f"{node}: a guest found no device"

    # --- what is there ---

    def target(self, node: NodeName) -> str:
        """Return the target of the one volume that a node's guest has while it runs."""
        (target,) = self.guest[node].live
        return target

    def check_always(self) -> None:
        """Prove what must hold at every moment: besides, that nobody lets go of what a guest has."""
        super().check_always()
        for node, guest in self.guest.items():
            machine = self.compute[node]
            for target, device in guest.open.items():
                assert guest.opener(target) in device.openers
                path = guest.live[target].source if target in guest.live else guest.closing[target][1]
                source = machine.find_device(path)
                assert source is device, f"{node}: the link of {target} leads away from the guest's device"

    def check_nothing_left(self) -> None:
        """Prove that everything is gone: also out of every domain, on every machine."""
        super().check_nothing_left()
        self.check_no_guest_disk_left()

    def check_no_guest_disk_left(self) -> None:
        """Prove that no machine knows of any guest's disk."""
        for node, machine in self.compute.items():
            guest = self.guest[node]
            assert (guest.live, guest.config) == ({}, {}), f"{node}: the guest has disks left"
            assert guest.plugged == set(), f"{node}: slots are not free again"
            for kind, left in (("records", machine.record_directory("guests").seen), ("links", machine.links)):
                assert not left, f"{node} has {kind} left: {sorted(left)}"

    def attach(self, volume_id: VolumeId, node: NodeName, *, mode: AccessMode = AccessMode.SINGLE_NODE_WRITER) -> None:
        """Do what `aoe-csi guest attach` does: publish, then attach."""
        self.attachments[volume_id, node] = self.engine.publish(
            volume_id, self.identity(node), mode, read_only=not mode.writes, block=True
        )
        self.disks[node].attach("g1", self.attachments[volume_id, node], mode=mode)

    def detach(self, volume_id: VolumeId, node: NodeName) -> None:
        """Do what `aoe-csi guest detach` does: detach, and unpublish before it is forgotten."""
        self.disks[node].detach("g1", volume_id, give_back=lambda: self.engine.unpublish(volume_id, node))

    def records(self, node: NodeName) -> GuestRecords:
        """Return the guest records of a node, as a process that reads them sees them."""
        return GuestRecords(self.compute[node].start_process("reader").records("guests"))
