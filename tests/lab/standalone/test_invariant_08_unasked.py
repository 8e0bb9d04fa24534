"""Invariant 8: nothing unasked is deleted: what nobody knows is reported and left alone."""

import json

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab.standalone import Standalone


def test_orphans_are_reported_and_survive_restart_and_reboot(cluster: Standalone) -> None:
    storage = cluster.storage["storage1"]
    machine = storage.machine
    machine.run(
        "lvcreate -qqy -Wn -Zn -L 8m -n v-left-behind --addtag aoe-csi --addtag aoe-csi.id=left-behind "
        "--addtag aoe-csi.size=8388608 --addtag aoe-csi.durability=sync --addtag aoe-csi.wipe=zero "
        "--addtag aoe-csi.state=new data; lvcreate -qqy -Wn -Zn -L 8m -n somebody-elses data"
    )
    try:
        storage.restart()
        report = json.loads(machine.run(["aoe-csi", "status", "--json"], check=False).stdout)
        assert "v-left-behind" in [row["name"].rpartition("/")[2] for row in report["orphans"]]
        machine.reboot()
        storage.connect()
        names = machine.run("lvs --noheadings -o name data").stdout.split()
        assert {"v-left-behind", "somebody-elses"} <= set(names)
        # Control: it stayed since nobody asked, not since it could not be removed.
        storage.controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id="left-behind"), timeout=60)
        names = machine.run("lvs --noheadings -o name data").stdout.split()
        assert "v-left-behind" not in names
        assert "somebody-elses" in names
    finally:
        machine.run("lvremove -qqy data/v-left-behind data/somebody-elses", check=False)
