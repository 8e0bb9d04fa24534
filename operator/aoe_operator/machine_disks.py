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
from aoe_core.model import AccessMode, VolumeId, VolumeStatus
from aoe_core.resources.claims import ClaimStore
from aoe_core.resources.fields import quantity
from aoe_core.resources.guest_access import AccessRules, require_machine_access
from aoe_core.resources.guest_disk import (
    AoEGuestDisk,
    GuestDiskStore,
    HostStatus,
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
from aoe_operator.guest_claims import Admitted
from aoe_operator.guest_disk_role import GuestDiskRole
from aoe_operator.guest_status import again_s, is_passing

log = logging.getLogger(__name__)

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


class MachineDisks(GuestDiskRole):
    """Plugs guests' disks into KubeVirt's machines."""

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
        super().__init__(disks, claim_store, rules=rules, now_s=now_s, end_again_s=_PLUGGING_S)
        self._machines = machines
        self._holders = holders

    def follow(self) -> None:
        """See what has become of every disk: nobody is called when a machine starts, stops, or loses one. Raises:
        Unreachable."""
        for disk in self._disks.list():
            if disk.spec.kubevirt is not None and not is_going(disk):
                namespace, name = disk.metadata.namespace, disk.metadata.name
                attempt(partial(self.reconcile, namespace, name), f"the machine of {namespace}/{name}")

    # --- into the machine ---------------------------------------------------------------------------------------

    def _give(self, disk: AoEGuestDisk) -> float | None:
        namespace, name = disk.metadata.namespace, _machine_name(disk)
        has_it = True  # As far as is known: else something of it might be let go.
        try:
            machine, instance = self._find_machine(disk), self._find_instance(disk)
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
            if not has_it:
                _require_pluggable(admitted, machine)
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
            return self._failed(disk, error, partial(self._refused, has_it=has_it))
        return None

    def _refused(self, disk: AoEGuestDisk, error: AoECsiError, *, has_it: bool) -> float:
        """Say so, and hold no claim for a guest that has not got the disk."""
        disk = self._teller.refuses(disk, "Attached", error)
        if is_passing(error):
            return _PLUGGING_S
        if not has_it:
            self._claims.let_go(disk)
        return again_s(error)

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
                "DeclarativeHotplugVolumes, without HotplugVolumes"
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

    def _release(self, disk: AoEGuestDisk) -> None:
        if disk.status.volume:
            self._unplug(disk)
            self._claims.let_go(disk)

    def _take_back(self, disk: AoEGuestDisk) -> None:
        machine = self._find_machine(disk)
        if machine is not None and _other_claim(machine, disk) is None:
            self._take_out(machine, disk)
        self._claims.let_go(disk)

    def _unplug(self, disk: AoEGuestDisk) -> None:
        """Take the disk out of its machine's spec, and see whether the guest has let go. Raises: Unfinished until that
        was seen by a look that found nothing in the spec any more; Busy, Unreachable."""
        name, machine = _machine_name(disk), self._find_machine(disk)
        if machine is not None and _other_claim(machine, disk) is not None:
            return  # Its own volume's name is somebody else's by now, and stays.
        if machine is not None and self._take_out(machine, disk):
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

    def _take_out(self, machine: VirtualMachine, disk: AoEGuestDisk) -> bool:
        """Take the disk out of its machine's spec; say whether anything of it was there."""
        without = without_disk(machine, volume_name(disk))
        if without == machine:
            return False
        self._machines.put_disks(without)
        log.info("unplugged", extra={"guest_disk": key_of(disk), "machine": machine.name})
        return True

    # --- parts --------------------------------------------------------------------------------------------------

    def _find_machine(self, disk: AoEGuestDisk) -> VirtualMachine | None:
        return self._machines.find_machine(disk.metadata.namespace, _machine_name(disk))

    def _find_instance(self, disk: AoEGuestDisk) -> Instance | None:
        return self._machines.find_instance(disk.metadata.namespace, _machine_name(disk))


def _is_in(instance: Instance | None, disk: AoEGuestDisk) -> bool:
    """Say whether what runs of a machine has a disk, or is to have it."""
    return instance is not None and volume_name(disk) in instance.volumes


def _other_claim(machine: VirtualMachine, disk: AoEGuestDisk) -> str | None:
    """Return the claim that somebody has put where the disk's was, as restoring a machine does; None when none is."""
    volume = find_volume(machine, volume_name(disk))
    return None if volume is None or claim_of(volume) == disk.spec.claim else str(claim_of(volume))


def _require_pluggable(admitted: Admitted, machine: VirtualMachine) -> None:
    """Check that KubeVirt can plug a claim into a machine that runs, and what comes after it. Raises: Unsupported."""
    if admitted.mode is AccessMode.SINGLE_NODE_SINGLE_WRITER:
        raise Unsupported(
            f"{admitted.claim} is ReadWriteOncePod, and KubeVirt brings each change of what is plugged by another pod, "
            "which would want it too: no disk could come to the machine after this one; use a claim that is "
            "ReadWriteOnce"
        )
    if machine.migrates_volumes:
        raise Unsupported(
            f"{machine} has updateVolumesStrategy: Migration, with which KubeVirt neither plugs nor unplugs; take that "
            "out of its spec"
        )


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
