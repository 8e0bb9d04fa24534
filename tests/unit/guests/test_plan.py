"""Plans for guests' disks: by tables, and carried out on every state they can meet."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import Conflict, InUse
from aoe_core.guests import plan
from aoe_core.guests.disk import alias_of, find_disk
from aoe_core.host.contracts import Domain, DomainDisk

from .made import LINK, OTHER_UUID, SERIAL, UUID, domain, ours

OURS = ours()
ALIAS = alias_of(SERIAL)
foreign = st.lists(
    st.builds(DomainDisk, target=st.sampled_from(("vda", "vdc", "sda")), bus=st.just("sata")), max_size=2
).map(tuple)


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    """Any domain there can be, with our disk live, in its configuration, in both or nowhere."""
    persistent = draw(st.booleans())
    running = draw(st.booleans()) if persistent else True
    parts = [(OURS, *draw(foreign)) if draw(st.booleans()) else draw(foreign) for _ in range(2)]
    return domain(running=running, persistent=persistent, live=parts[0], config=parts[1])


def done(domain: Domain, action: plan.Action) -> Domain:
    """What becomes of a domain by an action; a guest that is asked obeys."""
    match action:
        case plan.AttachConfig(disk=disk):
            return replace(domain, config=(*domain.config, disk))
        case plan.AttachLive(disk=disk):
            return replace(domain, live=(*domain.live, disk))
        case plan.DetachConfig():
            return replace(domain, config=tuple(one for one in domain.config if one.alias != ALIAS))
        case plan.AskGuest():
            return replace(domain, live=tuple(one for one in domain.live if one.alias != ALIAS))
        case _:
            return domain


@given(domains(), st.integers(0, 4))
def test_an_attach_that_is_cut_anywhere_and_made_again_ends_with_the_disk_where_it_can_be(
    before: Domain, cut: int
) -> None:
    now = before
    for action in plan.plan_attach(OURS, now)[:cut]:
        now = done(now, action)
    for action in plan.plan_attach(OURS, now):
        now = done(now, action)
    assert plan.is_attached(OURS, now)
    assert now.live.count(OURS) == (1 if now.running else 0)
    assert now.config.count(OURS) == (1 if now.persistent else 0)
    others = [one for one in (*before.live, *before.config) if one != OURS]
    assert [one for one in (*now.live, *now.config) if one != OURS] == others


@given(domains())
def test_a_device_is_there_before_anybody_is_told_of_it_and_the_configuration_knows_first(before: Domain) -> None:
    kinds = [type(action) for action in plan.plan_attach(OURS, before)]
    assert kinds[:2] == [plan.Stage, plan.Link]
    assert kinds[2:] in ([], [plan.AttachConfig], [plan.AttachLive], [plan.AttachConfig, plan.AttachLive])


@given(domains())
def test_a_detach_takes_one_step_at_a_time_and_lets_go_last(before: Domain) -> None:
    now = before
    steps: list[plan.Action] = []
    while plan.Release() not in steps:
        (first, *rest) = plan.plan_detach(ALIAS, now, recorded=True)
        steps += [first, *rest]
        if plan.Unstage() in (first, *rest):
            assert find_disk((*now.live, *now.config), ALIAS) is None
        else:
            assert rest == [], "what is done has to be seen before the next step"
        now = done(now, first)
    expected: list[plan.Action] = []
    if find_disk(before.config, ALIAS):
        expected.append(plan.DetachConfig(uuid=UUID))
    if find_disk(before.live, ALIAS):
        expected.append(plan.AskGuest(uuid=UUID))
    assert steps == [*expected, plan.Unlink(), plan.Unstage(), plan.Release()]


def test_a_domain_that_is_gone_has_nothing() -> None:
    assert plan.plan_detach(ALIAS, None, recorded=True) == (plan.Unlink(), plan.Unstage(), plan.Release())


def test_a_domain_that_sleeps_wakes_with_what_it_had_and_is_left_alone() -> None:
    def asleep(*there: DomainDisk) -> Domain:
        return replace(domain(running=False, config=there), saved=True)

    for one, recorded in ((asleep(), True), (asleep(OURS), True), (asleep(OURS), False)):
        with pytest.raises(InUse, match="managedsave-remove"):
            plan.plan_detach(ALIAS, one, recorded=recorded)
    assert plan.plan_detach(ALIAS, asleep(), recorded=False) == (plan.Unlink(), plan.Unstage(), plan.Release())


def test_the_device_stays_while_another_domain_has_it() -> None:
    other = domain(name="g2", uuid=OTHER_UUID, config=(OURS,))
    with pytest.raises(InUse, match="domain g2"):
        plan.plan_detach(ALIAS, domain(), [other], recorded=True)
    with pytest.raises(InUse, match="domain g2"):
        plan.plan_detach(ALIAS, None, [other], recorded=True)
    # What concerns the domain itself is done all the same.
    assert plan.plan_detach(ALIAS, domain(config=(OURS,)), [other], recorded=True) == (plan.DetachConfig(uuid=UUID),)


@pytest.mark.parametrize(
    "other",
    [
        replace(OURS, target="vdc"),
        replace(OURS, bus="scsi"),
        replace(OURS, source="/dev/etherd/e10.3"),
        replace(OURS, read_only=True),
        replace(OURS, shareable=True),
        replace(OURS, serial="other"),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_our_disk_as_another_one_is_a_conflict(other: DomainDisk, live: bool) -> None:
    there = domain(live=(other,)) if live else domain(config=(other,))
    with pytest.raises(Conflict, match="detach it first"):
        plan.plan_attach(OURS, there)
    assert plan.plan_detach(ALIAS, there, recorded=True)[0] in (plan.AskGuest(uuid=UUID), plan.DetachConfig(uuid=UUID))


def test_the_same_disk_is_none() -> None:
    assert plan.is_attached(OURS, domain(live=(OURS,), config=(OURS,)))
    assert OURS.source == LINK
