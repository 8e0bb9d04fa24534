"""A disk's XML: what is written is read back, and what others wrote is read for what it is."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import CommandFailed
from aoe_core.host.contracts import DomainDisk
from aoe_core.host.disk_xml import parse_disks, render_disk

words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_categories=("C", "Z")), min_size=1)
disks = st.builds(
    DomainDisk,
    target=words,
    bus=st.sampled_from(("virtio", "scsi", "sata")),
    source=words,
    serial=words | st.just(""),
    alias=words | st.just(""),
    read_only=st.booleans(),
    shareable=st.booleans(),
)


@given(st.lists(disks))
def test_what_is_written_is_read_back(wanted: list[DomainDisk]) -> None:
    text = "".join(render_disk(disk) for disk in wanted)
    assert parse_disks(f"<domain><devices>{text}</devices></domain>") == tuple(wanted)


def test_a_disk_of_ours() -> None:
    disk = DomainDisk(
        target="vdb",
        bus="virtio",
        source="/run/aoe-csi/guests/disks/web",
        serial="abcdefghi",
        alias="ua-aoe-abcdefghi",
        read_only=True,
    )
    top = ElementTree.fromstring(render_disk(disk))
    assert top.attrib == {"type": "block", "device": "disk"}
    (driver,) = top.findall("driver")
    assert driver.attrib == {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "io": "native",
        "error_policy": "stop",
        "rerror_policy": "stop",
    }
    assert [child.tag for child in top] == ["driver", "source", "target", "serial", "readonly", "alias"]


def test_writable_and_unshared_unless_asked_for() -> None:
    text = render_disk(DomainDisk(target="vdb", bus="virtio", source="/dev/x"))
    assert "readonly" not in text
    assert "shareable" not in text


def test_other_peoples_disks_are_read_for_what_they_are() -> None:
    text = """
    <domain type='kvm'><name>g</name><devices>
      <disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/><readonly/></disk>
      <disk type='file' device='disk'>
        <source file='/images/top.qcow2'/>
        <backingStore type='block'><source dev='/dev/etherd/e1.2'/><backingStore/></backingStore>
        <mirror type='block'><source dev='/dev/etherd/e1.3'/></mirror>
        <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
      </disk>
      <disk type='network' device='disk'><source protocol='rbd' name='pool/x'/><target dev='vdb' bus='virtio'/></disk>
      <filesystem><source dir='/srv'/><target dir='x'/></filesystem>
    </devices></domain>"""
    assert parse_disks(text) == (
        DomainDisk(target="sda", bus="sata", read_only=True),
        DomainDisk(target="vda", bus="virtio", source="/images/top.qcow2", alias="virtio-disk0"),
        DomainDisk(target="vdb", bus="virtio"),
    )


def test_what_is_no_xml_is_refused() -> None:
    with pytest.raises(CommandFailed, match="no XML"):
        parse_disks("error: failed to get domain")
