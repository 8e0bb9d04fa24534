"""Invariant 4: only granted volumes are on the wire, each to its one node; nobody edits that over the wire."""

from collections.abc import Callable

from aoe_lab.standalone import THICK, THIN, AccessMode, Standalone, Workload, capability

# Sends one AoE frame as a program would and says how many answered: address, command, arguments in hex.
ASK = """
import socket, struct, sys, time
interface, shelf, slot, command, arguments = sys.argv[1], *map(int, sys.argv[2:5]), bytes.fromhex(sys.argv[5])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88A2))
s.bind((interface, 0x88A2))
s.settimeout(0.2)
mac = s.getsockname()[4]
frame = b"\\xff" * 6 + mac + struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, shelf, slot, command, 0x80000000 | 77) + arguments
answers, until = set(), time.monotonic() + 3
while time.monotonic() < until:
    s.send(frame.ljust(60, b"\\0"))
    try:
        while True:
            got = s.recv(9100)
            if got[14] & 8 and got[20:24] == struct.pack(">I", 0x80000000 | 77):
                answers.add((got[6:12].hex(), got[14] & 4))
    except TimeoutError:
        pass
print(len([a for a in answers if not a[1]]))
"""

IDENTIFY = "0000" + "01ec" + "0000000000000000"  # ATA: flags, feature, count 1, command 0xec, LBA.
READ_CONFIG = "0000" + "0000" + "00" + "10" + "0000"
SET_CONFIG = "0000" + "0000" + "00" + "13" + "0001" + "41"  # ccmd 3: set if empty, one byte "A".


def ask(cluster: Standalone, compute: str, volume: Workload, command: int, arguments: str) -> int:
    """Return how many targets answered a frame sent from a compute machine."""
    machine = cluster.compute[compute].machine
    (context,) = volume.context.values()
    shelf, slot = context["address"][1:].split(".")
    interface = machine.san_interface("main")
    said = machine.run(f"python3 - {interface} {shelf} {slot} {command} {arguments}", stdin=ASK)
    return int(said.stdout)


def test_a_strangers_mac_reads_nothing(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    assert ask(cluster, "compute1", volume, 0, IDENTIFY) == 1
    assert ask(cluster, "compute1", volume, 1, READ_CONFIG) == 1
    assert ask(cluster, "compute2", volume, 0, IDENTIFY) == 0
    assert ask(cluster, "compute2", volume, 1, READ_CONFIG) == 0


def test_control_without_a_mask_a_stranger_is_answered(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    storage = cluster.storage["storage1"].machine
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    shelf, slot = volume.publish("compute1")["address"][1:].split(".")
    storage.run(["systemctl", "stop", f"aoe-csi-export@{shelf}.{slot}"])
    plain = storage.spawn(f"vblade {shelf} {slot} {storage.san_interface('main')} /dev/data/v-{volume.volume_id}")
    assert ask(cluster, "compute2", volume, 0, IDENTIFY) == 1
    plain.stop()


def add_to_mask(mac: str) -> str:
    """Return the arguments of a MAC mask command (AoEr11 section 3.3) that admits one more card."""
    return "00" + "01" + "00" + "01" + "00" + "01" + mac.replace(":", "")


def test_an_admitted_node_cannot_edit_the_mask(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    stranger = cluster.compute["compute2"].machine.san_mac("main")
    assert ask(cluster, "compute1", volume, 2, add_to_mask(stranger)) == 0
    assert ask(cluster, "compute1", volume, 3, "00" + "00") == 0
    assert ask(cluster, "compute1", volume, 1, SET_CONFIG) == 0
    assert ask(cluster, "compute2", volume, 0, IDENTIFY) == 0


def test_control_without_the_rules_the_mask_is_edited(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    server = cluster.storage["storage1"]
    storage = server.machine
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    stranger = cluster.compute["compute2"].machine.san_mac("main")
    storage.run(["systemctl", "stop", server.unit])  # It would put them back.
    storage.run(["nft", "flush", "ruleset"])
    try:
        assert ask(cluster, "compute1", volume, 2, add_to_mask(stranger)) == 1
        assert ask(cluster, "compute2", volume, 0, IDENTIFY) == 1
    finally:
        storage.run(["systemctl", "restart", "aoe-csi-ingress"])
        server.restart()


def test_a_read_only_grant_refuses_writes_at_the_target(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    reader = capability(block=True, mode=AccessMode.MULTI_NODE_READER_ONLY)
    volume = workload(pool=THIN, size_bytes=16 << 20, capability=reader)
    volume.create()
    target = volume.attach("compute1")
    machine = cluster.compute["compute1"].machine
    assert machine.run(f"dd if=/dev/zero of={target} bs=4k count=1 oflag=direct", check=False).code != 0
    storage = cluster.storage["storage1"].machine
    assert (
        " -r "
        in storage.run(
            f"pgrep -ax vblade | grep -- '{volume.context['compute1']['address'][1:].replace('.', ' ')} '"
        ).stdout
    )


def test_control_without_its_flag_a_reader_writes(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    """The protection off: the reader's export served without -r, and the node's own device set to be written to."""
    reader = capability(block=True, mode=AccessMode.MULTI_NODE_READER_ONLY)
    volume = workload(pool=THIN, size_bytes=16 << 20, capability=reader)
    volume.create()
    volume.attach("compute1")
    storage, machine = cluster.storage["storage1"].machine, cluster.compute["compute1"].machine
    context = volume.context["compute1"]
    unit, (shelf, slot) = f"aoe-csi-export@{context['address'][1:]}", context["address"][1:].split(".")
    storage.run(["systemctl", "stop", unit])
    vblade = f"vblade -s -m {machine.san_mac('main')} {shelf} {slot} {storage.san_interface('main')}"
    served = storage.spawn(
        f"unshare --uts sh -c 'hostname {context['serial']}; exec {vblade} /dev/data/v-{volume.volume_id}'"
    )
    device = f"/dev/etherd/{context['address']}"
    machine.run(
        f"blockdev --setrw {device}; echo harm | dd of={device} bs=512 conv=sync,notrunc oflag=direct status=none"
    )
    assert storage.run(f"head -c 4 /dev/data/v-{volume.volume_id}").stdout == "harm"
    served.stop()
    machine.run(["blockdev", "--setro", device])
    storage.run(["systemctl", "start", unit])


def test_revoking_needs_nothing_from_the_node(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.attach("compute1")
    node1, machine = cluster.node_id("compute1"), cluster.compute["compute1"].machine
    machine.pause()
    try:
        volume.unpublish_by_id(node1)
        storage = cluster.storage["storage1"].machine
        address = volume.context["compute1"]["address"][1:]
        assert storage.run(f"systemctl is-active aoe-csi-export@{address}", check=False).stdout.strip() == "inactive"
        assert storage.run(f"flock -n /run/aoe-csi/exports/{address} true", check=False).code == 0
    finally:
        machine.resume()
