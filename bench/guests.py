"""`make bench-guests`: how soon a running libvirt guest has a volume, against a script of the same host commands.

Measured to the moment at which the guest's own kernel has the disk, which is the greater part of it where the guest is
emulated twice. Exit 1 when the bar is missed.
"""

import argparse
import sys
import time

from aoe_core import model
from aoe_core.model import VolumeId
from aoe_lab import Lab, LabError, Machine, Topology
from aoe_lab.guest import Guest
from aoe_lab.standalone import SOCKET, THICK, VOLUME_GROUP, Standalone, Tuning, Workload, capability
from bench import hand
from bench.control_plane import HAND_ADDRESS, STORAGE, by_hand, resting
from bench.report import Ratio, Report

HYPERVISOR = "hypervisor1"
CONTROLLER = "/run/storage1.sock"
HAND_SERIAL = "bench001"
GONE_S = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.guests", description="Measure attaching to guests in the lab.")
    parser.add_argument("--rounds", type=int, default=5, help="of each (%(default)s)")
    options = parser.parse_args()
    report = Report("bench-guests", "make bench-guests")
    with Lab.start(Topology(storage=1, compute=0, hypervisors=1), name="bench-guests") as lab:
        cluster = Standalone(lab, Tuning())
        cluster.install()
        try:
            host = lab.machine(HYPERVISOR)
            host.forward_to(lab.machine(STORAGE).forward_from(SOCKET), CONTROLLER)
            guest = Guest.define(host, "g1")
            guest.start()
            measure(cluster, guest, report, options.rounds)
        finally:
            cluster.close()
    report.write()
    return 1 if report.missed else 0


def measure(cluster: Standalone, guest: Guest, report: Report, rounds: int) -> None:
    """Attach a volume again and again, by our command and by hand in turns: what the host does meanwhile hits both."""
    host, storage = guest.machine, cluster.storage[STORAGE].machine
    work = Workload(
        cluster=cluster, name="bench-guest", pool=THICK, size_bytes=64 << 20, capability=capability(block=True)
    )
    work.create()
    serial, controller = model.serial_of(VolumeId(work.volume_id)), f"unix://{CONTROLLER}"
    device = storage.run(f"readlink -f /dev/{VOLUME_GROUP}/v-{work.volume_id}").stdout.strip()
    shelf, slot = HAND_ADDRESS
    by_script = (guest.name, HAND_SERIAL, shelf, slot, host.san_interface("main"), storage.san_mac("main"))
    ours: list[float] = []
    script: list[float] = []
    for number in range(rounds + 1):
        our_ms = hand.run(host, "guest-attach-ours.sh", guest.name, serial, work.volume_id, controller)
        host.run(["aoe-csi", "guest", "detach", guest.name, work.volume_id, "--controller", controller], timeout_s=400)
        with resting(cluster, HYPERVISOR), by_hand(cluster, device, HYPERVISOR) as export_ms:
            script_ms = export_ms + hand.run(host, "guest-attach.sh", *by_script)
            detach(host, guest)
        if number > 0:  # The first of each warms up what every later one finds warm.
            ours.append(our_ms)
            script.append(script_ms)
    report.add(Ratio(what="a volume for a running guest to a script of the host commands", ours=ours, theirs=script,
                     unit="ms", bar=1.5))  # fmt: skip
    work.delete()


def detach(host: Machine, guest: Guest) -> None:
    """Take back what the script attached, and wait for the guest to let go."""
    for where in ("--config", "--live"):
        host.run(["virsh", "-q", "detach-device-alias", guest.name, where, f"ua-bench-{HAND_SERIAL}"])
    until = time.monotonic() + GONE_S
    # QEMU closes the device some time after libvirt has been told by the guest that it has let go.
    device = f"/dev/etherd/e{HAND_ADDRESS[0]}.{HAND_ADDRESS[1]}"
    opened = f"ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q '{device}$'"
    while HAND_SERIAL in guest.xml() or host.run(opened, check=False).code == 0:
        if time.monotonic() > until:
            raise LabError(f"guest {guest.name} does not let go within {GONE_S:g} s")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
