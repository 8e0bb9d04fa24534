"""A claim as a disk of a running libvirt guest, shown: `python -m aoe_lab.kubernetes.demo_guest`.

helm install with guests, a claim that nobody uses yet, an AoEGuestDisk; the guest writes while the storage machine
loses power and comes back, sees its disk grow, and gives it back. Every claim the story makes is checked, and one that
does not hold ends it with exit code 1.
"""

from __future__ import annotations

import sys
import time

from aoe_lab.errors import LabError
from aoe_lab.guest import Guest
from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.kubernetes.helm import NAMESPACE
from aoe_lab.story import Story, StoryError

CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  storageClassName: thick
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources: {requests: {storage: 64Mi}}
"""
GUEST_DISK = """
apiVersion: aoe-csi.dev/v1alpha1
kind: AoEGuestDisk
metadata: {name: data}
spec:
  claim: data
  libvirt: {host: HOST, domain: g1}
"""
SALT = "demo"
GROWN_BYTES = 96 << 20


def main() -> int:
    """Tell the story on machines of its own; they are gone afterwards, however it ends."""
    story = Story()
    try:
        with story.step("Boot a storage machine and a hypervisor, join both to a control plane"):
            cluster = Cluster.start(storage=1, compute=0, hypervisors=1, name="demo-guest")
        with cluster:
            _tell(story, cluster)
    except KeyboardInterrupt:
        print("\ninterrupted; the machines are gone", file=sys.stderr)
        return 130
    except (StoryError, LabError) as error:
        print(f"\nThe story breaks off here: {error}", file=sys.stderr)
        return 1
    story.sum_up()
    return 0


def _tell(story: Story, cluster: Cluster) -> None:
    kubectl = cluster.plane.kubectl
    (storage,), (host,) = cluster.storage_machines, cluster.hypervisors
    with story.step("helm install aoe-csi charts/aoe-csi --set guests.enabled=true"):
        cluster.install()
        cluster.await_ready()
        story.tell(kubectl("get", "pods", f"-n{NAMESPACE}", "-owide", "--no-headers").stdout)
    with story.step(f"virsh start g1 on {host.name}: an emulated guest in an emulated machine takes a minute or two"):
        guest = Guest.define(host, "g1")
        guest.start()
        story.require(guest.disks() == (), "the guest runs, and has no disk")
    with story.step("kubectl apply: a claim of 64 MiB, and an AoEGuestDisk that names it and the guest"):
        kubectl("apply", "-f-", stdin=CLAIM)
        kubectl("apply", "-f-", stdin=GUEST_DISK.replace("HOST", host.name))
        cluster.await_(lambda: None if guest.disks() else "no disk yet", "the guest to have its disk")
        (disk,) = guest.disks()
        story.tell(kubectl("get", "pvc,aoeguestdisks,aoevolumes").stdout)
        story.tell(host.run("virsh domblklist --details g1").stdout)
        story.require(disk.size_bytes == 64 << 20, f"the guest's kernel has {disk.name}, 64 MiB, serial {disk.serial}")
    with story.step(f"Pull the power of {storage.name} under the guest's writes"):
        guest.start_writer(disk.name, SALT)
        cluster.await_(lambda: None if guest.acknowledged() > 3 else "nothing is written yet", "the guest to write")
        storage.power_cut()
        time.sleep(3)
        stalled = guest.acknowledged()
        time.sleep(3)
        story.require(guest.acknowledged() <= stalled + 1, f"the guest waits at block {stalled}, it gets no error")
    with story.step(f"Power {storage.name} on again"):
        storage.boot()
        storage.wait_ready()
        cluster.await_(
            lambda: None if guest.acknowledged() > stalled + 3 else "it still waits", "the guest to write on"
        )
        last = guest.stop_writer()
        story.require(guest.wrong(disk.name, SALT, last) == 0, f"all {last + 1} acknowledged blocks are there")
        story.require(guest.state() == "running", "the guest never stopped")
    # The controller was on that machine, too.
    cluster.await_ready()
    with story.step("Grow the claim to 96 MiB"):
        kubectl("patch", "pvc", "data", '-p={"spec":{"resources":{"requests":{"storage":"96Mi"}}}}')
        cluster.await_(
            lambda: None if guest.disks()[0].size_bytes == GROWN_BYTES else "it has its old size", "the disk to grow"
        )
        story.require(guest.write(disk.name, SALT, GROWN_BYTES // 4096 - 1), "the guest sees it and writes the new end")
    with story.step("Delete the AoEGuestDisk and the claim: nothing is left"):
        kubectl("delete", "aoeguestdisk/data", "--timeout=300s", timeout_s=330)
        story.require(guest.disks() == (), "the guest runs on without the disk")
        story.require(disk.serial not in guest.xml(inactive=True), "its XML has nothing of it")
        kubectl("delete", "pvc/data", "--timeout=120s", timeout_s=150)
        cluster.await_(lambda: kubectl("get", "aoevolumes", "-oname").stdout or None, "the volume to be gone")

        def left() -> str:
            return storage.run("lvs --noheadings -o lv_name data").stdout.strip()

        # A thick one is wiped first.
        cluster.await_(lambda: None if left() == "thinpool" else left(), "its space to be wiped")
        story.require(left() == "thinpool", "the volume group has its thin pool, and nothing else")


if __name__ == "__main__":
    sys.exit(main())
