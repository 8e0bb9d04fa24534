"""A volume's disk in a domain: its names, and who has it."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import NoSpace
from aoe_core.guests.disk import alias_of, disk_of, free_target, users_of
from aoe_core.guests.records import Bus
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.model import AccessMode, Serial

from .made import LINK, SERIAL, domain, record

targets = st.sampled_from([f"{prefix}{letter}" for prefix in ("vd", "sd") for letter in string.ascii_lowercase])


def plain(*names: str) -> tuple[DomainDisk, ...]:
    return tuple(DomainDisk(target=name, bus="virtio") for name in names)


@given(live=st.sets(targets), config=st.sets(targets), reserved=st.sets(targets), bus=st.sampled_from(Bus))
def test_a_target_is_nobodys_and_never_the_first(
    live: set[str], config: set[str], reserved: set[str], bus: Bus
) -> None:
    chosen = free_target(domain(live=plain(*live), config=plain(*config)), bus, reserved)
    assert chosen not in live | config | reserved
    assert chosen.startswith({"virtio": "vd", "scsi": "sd"}[bus.value])
    assert chosen[2:] != "a"


def test_targets_go_on_after_z_and_come_to_an_end() -> None:
    letters = [f"vd{letter}" for letter in string.ascii_lowercase]
    assert free_target(domain(config=plain("vda")), Bus.VIRTIO, ()) == "vdb"
    assert free_target(domain(config=plain(*letters)), Bus.VIRTIO, ()) == "vdaa"
    every = [f"vd{one}{other}" for one in ["", *string.ascii_lowercase] for other in string.ascii_lowercase]
    assert free_target(domain(config=plain(*every[:-1])), Bus.VIRTIO, ()) == "vdzz"
    with pytest.raises(NoSpace, match="no free target"):
        free_target(domain(config=plain(*every)), Bus.VIRTIO, ())


def test_an_alias_is_one_that_libvirt_keeps_and_no_letter_of_it_is_changed() -> None:
    alias = alias_of(SERIAL)
    assert alias.startswith("ua-")
    assert alias == alias.lower()


@pytest.mark.parametrize("mode", AccessMode)
def test_a_disk_is_shared_only_where_two_may_write_and_read_only_where_nobody_may(mode: AccessMode) -> None:
    disk = disk_of(record(mode=mode), LINK)
    assert disk.shareable == (mode is AccessMode.MULTI_NODE_MULTI_WRITER)
    assert disk.read_only == (not mode.writes)
    assert (disk.source, disk.target, disk.serial, disk.alias) == (LINK, "vdb", SERIAL, alias_of(SERIAL))


@pytest.mark.parametrize(
    ("disk", "uses"),
    [
        (DomainDisk(target="vdb", bus="virtio", alias=alias_of(SERIAL)), True),
        (DomainDisk(target="vdb", bus="virtio", source=LINK), True),
        (DomainDisk(target="vdb", bus="virtio", source="/dev/etherd/e10.3"), True),
        (DomainDisk(target="vdb", bus="virtio", source="/dev/etherd/e10.31", alias=alias_of(Serial("other"))), False),
        (DomainDisk(target="sda", bus="sata"), False),
    ],
)
def test_who_has_a_volume_live_or_not_under_any_name(disk: DomainDisk, uses: bool) -> None:
    found: list[Domain] = [domain(live=(disk,)), domain(config=(disk,))]
    assert users_of(found, alias_of(SERIAL), {LINK, "/dev/etherd/e10.3"}.__contains__) == (tuple(found) if uses else ())
