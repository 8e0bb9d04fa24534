"""The cluster role's guests' disks of KubeVirt: a claim into the spec of a VirtualMachine, and out of it again.

KubeVirt does the rest: it takes the claim to the machine's node by a pod, as it takes any claim, and CSI grants it
there. So there is no ticket of a guest's, and no host's finalizer; what is ours is a volume and a disk in the machine's
spec, which are named after this very AoEGuestDisk.

    a disk is made      list → claim, bound for the machine's node → volume and serial into the status
                        finalizer on the claim → volume and disk into the machine's spec → (KubeVirt) → Attached
    a disk is deleted   out of the machine's spec → (KubeVirt: the guest lets go) → finalizer off the claim
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Busy, Conflict, InUse, NotFound, Unfinished, Unsupported
from aoe_core.locks import Locks
from aoe_core.model import VolumeId, VolumeStatus
from aoe_core.resources.claims import ClaimStore
from aoe_core.resources.fields import quantity
from aoe_core.resources.guest_access import AccessRules, require_machine_access
from aoe_core.resources.guest_disk import (
    GRANT_FINALIZER,
    AoEGuestDisk,
    GuestDiskStore,
    HostStatus,
    find_same,
    is_going,
    key_of,
)
from aoe_core.resources.virtual_machine import (
    READY,
    Instance,
    MachineStore,
    VirtualMachine,
    VolumeState,
    claim_of,
    find_volume,
    is_plugged,
    volume_name,
    with_disk,
    without_disk,
)
from aoe_operator.background import attempt
from aoe_operator.guest_claims import Admitted, GuestClaims
from aoe_operator.guest_status import SOON_S, Teller, again_s, is_passing

log = logging.getLogger(__name__)

_TRIES = 8
_PLUGGING_S = 3.0
"""KubeVirt tells nobody of what it is about; a pod has to come up for it."""


class Unseen:
    """KubeVirt's machines where nobody has allowed the cluster role to see to them: a `MachineStore`."""

    def find_machine(self, namespace: str, name: str) -> VirtualMachine | None:
        """Raises: Unsupported."""
        raise Unsupported(
            f"virtual machine {namespace}/{name} is not seen to; an administrator sets the chart's value "
            "kubevirt.guestDisks"
        )

    def find_instance(self, namespace: str, name: str) -> Instance | None:
        """Raises: Unsupported."""
        self.find_machine(namespace, name)
        return None

    def put_disks(self, machine: VirtualMachine) -> VirtualMachine:
        """Raises: Unsupported."""
        self.find_machine(machine.namespace, machine.name)
        return machine


class Holders(Protocol):
    """Who knows the nodes that hold volumes: the cluster's Provisioner."""

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        """Return a volume with its grants. Raises: NotFound, Unreachable."""


class MachineDisks:
    """Plugs guests' disks into KubeVirt's machines. Two of it may run: each writes only over what it has read, and
    takes back what it did for a disk that was gone by then."""

    def __init__(
        self,
        disks: GuestDiskStore,
        claim_store: ClaimStore,
        machines: MachineStore,
        holders: Holders,
        *,
        rules: Callable[[], AccessRules],
        now_s: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        """`rules`: reads the administrator's list as it is now."""
        self._disks = disks
        self._claims = GuestClaims(disks, claim_store)
        self._machines = machines
        self._holders = holders
        self._rules = rules
        self._teller = Teller(disks, now_s)
        self._locks = Locks()

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one disk to what is wanted. Returns: when to look again, None when there is nothing to do.
        Raises: Busy, NotFound, Unreachable."""
        # Before anything is read: who waited with what he had read would act on the past.
        with self._locks.hold(f"guest disk {namespace}/{name}"):
            disk = self._disks.find(namespace, name)
            if disk is None:
                return None
            return self._end(disk) if is_going(disk) else self._plug(disk)

    def follow(self) -> None:
        """See what has become of every disk: nobody is called when a machine starts, stops, or loses one. Raises:
        Unreachable."""
        for disk in self._disks.list():
            if disk.spec.kubevirt is not None and not is_going(disk):
                namespace, name = disk.metadata.namespace, disk.metadata.name
                attempt(partial(self.reconcile, namespace, name), f"the machine of {namespace}/{name}")

    # --- into the machine ---------------------------------------------------------------------------------------

    def _plug(self, disk: AoEGuestDisk) -> float | None:
        if GRANT_FINALIZER not in disk.metadata.finalizers:
            disk = self._disks.put_finalizers(disk, (*disk.metadata.finalizers, GRANT_FINALIZER))
        namespace, name = disk.metadata.namespace, _machine_name(disk)
        has_it = True  # As far as is known: else something of it might be let go.
        try:
            machine, instance = self._machines.find_machine(namespace, name), self._find_instance(disk)
            # Whatever the spec says by now, a guest may have it until its instance has let go.
            plugged = machine is not None and is_plugged(machine, disk)
            has_it = plugged or _is_in(instance, disk)
            if not has_it:
                require_machine_access(self._rules(), namespace=namespace, machine=name)
            if machine is None or machine.deleting:
                raise NotFound(
                    f"virtual machine {namespace}/{name} does not exist; create it, or delete this and make another"
                )
            _require_no_other(machine, disk)
            admitted = self._claims.admit(disk, node=instance.node if instance is not None else "", has_it=has_it)
            disk = self._teller.change(disk, lambda now: admitted.noted_in(now, name))
            self._claims.hold(disk, admitted.claim)
            if not has_it:
                self._require_free(admitted, machine)
            if not plugged:
                self._machines.put_disks(with_disk(machine, disk, read_only=admitted.read_only))
                log.info("plugged", extra={"guest_disk": key_of(disk), "machine": name})
            if self._has_ended(disk):
                raise Busy(f"AoEGuestDisk {key_of(disk)} has ended meanwhile")
            self._told(disk, instance)
        except AoECsiError as error:
            if self._has_ended(disk):
                # Another copy of this role came to the end, and did not see what came after that.
                if not self._disks.is_definition_going():
                    self._take_back(disk)
                return None
            if isinstance(error, Busy):
                return SOON_S
            disk = self._teller.refuses(disk, "Attached", error)
            if not has_it and not is_passing(error):
                self._claims.let_go(disk)
            return _PLUGGING_S if is_passing(error) else again_s(error)
        return None

    def _require_free(self, admitted: Admitted, machine: VirtualMachine) -> None:
        """Check that neither the machine nor anybody else has the volume, unless all of them read: KubeVirt would give
        it to both. Raises: InUse, NotFound, Unreachable."""
        own = next((one["name"] for one in machine.volumes if claim_of(one) == admitted.claim.name), None)
        if own is not None:
            raise InUse(
                f"{machine} has {admitted.claim} already, as volume {own} of its own spec; remove that there, or "
                "delete this"
            )
        grants = self._holders.get_volume(admitted.volume_id).grants
        if grants and not (admitted.read_only and not any(one.writable for one in grants)):
            raise InUse(
                f"volume {admitted.volume_id} is in use on {', '.join(sorted({str(one.node) for one in grants}))}; end "
                "the pods, or the guest, that use it there"
            )

    def _has_ended(self, disk: AoEGuestDisk) -> bool:
        now = find_same(self._disks, disk)
        return now is None or GRANT_FINALIZER not in now.metadata.finalizers

    def _take_back(self, disk: AoEGuestDisk) -> None:
        """Leave nothing of a disk that is gone. KubeVirt writes to its machines, too. Raises: Busy when it does so all
        the time; Unreachable."""
        for _ in range(_TRIES):
            try:
                self._take_out(disk)
                self._claims.let_go(disk)
            except (Busy, NotFound):
                continue
            return
        raise Busy(f"what was made for AoEGuestDisk {key_of(disk)} cannot be taken back; looking again")

    def _told(self, disk: AoEGuestDisk, instance: Instance | None) -> None:
        """Say what has become of a disk that is in its machine's spec. Raises: Unfinished until the guest has it."""
        machine, serial = f"virtual machine {_machine_name(disk)}", disk.status.serial
        if instance is None:
            told = f"in the spec of {machine}, which does not run; serial {serial}"
            self._teller.holds(disk, "Attached", told, lambda now: replace(now, hosts=()))
            return
        state = instance.states.get(volume_name(disk))
        if state is None:
            raise Unfinished(
                f"KubeVirt has not taken note of it for {machine} yet; it does with the feature gate "
                "DeclarativeHotplugVolumes, without HotplugVolumes, and unless the machine says "
                "updateVolumesStrategy: Migration"
            )
        if state.phase != READY:
            raise Unfinished(
                f"KubeVirt is bringing it to {machine} on node {instance.node} ({_how_far(state)}); kubectl get events "
                f"-n {disk.metadata.namespace} says what it waits for"
            )
        where = HostStatus(host=instance.node, here=True, target=state.target)
        size = quantity(state.size_bytes) if state.size_bytes else None
        told = f"disk {state.target} of {machine} on node {instance.node}, serial {serial}"
        self._teller.holds(disk, "Attached", told, lambda now: replace(now, hosts=(where,), size=size or now.size))

    # --- out of it ----------------------------------------------------------------------------------------------

    def _end(self, disk: AoEGuestDisk) -> float | None:
        if GRANT_FINALIZER not in disk.metadata.finalizers:
            return None
        try:
            if self._disks.is_definition_going():
                # Nobody has asked for its end: the machine keeps the disk, and the claim is held.
                log.warning("its definition is going; its machine keeps the disk", extra={"guest_disk": key_of(disk)})
            elif disk.status.volume:
                self._unplug(disk)
                self._claims.let_go(disk)
        except Busy:
            return SOON_S
        except AoECsiError as error:
            self._teller.refuses(disk, "Released", error)
            return _PLUGGING_S
        kept = (one for one in disk.metadata.finalizers if one != GRANT_FINALIZER)
        self._disks.put_finalizers(disk, tuple(kept))
        return None

    def _unplug(self, disk: AoEGuestDisk) -> None:
        """Take the disk out of its machine's spec, and see whether the guest has let go. Raises: Unfinished until that
        was seen by a look that found nothing in the spec any more; Busy, Unreachable."""
        name = _machine_name(disk)
        machine = self._machines.find_machine(disk.metadata.namespace, name)
        if machine is not None and _other_claim(machine, disk) is not None:
            return  # Its own volume's name is somebody else's by now, and stays.
        if self._take_out(disk):
            raise Unfinished(f"virtual machine {name} was asked to let go of it")
        instance = self._find_instance(disk)
        if instance is None or not _is_in(instance, disk):
            return
        if not instance.running:
            raise Unfinished(
                f"virtual machine {name} does not start for want of it, and KubeVirt takes nothing out of a machine "
                "that does not run; stop the machine"
            )
        state = instance.states.get(volume_name(disk))
        how_far = f" ({_how_far(state)})" if state is not None and state.phase != READY else ""
        raise Unfinished(
            f"virtual machine {name} has not let go of it yet{how_far}; unmount it in the guest, or stop the machine"
        )

    def _take_out(self, disk: AoEGuestDisk) -> bool:
        """Take the disk out of its machine's spec; say whether anything of it was there."""
        machine = self._machines.find_machine(disk.metadata.namespace, _machine_name(disk))
        if machine is None or _other_claim(machine, disk) is not None:
            return False
        without = without_disk(machine, volume_name(disk))
        if without == machine:
            return False
        self._machines.put_disks(without)
        log.info("unplugged", extra={"guest_disk": key_of(disk), "machine": machine.name})
        return True

    # --- parts --------------------------------------------------------------------------------------------------

    def _find_instance(self, disk: AoEGuestDisk) -> Instance | None:
        return self._machines.find_instance(disk.metadata.namespace, _machine_name(disk))


def _is_in(instance: Instance | None, disk: AoEGuestDisk) -> bool:
    """Say whether what runs of a machine has a disk, or is to have it."""
    return instance is not None and volume_name(disk) in instance.volumes


def _other_claim(machine: VirtualMachine, disk: AoEGuestDisk) -> str | None:
    """Return the claim that somebody has put where the disk's was, as restoring a machine does; None when none is."""
    volume = find_volume(machine, volume_name(disk))
    return None if volume is None or claim_of(volume) == disk.spec.claim else str(claim_of(volume))


def _require_no_other(machine: VirtualMachine, disk: AoEGuestDisk) -> None:
    """Raises: Conflict when a machine has another claim where the disk's was."""
    if (other := _other_claim(machine, disk)) is not None:
        raise Conflict(
            f"somebody has put claim {other} where {machine} had this disk's, {disk.spec.claim}; delete this: the "
            "machine keeps that"
        )


def _how_far(state: VolumeState) -> str:
    return ": ".join(one for one in (state.phase, state.message) if one)


def _machine_name(disk: AoEGuestDisk) -> str:
    assert disk.spec.kubevirt is not None, "only disks of KubeVirt's machines come here"
    return disk.spec.kubevirt.virtual_machine
