"""Disks as libvirt's XML writes them. Pure.

Only block devices of ours are written; what is read may be anybody's disk of any kind. A guest's disk of ours:
- cache none and native I/O: what the guest was told is on stable storage is on the storage machine's. Nothing of it is
  in this host's memory.
- An I/O error stops the guest instead of reaching its file system: after a long outage it goes on where it was.
- No discard: AoE cannot carry it.
Source: libvirt.org/formatdomain.html, "Hard drives, floppy disks, CDROMs".
"""

from xml.etree import ElementTree

from aoe_core.errors import CommandFailed
from aoe_core.host.contracts import DomainDisk


def render_disk(disk: DomainDisk) -> str:
    """Return the `<disk>` element of a block device."""
    top = ElementTree.Element("disk", type="block", device="disk")
    driver = {"name": "qemu", "type": "raw", "cache": "none", "io": "native"}
    ElementTree.SubElement(top, "driver", {**driver, "error_policy": "stop", "rerror_policy": "stop"})
    ElementTree.SubElement(top, "source", dev=disk.source)
    ElementTree.SubElement(top, "target", dev=disk.target, bus=disk.bus)
    if disk.serial:
        ElementTree.SubElement(top, "serial").text = disk.serial
    if disk.read_only:
        ElementTree.SubElement(top, "readonly")
    if disk.shareable:
        ElementTree.SubElement(top, "shareable")
    if disk.alias:
        ElementTree.SubElement(top, "alias", name=disk.alias)
    return ElementTree.tostring(top, encoding="unicode")


def parse_disks(domain_xml: str) -> tuple[DomainDisk, ...]:
    """Return every disk of a `<domain>`, CD-ROMs and all. Raises: CommandFailed when it is no such document."""
    try:
        # libvirt's own output, over a local socket that only root may write to: no bomb is to be feared.
        top = ElementTree.fromstring(domain_xml)  # noqa: S314
    except ElementTree.ParseError as error:
        raise CommandFailed(f"libvirt's description of a domain is no XML ({error}); look at virsh dumpxml") from error
    return tuple(_disk(element) for element in top.iterfind("./devices/disk"))


def _disk(element: ElementTree.Element) -> DomainDisk:
    source = _attributes(element, "source")
    target = _attributes(element, "target")
    return DomainDisk(
        target=target.get("dev", ""),
        bus=target.get("bus", ""),
        source=source.get("dev") or source.get("file") or "",
        serial=(element.findtext("serial") or "").strip(),
        alias=_attributes(element, "alias").get("name", ""),
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
    )


def _attributes(element: ElementTree.Element, name: str) -> dict[str, str]:
    """Return the attributes of a direct child: backing stores and mirrors have sources, too."""
    child = element.find(name)
    return child.attrib if child is not None else {}
