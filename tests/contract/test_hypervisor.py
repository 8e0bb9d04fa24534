"""Hypervisor: domains and their disks, live and in the configuration; and links that lead to devices."""

import contextlib
from collections.abc import Callable

import pytest
from tests.contract.beds import Bed, Guests

from aoe_core.errors import AoECsiError, CommandFailed, Conflict, InUse, NoSpace, NotFound, Unreachable
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.units import MIB

Act = Callable[[], object]
ABSENT = "5b0f6e1c-0000-4000-8000-00000000dead"


@pytest.fixture
def guests(bed: Bed) -> Guests:
    if bed.guests is None:
        pytest.skip("this host has no hypervisor")
    return bed.guests


@pytest.fixture
def disk(bed: Bed) -> DomainDisk:
    return made(bed, "a")


def made(bed: Bed, name: str, *, target: str = "vdx", read_only: bool = False) -> DomainDisk:
    """Return a disk of a volume of its own, by a stable link, as guests have them."""
    bed.lvm.create(bed.vg, f"v-{name}", 16 * MIB, ())
    bed.links.put(name, f"/dev/{bed.vg}/v-{name}")
    return DomainDisk(
        target=target,
        bus="virtio",
        source=bed.links.path(name),
        serial=f"serial00{name}",
        alias=f"ua-aoe-serial00{name}",
        read_only=read_only,
    )


def ours(disks: tuple[DomainDisk, ...]) -> list[DomainDisk]:
    return [one for one in disks if one.alias.startswith("ua-aoe-")]


def looked(bed: Bed, uuid: str) -> Domain:
    return bed.hypervisor.get_domain(uuid)


def openers(bed: Bed, name: str = "a") -> int:
    return bed.blocks.open_count(f"/dev/{bed.vg}/v-{name}")


def let_go(bed: Bed, uuid: str, alias: str) -> None:
    """Ask until the disk is gone, as whoever detaches does."""

    def gone() -> bool:
        if not ours(looked(bed, uuid).live):
            return True
        with contextlib.suppress(CommandFailed, NotFound):  # It is at it, or has done it this moment.
            bed.hypervisor.ask_to_detach(uuid, alias)
        return False

    bed.eventually(f"{alias} out of {uuid}", gone)


# --- looking ---


def test_a_domain_is_found_by_name_and_by_uuid(bed: Bed, guests: Guests) -> None:
    uuid = guests.shut_off()
    by_uuid = looked(bed, uuid)
    assert by_uuid == looked(bed, guests.name(uuid)) == looked(bed, uuid.upper())
    assert (by_uuid.uuid, by_uuid.running, by_uuid.persistent, by_uuid.live) == (uuid, False, True, ())


def test_every_domain_is_listed_running_or_not(bed: Bed, guests: Guests) -> None:
    running, shut_off = guests.running(), guests.shut_off()
    found = {domain.uuid: domain.running for domain in bed.hypervisor.domains()}
    assert found[running]
    assert not found[shut_off]


@pytest.mark.parametrize("absent", [ABSENT, "no-such-domain"])
def test_an_absent_domain_is_absent(bed: Bed, guests: Guests, disk: DomainDisk, absent: str) -> None:
    with pytest.raises(NotFound):
        bed.hypervisor.get_domain(absent)
    acts: tuple[Act, ...] = (
        lambda: bed.hypervisor.attach_config(ABSENT, disk),
        lambda: bed.hypervisor.attach_live(ABSENT, disk),
        lambda: bed.hypervisor.detach_config(ABSENT, disk.alias),
        lambda: bed.hypervisor.ask_to_detach(ABSENT, disk.alias),
        lambda: bed.hypervisor.resize(ABSENT, disk.target, 16 * MIB),
    )
    for act in acts:
        with pytest.raises(NotFound):
            act()
    assert guests.shut_off()


def test_a_daemon_that_is_away_proves_nothing_and_its_guests_run_on(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_live(uuid, disk)
    with guests.daemon_away():
        acts: tuple[Act, ...] = (
            bed.hypervisor.domains,
            lambda: bed.hypervisor.get_domain(uuid),
            lambda: bed.hypervisor.get_domain("no-such-domain"),
            lambda: bed.hypervisor.ask_to_detach(uuid, disk.alias),
            lambda: bed.hypervisor.detach_config(uuid, disk.alias),
        )
        for act in acts:
            with pytest.raises(Unreachable):
                act()
        assert openers(bed) > 0
    bed.eventually("the daemon back", lambda: _answers(bed))
    assert ours(looked(bed, uuid).live) == [disk]


def _answers(bed: Bed) -> bool:
    try:
        bed.hypervisor.domains()
    except Unreachable:
        return False
    return True


def test_a_domain_is_the_same_one_under_another_name(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.shut_off()
    former = guests.name(uuid)
    bed.hypervisor.attach_config(uuid, disk)
    assert looked(bed, guests.rename(uuid)) == looked(bed, uuid)
    assert ours(looked(bed, uuid).config) == [disk]
    with pytest.raises(NotFound):
        bed.hypervisor.get_domain(former)


def test_a_domain_that_is_undefined_runs_on_without_a_configuration(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running(slots=False)
    bed.hypervisor.attach_config(uuid, disk)
    guests.undefine(uuid)
    domain = looked(bed, uuid)
    assert (domain.running, domain.persistent, domain.config) == (True, False, ())
    guests.stop(uuid)
    with pytest.raises(NotFound):
        bed.hypervisor.get_domain(uuid)


# --- attaching ---


def test_a_disk_of_the_configuration_is_the_running_guests_only_from_its_next_start(
    bed: Bed, guests: Guests, disk: DomainDisk
) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_config(uuid, disk)
    assert (ours(looked(bed, uuid).config), ours(looked(bed, uuid).live)) == ([disk], [])
    assert openers(bed) == 0


def test_a_plugged_disk_is_not_in_the_configuration_and_is_open(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_live(uuid, disk)
    assert (ours(looked(bed, uuid).config), ours(looked(bed, uuid).live)) == ([], [disk])
    assert openers(bed) > 0


def test_a_read_only_disk_stays_one(bed: Bed, guests: Guests) -> None:
    uuid, disk = guests.running(), made(bed, "r", read_only=True)
    bed.hypervisor.attach_config(uuid, disk)
    bed.hypervisor.attach_live(uuid, disk)
    assert ours(looked(bed, uuid).config) == ours(looked(bed, uuid).live) == [disk]


def test_what_is_there_is_not_attached_again(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    """Neither under its alias at another target, nor another disk at its target."""
    uuid = guests.running()
    twin = made(bed, "b", target="vdy")
    same_alias = DomainDisk(target="vdy", bus="virtio", source=twin.source, serial="other", alias=disk.alias)
    same_target = DomainDisk(target=disk.target, bus="virtio", source=twin.source, serial="other", alias=twin.alias)
    for attach in (bed.hypervisor.attach_config, bed.hypervisor.attach_live):
        attach(uuid, disk)
        for clash in (disk, same_alias, same_target):
            with pytest.raises((Conflict, InUse)):
                attach(uuid, clash)
    assert ours(looked(bed, uuid).config) == ours(looked(bed, uuid).live) == [disk]
    assert openers(bed, "b") == 0


def test_a_guest_without_a_free_slot_says_so(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running(slots=False)
    with pytest.raises(NoSpace):
        bed.hypervisor.attach_live(uuid, disk)
    assert ours(looked(bed, uuid).live) == []
    assert openers(bed) == 0


def test_a_device_that_is_not_there_is_not_plugged_in(bed: Bed, guests: Guests) -> None:
    uuid = guests.running()
    bed.links.put("gone", f"/dev/{bed.vg}/v-gone")
    disk = DomainDisk(target="vdx", bus="virtio", source=bed.links.path("gone"), alias="ua-aoe-gone")
    with pytest.raises(CommandFailed):
        bed.hypervisor.attach_live(uuid, disk)
    assert ours(looked(bed, uuid).live) == []


def test_a_domain_that_does_not_run_takes_no_live_disk_and_a_transient_one_none_for_later(
    bed: Bed, guests: Guests, disk: DomainDisk
) -> None:
    shut_off, transient = guests.shut_off(), guests.transient()
    with pytest.raises(InUse):
        bed.hypervisor.attach_live(shut_off, disk)
    with pytest.raises(AoECsiError):
        bed.hypervisor.attach_config(transient, disk)
    bed.hypervisor.attach_config(shut_off, disk)
    assert ours(looked(bed, shut_off).config) == [disk]
    assert looked(bed, transient).config == ()


# --- detaching ---


def test_a_disk_leaves_the_configuration_at_once_and_once(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.shut_off()
    bed.hypervisor.attach_config(uuid, disk)
    bed.hypervisor.detach_config(uuid, disk.alias)
    assert ours(looked(bed, uuid).config) == []
    with pytest.raises(NotFound):
        bed.hypervisor.detach_config(uuid, disk.alias)


def test_taking_a_disk_from_the_configuration_leaves_it_with_the_running_guest(
    bed: Bed, guests: Guests, disk: DomainDisk
) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_config(uuid, disk)
    bed.hypervisor.attach_live(uuid, disk)
    bed.hypervisor.detach_config(uuid, disk.alias)
    assert (ours(looked(bed, uuid).config), ours(looked(bed, uuid).live)) == ([], [disk])


def test_a_guest_that_is_asked_lets_go_and_the_device_is_closed(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_live(uuid, disk)
    let_go(bed, uuid, disk.alias)
    bed.eventually("the device closed", lambda: openers(bed) == 0)
    with pytest.raises(NotFound):
        bed.hypervisor.ask_to_detach(uuid, disk.alias)
    # The slot, the target and the alias are free again.
    bed.hypervisor.attach_live(uuid, disk)
    assert ours(looked(bed, uuid).live) == [disk]


def test_a_guest_that_does_not_listen_keeps_its_disk_until_it_does(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_live(uuid, disk)
    with guests.deaf(uuid):
        bed.hypervisor.ask_to_detach(uuid, disk.alias)
        with contextlib.suppress(CommandFailed):  # For a while after the first request libvirt takes no second one.
            bed.hypervisor.ask_to_detach(uuid, disk.alias)
        assert ours(looked(bed, uuid).live) == [disk]
        assert openers(bed) > 0
    let_go(bed, uuid, disk.alias)
    bed.eventually("the device closed", lambda: openers(bed) == 0)


def test_a_guest_that_ends_holds_nothing_and_keeps_its_configuration(
    bed: Bed, guests: Guests, disk: DomainDisk
) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_config(uuid, disk)
    bed.hypervisor.attach_live(uuid, disk)
    guests.stop(uuid)
    assert (looked(bed, uuid).running, looked(bed, uuid).live, ours(looked(bed, uuid).config)) == (False, (), [disk])
    bed.eventually("the device closed", lambda: openers(bed) == 0)
    with pytest.raises(InUse):
        bed.hypervisor.ask_to_detach(uuid, disk.alias)


def test_a_guest_that_sleeps_holds_nothing_and_wakes_with_the_disks_it_had(
    bed: Bed, guests: Guests, disk: DomainDisk
) -> None:
    """Whatever its configuration says by then."""
    uuid = guests.running()
    assert not looked(bed, uuid).saved
    bed.hypervisor.attach_live(uuid, disk)
    guests.save(uuid)
    domain = looked(bed, uuid)
    assert (domain.running, domain.saved, domain.live, ours(domain.config)) == (False, True, (), [])
    bed.eventually("the device closed", lambda: openers(bed) == 0)
    bed.hypervisor.start(uuid)
    domain = looked(bed, uuid)
    assert (domain.running, domain.saved, ours(domain.live)) == (True, False, [disk])
    assert openers(bed) > 0


# --- starting ---


def test_a_guest_starts_with_its_configuration_and_once(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.shut_off()
    bed.hypervisor.attach_config(uuid, disk)
    bed.hypervisor.start(uuid)
    assert (looked(bed, uuid).running, ours(looked(bed, uuid).live)) == (True, [disk])
    assert openers(bed) > 0
    with pytest.raises(InUse):
        bed.hypervisor.start(uuid)


def test_a_guest_whose_disk_has_no_device_does_not_start_until_it_has_one(bed: Bed, guests: Guests) -> None:
    uuid, disk = guests.shut_off(), made(bed, "late")
    bed.links.put("late", f"/dev/{bed.vg}/v-gone")
    bed.hypervisor.attach_config(uuid, disk)
    with pytest.raises(CommandFailed):
        bed.hypervisor.start(uuid)
    assert not looked(bed, uuid).running
    bed.links.put("late", f"/dev/{bed.vg}/v-late")
    bed.hypervisor.start(uuid)
    assert ours(looked(bed, uuid).live) == [disk]


def test_who_starts_with_the_host_is_known(bed: Bed, guests: Guests) -> None:
    uuid = guests.shut_off()
    assert not looked(bed, uuid).autostart
    guests.start_with_host(uuid)
    assert looked(bed, uuid).autostart


# --- growing ---


def test_a_disk_is_told_its_devices_new_size_and_no_larger_one(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.running()
    bed.hypervisor.attach_live(uuid, disk)
    with pytest.raises(CommandFailed):
        bed.hypervisor.resize(uuid, disk.target, 32 * MIB)
    bed.lvm.extend(bed.vg, "v-a", 32 * MIB)
    bed.hypervisor.resize(uuid, disk.target, 32 * MIB)
    bed.hypervisor.resize(uuid, disk.target, 32 * MIB)
    with pytest.raises((NotFound, CommandFailed)):
        bed.hypervisor.resize(uuid, "vdz", 32 * MIB)


def test_a_read_only_disk_is_told_no_size(bed: Bed, guests: Guests) -> None:
    uuid, disk = guests.running(), made(bed, "r", read_only=True)
    bed.hypervisor.attach_live(uuid, disk)
    bed.lvm.extend(bed.vg, "v-r", 32 * MIB)
    with pytest.raises(CommandFailed):
        bed.hypervisor.resize(uuid, disk.target, 32 * MIB)


def test_only_a_running_guest_is_told_a_size(bed: Bed, guests: Guests, disk: DomainDisk) -> None:
    uuid = guests.shut_off()
    bed.hypervisor.attach_config(uuid, disk)
    with pytest.raises(InUse):
        bed.hypervisor.resize(uuid, disk.target, 16 * MIB)


# --- links ---


def test_a_link_leads_where_it_was_put_last(bed: Bed) -> None:
    assert bed.links.all() == {}
    bed.links.put("web", "/dev/etherd/e1.2")
    bed.links.put("web", "/dev/etherd/e1.3")
    bed.links.put("db", "/dev/vg/v-db")
    assert bed.links.all() == {"web": "/dev/etherd/e1.3", "db": "/dev/vg/v-db"}
    bed.links.remove("web")
    bed.links.remove("web")
    assert bed.links.all() == {"db": "/dev/vg/v-db"}
    assert bed.links.path("db").endswith("/guests/disks/db")


def test_one_device_is_known_by_every_path_to_it(bed: Bed) -> None:
    for name in ("v-a", "v-b"):
        bed.lvm.create(bed.vg, name, 16 * MIB, ())
        bed.links.put(name, f"/dev/{bed.vg}/{name}")
    paths = (f"/dev/{bed.vg}/v-a", f"/dev/mapper/{bed.vg}-v--a", bed.links.path("v-a"))
    (number,) = {bed.links.find_device(path) for path in paths}
    assert number is not None
    assert bed.links.find_device(bed.links.path("v-b")) not in (None, number)
    bed.links.put("gone", f"/dev/{bed.vg}/v-gone")
    for absent in (bed.links.path("gone"), bed.links.path("never"), f"/dev/{bed.vg}/v-gone"):
        assert bed.links.find_device(absent) is None
