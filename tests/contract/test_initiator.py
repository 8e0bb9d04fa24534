"""Initiator: what the kernel's AoE driver does with targets on the wire."""

import pytest
from tests.contract.beds import FOREIGN_MAC, Bed

from aoe_core.errors import AoECsiError, CommandFailed, NotFound, Unreachable
from aoe_core.host.contracts import AoEDevice
from aoe_core.model import Address
from aoe_core.units import MIB

ADDRESS = Address(200, 2)
LONGER = Address(200, 20)
"""Its name begins with the other's: the kernel's flush matches prefixes."""
SIZE_BYTES = 16 * MIB
PROBE_S = 1.0


def find(bed: Bed, address: Address = ADDRESS) -> AoEDevice | None:
    return next((one for one in bed.initiator.devices() if one.address == address), None)


def get(bed: Bed, address: Address = ADDRESS) -> AoEDevice:
    found = find(bed, address)
    assert found is not None, f"{address} is not known"
    return found


def discover(bed: Bed, address: Address = ADDRESS) -> AoEDevice:
    bed.initiator.discover()
    bed.eventually(f"{address}", lambda: (one := find(bed, address)) is not None and one.up)
    return get(bed, address)


# --- probe ---


def test_a_probe_tells_who_serves_an_address(bed: Bed) -> None:
    target = bed.serve(ADDRESS, serial="abcdefghi")
    (answer,) = bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)
    assert (answer.mac, answer.serial, answer.size_bytes) == (target.mac, "200.2:abcdefghi", SIZE_BYTES)


def test_a_probe_counts_every_target(bed: Bed) -> None:
    first = bed.serve(ADDRESS, serial="abcdefghi")
    second = bed.serve(ADDRESS, serial="ihgfedcba", twin=True)
    answers = {one.mac: one.serial for one in bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)}
    assert answers == {first.mac: "200.2:abcdefghi", second.mac: "200.2:ihgfedcba"}


def test_a_probe_of_an_address_without_a_target_is_silent(bed: Bed) -> None:
    bed.serve(LONGER)
    assert bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S) == ()


def test_a_target_that_does_not_admit_us_does_not_answer(bed: Bed) -> None:
    bed.serve(ADDRESS, admitted=FOREIGN_MAC)
    assert bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S) == ()
    bed.initiator.discover()
    assert bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S) == ()
    assert find(bed) is None


def test_a_probe_sees_what_the_ingress_rules_keep_from_the_driver(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.serve(ADDRESS)
    assert len(bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)) == 1
    bed.initiator.discover()
    assert len(bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)) == 1
    assert find(bed) is None


def test_a_probe_on_no_interface_is_refused(bed: Bed) -> None:
    with pytest.raises(AoECsiError):
        bed.initiator.probe("nowhere0", ADDRESS, timeout_s=PROBE_S)


# --- discovery ---


def test_a_discovered_device_shows_its_target_size_and_serial(bed: Bed) -> None:
    target = bed.serve(ADDRESS, serial="abcdefghi")
    device = discover(bed)
    assert (device.up, device.closewait, device.size_bytes) == (True, False, SIZE_BYTES)
    assert device.interface == bed.interface
    assert device.target_macs == (target.mac,)
    assert bed.initiator.identify(ADDRESS) == "200.2:abcdefghi"
    assert bed.blocks.size_bytes(device.path) == SIZE_BYTES


def test_what_is_written_reaches_the_target(bed: Bed) -> None:
    target = bed.serve(ADDRESS)
    device = discover(bed)
    bed.write(device.path, MIB, b"over the wire")
    assert target.read(MIB, 13) == b"over the wire"
    assert bed.read(device.path, MIB, 13) == b"over the wire"


def test_a_pinned_target_is_heard_and_its_twin_is_not(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    target = bed.serve(ADDRESS, serial="abcdefghi")
    bed.serve(ADDRESS, serial="ihgfedcba", twin=True)
    bed.ingress.pin(bed.interface, ADDRESS, target.mac)
    discover(bed)
    bed.initiator.discover()
    bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)
    assert get(bed).target_macs == (target.mac,)
    assert bed.initiator.identify(ADDRESS) == "200.2:abcdefghi"


def test_without_rules_every_target_becomes_a_path(bed: Bed) -> None:
    # The danger the rules are for: the driver compares nothing.
    first = bed.serve(ADDRESS, serial="abcdefghi")
    discover(bed)
    second = bed.serve(ADDRESS, serial="ihgfedcba", twin=True)
    bed.initiator.discover()
    bed.eventually("the second path", lambda: len(get(bed).target_macs) == 2)
    assert set(get(bed).target_macs) == {first.mac, second.mac}


def test_an_unknown_device_has_no_serial_and_no_size(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.initiator.identify(ADDRESS)
    with pytest.raises(NotFound):
        bed.blocks.size_bytes(f"/dev/etherd/{ADDRESS}")
    assert not bed.initiator.in_use(ADDRESS)


def test_deadsecs_are_finite(bed: Bed) -> None:
    assert bed.initiator.deadsecs() > 0


# --- growth ---


def test_an_open_device_learns_its_new_size_by_revalidation_only(bed: Bed) -> None:
    target = bed.serve(ADDRESS)
    device = discover(bed)
    with bed.opened(device.path):
        target.stop()
        target.grow(2 * SIZE_BYTES)
        target.start()
        bed.initiator.discover()
        bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)
        assert get(bed).size_bytes == SIZE_BYTES
        bed.eventually("the new size", lambda: comes_back(bed) and get(bed).size_bytes == 2 * SIZE_BYTES)
    assert bed.blocks.size_bytes(device.path) == 2 * SIZE_BYTES


def test_a_running_target_does_not_notice_that_its_backing_grew(bed: Bed) -> None:
    target = bed.serve(ADDRESS)
    discover(bed)
    target.grow(2 * SIZE_BYTES)
    bed.initiator.revalidate(ADDRESS)
    (answer,) = bed.initiator.probe(bed.interface, ADDRESS, timeout_s=PROBE_S)
    assert answer.size_bytes == get(bed).size_bytes == SIZE_BYTES


def test_revalidating_an_unknown_device_fails(bed: Bed) -> None:
    with pytest.raises(CommandFailed):
        bed.initiator.revalidate(ADDRESS)


# --- in use ---


def test_an_open_device_is_in_use(bed: Bed) -> None:
    bed.serve(ADDRESS)
    device = discover(bed)
    bed.settle()
    assert not bed.initiator.in_use(ADDRESS)
    with bed.opened(device.path):
        assert bed.initiator.in_use(ADDRESS)
    bed.settle()
    assert not bed.initiator.in_use(ADDRESS)


def test_a_mounted_device_is_in_use(bed: Bed) -> None:
    bed.serve(ADDRESS)
    device = discover(bed)
    bed.filesystems.make(device.path, "ext4", "")
    bed.mounts.make_directory(f"{bed.directory}/m")
    bed.mounts.mount(device.path, f"{bed.directory}/m", "ext4", ())
    assert bed.initiator.in_use(ADDRESS)
    bed.mounts.unmount(f"{bed.directory}/m")
    bed.settle()
    assert not bed.initiator.in_use(ADDRESS)


# --- flush ---


def test_a_flush_forgets_exactly_one_device(bed: Bed) -> None:
    short, longer = bed.serve(ADDRESS), bed.serve(LONGER)
    discover(bed)
    discover(bed, LONGER)
    short.stop()
    longer.stop()
    bed.initiator.flush(ADDRESS)
    bed.eventually("the flush", lambda: find(bed) is None)
    assert get(bed, LONGER).size_bytes == SIZE_BYTES


def test_a_flushed_device_returns_while_its_target_answers(bed: Bed) -> None:
    bed.serve(ADDRESS)
    discover(bed)
    bed.initiator.flush(ADDRESS)
    bed.eventually("the flush", lambda: find(bed) is None)
    discover(bed)


def test_flushing_an_unknown_device_is_no_error(bed: Bed) -> None:
    bed.initiator.flush(ADDRESS)
    assert find(bed) is None


# --- a dead target ---


def test_io_to_a_dead_target_fails_after_deadsecs_and_revalidation_brings_it_back(bed: Bed) -> None:
    target = bed.serve(ADDRESS)
    device = discover(bed)
    bed.write(device.path, 0, b"kept")
    with bed.opened(device.path):
        target.stop()
        bed.wait_out_deadsecs(lambda: bed.write(device.path, 8 * MIB, b"lost"))
        bed.eventually("the driver giving up", lambda: not get(bed).up)
        assert (get(bed).closewait, get(bed).size_bytes) == (True, 0)
        with pytest.raises(Unreachable):
            bed.initiator.identify(ADDRESS)
        target.start()
        bed.eventually("the device", lambda: comes_back(bed))
        assert get(bed).size_bytes == SIZE_BYTES
    assert bed.read(device.path, 0, 4) == b"kept"


def comes_back(bed: Bed) -> bool:
    bed.initiator.revalidate(ADDRESS)
    return get(bed).up


def test_a_read_only_target_takes_no_writes(bed: Bed) -> None:
    target = bed.serve(ADDRESS, writable=False)
    device = discover(bed)
    with pytest.raises((AoECsiError, OSError)):
        bed.write(device.path, 0, b"refused")
    assert target.read(0, 7) == bytes(7)
