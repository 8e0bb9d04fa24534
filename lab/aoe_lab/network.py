"""A lab's network: a namespace with a bridge for management and one per SAN segment, and a tap for every card.

Owns: the namespace, and with it every process of the lab: whatever runs inside ends with it. Refuses: any way out;
nothing in the lab reaches the host's own interfaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.topology import GATEWAY

if TYPE_CHECKING:
    from aoe_lab.topology import Topology

SAN_MTU = 9000


@dataclass(frozen=True, slots=True)
class Network:
    """The network of the lab of this name."""

    lab: str

    @property
    def netns(self) -> str:
        return f"aoe-{self.lab}"

    @property
    def enter(self) -> tuple[str, ...]:
        """What to put before an argv to run it in the lab's network."""
        return ("ip", "netns", "exec", self.netns)

    def exists(self) -> bool:
        listed = process.run(["ip", "netns", "list"], timeout_s=10).stdout
        return self.netns in {line.split()[0] for line in listed.splitlines() if line}

    def create(self, topology: Topology) -> None:
        process.run(["ip", "netns", "add", self.netns], timeout_s=10)
        # Bridges and taps have no business with IPv6; its announcements would only wake machines.
        process.run([*self.enter, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"], timeout_s=10, check=False)
        lines = [
            "link set lo up",
            "link add mgmt type bridge",
            f"address add {GATEWAY}/24 dev mgmt",
            "link set mgmt up",
        ]
        for san in topology.sans:
            lines += [f"link add san-{san} mtu {SAN_MTU} type bridge", f"link set san-{san} up"]
        for spec in topology.machines():
            lines += [f"tuntap add {spec.mgmt_tap} mode tap", f"link set {spec.mgmt_tap} master mgmt up"]
            for san in spec.sans:
                tap = spec.san_tap(san)
                lines += [f"tuntap add {tap} mode tap", f"link set {tap} mtu {SAN_MTU} master san-{san} up"]
        process.run(["ip", "-n", self.netns, "-batch", "-"], stdin="\n".join(lines) + "\n", timeout_s=30)

    def processes(self) -> tuple[int, ...]:
        if not self.exists():
            return ()
        listed = process.run(["ip", "netns", "pids", self.netns], timeout_s=10, check=False)
        return tuple(int(pid) for pid in listed.stdout.split())

    def destroy(self) -> None:
        """End every process inside, then the namespace; it is not an error when there is none."""
        while pids := self.processes():
            process.kill(pids)
        if self.exists():
            process.run(["ip", "netns", "delete", self.netns], timeout_s=10)
