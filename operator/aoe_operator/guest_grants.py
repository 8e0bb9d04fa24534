"""The cluster role's half of a guest's disk: whether it is admitted, and the grant of its host.

It alone reads claims and the administrator's list, and writes tickets; a host is given what it needs with the grant, so
that a host's token can change nothing but the status of its own guests' disks.

    a disk is made      list → claim, bound for the host → volume into the status
                        (the host: is there such a domain? → its UUID into the status)
                        finalizer on the claim → ticket → grant into the status
    a disk is deleted   (the host lets go, and takes its finalizer off) → ticket taken back → finalizer off the claim

While a guest moves, two hosts have a grant each, and the one that is left gives its own back as in a deletion. Volume
and host are written down before anything is done with them: what there may be to take back is in the status alone.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, NotFound, Unfinished, Unreachable, Unsupported
from aoe_core.model import AccessMode, Attachment, NodeIdentity, NodeName, VolumeId
from aoe_core.resources.claims import ClaimStore
from aoe_core.resources.fields import GROUP, parse_quantity
from aoe_core.resources.guest_access import AccessRules, require_access
from aoe_core.resources.guest_disk import (
    GRANT_FINALIZER,
    AoEGuestDisk,
    GuestDiskStore,
    HostStatus,
    granted_of,
    holder_of,
    host_finalizer,
    is_going,
    key_of,
    libvirt_guest,
    on_host,
    wanted_hosts,
    with_host,
    without_host,
)
from aoe_operator.background import attempt
from aoe_operator.guest_claims import Admitted
from aoe_operator.guest_disk_role import GuestDiskRole
from aoe_operator.guest_status import again_s, is_passing

log = logging.getLogger(__name__)


class Grants(Protocol):
    """Who gives and takes grants for guests: the cluster's Provisioner."""

    def publish(
        self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode, *, read_only: bool, block: bool, guest: str
    ) -> Attachment:
        """Have a node granted a volume for a guest's disk, as large as the volume's device is now; a grant that is
        there is returned. Raises: InUse (another holder has it, or writes to it), NotFound, Unfinished, Unreachable."""

    def unpublish(self, volume_id: VolumeId, node: NodeName, *, guest: str) -> None:
        """Take the grant back that a guest's disk has, and no other. Raises: Unfinished, Unreachable."""

    def device_bytes(self, volume_id: VolumeId) -> int:
        """Return how large a volume's device is now. Raises: NotFound, Unreachable."""


class Hosts(Protocol):
    """What the cluster knows of the nodes that guests run on. Every method raises Unreachable."""

    def node_ids(self) -> Mapping[str, str]:
        """Return node → the CSI node id that our driver is registered under there."""

    def is_given_up(self, node: str) -> bool:
        """Say whether a person has declared a node lost (the taint node.kubernetes.io/out-of-service), or removed it:
        nobody there will let go of anything."""


class GuestGrants(GuestDiskRole):
    """Admits disks of libvirt's guests and has their hosts granted."""

    def __init__(
        self,
        disks: GuestDiskStore,
        claim_store: ClaimStore,
        hosts: Hosts,
        grants: Grants,
        *,
        rules: Callable[[], AccessRules],
        now_s: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        """`rules`: reads the administrator's list as it is now."""
        super().__init__(disks, claim_store, rules=rules, now_s=now_s)
        self._hosts = hosts
        self._grants = grants

    def find_grown(self) -> tuple[tuple[str, str], ...]:
        """Return the disks, by namespace and name, whose volume has grown since their host was told of its size.
        Raises: Unreachable."""
        return tuple(
            (disk.metadata.namespace, disk.metadata.name)
            for disk in self._disks.list()
            if not is_going(disk) and self._has_grown(disk)
        )

    def follow_growth(self) -> None:
        """Tell hosts of what has grown. Raises: Unreachable."""
        for namespace, name in self.find_grown():
            attempt(partial(self.reconcile, namespace, name), f"growth of {namespace}/{name}")

    def _has_grown(self, disk: AoEGuestDisk) -> bool:
        known_bytes = [parse_quantity(one.grant.size) for one in disk.status.hosts if one.grant is not None]
        if not known_bytes:
            return False
        try:
            return self._grants.device_bytes(VolumeId(disk.status.volume)) > min(known_bytes)
        except Unreachable:
            raise
        except AoECsiError:
            return False  # A volume that is lost, or on its way out, holds up no other guest's.

    # --- from a claim to a grant --------------------------------------------------------------------------------

    def _give(self, disk: AoEGuestDisk) -> float | None:
        type_, guest = "Granted", libvirt_guest(disk)
        try:
            node_ids = self._hosts.node_ids()
            if on_host(disk.status, guest.host) is None:
                _identity(node_ids, guest.host)
            admitted = self._admitted(disk)
            disk = self._noted(disk, admitted)
            if not disk.status.domain_uuid:
                return None  # Its host says whether there is such a domain, and calls with its UUID.
            self._claims.hold(disk, admitted.claim)
            disk = self._publish(disk, guest.host, admitted, node_ids)
            disk = self._teller.holds(disk, type_, f"host {guest.host} may use volume {disk.status.volume}")
            # Before anybody else is granted: there is room for two.
            type_ = "Released"
            disk = self._leave_others(disk)
            disk = self._teller.forgets(disk, "Released", *(() if guest.migrate_to else ("Migratable",)))
            if guest.migrate_to is not None:
                type_ = "Migratable"
                _require_many(admitted)
                self._require_access(disk, guest.migrate_to)
                self._publish(disk, guest.migrate_to, admitted, node_ids)
        except AoECsiError as error:
            return self._failed(disk, error, partial(self._refused, type_))
        return None

    def _refused(self, type_: str, disk: AoEGuestDisk, error: AoECsiError) -> float:
        """Say so, and leave nothing of the try: neither a ticket nor a claim that is held."""
        disk = self._teller.refuses(disk, type_, error)
        if not is_passing(error):
            for one in disk.status.hosts:
                if one.grant is None:
                    disk = self._take_back_from(disk, one.host)
            if not disk.status.hosts:
                self._claims.let_go(disk)
        return again_s(error)

    def _admitted(self, disk: AoEGuestDisk) -> Admitted:
        """Return what the disk may have, after checking that it may. What has a grant was admitted: a list that changes
        later takes nothing from a guest."""
        guest = libvirt_guest(disk)
        self._require_access(disk, guest.host)
        return self._claims.admit(disk, node=guest.host, has_it=bool(disk.status.hosts))

    def _require_access(self, disk: AoEGuestDisk, host: str) -> None:
        """Check the administrator's list, unless the host has its grant already. Raises: Invalid."""
        entry = on_host(disk.status, host)
        if entry is None or entry.grant is None:
            guest = libvirt_guest(disk)
            require_access(self._rules(), namespace=disk.metadata.namespace, host=host, domain=guest.domain)

    def _noted(self, disk: AoEGuestDisk, admitted: Admitted) -> AoEGuestDisk:
        """Write down which volume it is, before anything is done with it."""
        where = libvirt_guest(disk)
        guest = f"{where.host}/{where.domain}"
        return self._teller.change(disk, lambda now: admitted.noted_in(now, guest))

    def _publish(self, disk: AoEGuestDisk, host: str, admitted: Admitted, node_ids: Mapping[str, str]) -> AoEGuestDisk:
        """Have a host granted, and write the grant down. Raises: NotFound also when the disk is gone."""
        entry = on_host(disk.status, host)
        try:
            node = _identity(node_ids, host)
        except NotFound:
            if entry is not None and entry.grant is not None:
                return disk  # Its node server is away for a while; that takes nothing from a guest.
            raise
        if entry is None:
            disk = self._teller.change(disk, lambda now: with_host(now, HostStatus(host=host)))
        attachment = self._grants.publish(
            admitted.volume_id,
            node,
            admitted.mode,
            read_only=admitted.read_only,
            block=True,
            guest=holder_of(disk),
        )
        grant = granted_of(attachment)
        disk = self._teller.change(
            disk, lambda now: with_host(now, replace(on_host(now, host) or HostStatus(host=host), grant=grant))
        )
        if GRANT_FINALIZER not in disk.metadata.finalizers:
            raise NotFound(f"AoEGuestDisk {key_of(disk)} has ended meanwhile")
        return disk

    def _leave_others(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        """Take the grants back of hosts that the guest has left, or was not to move to after all."""
        for one in disk.status.hosts:
            if one.host not in wanted_hosts(disk):
                self._require_let_go(disk, one.host)
                disk = self._take_back_from(disk, one.host)
        return disk

    # --- the end ------------------------------------------------------------------------------------------------

    def _release(self, disk: AoEGuestDisk) -> None:
        for host in _hosts_of(disk):
            self._require_let_go(disk, host)
        self._take_back(disk)

    def _require_let_go(self, disk: AoEGuestDisk, host: str) -> None:
        """Check that a host has let go, or that a person has given it up. Raises: Unfinished."""
        if host_finalizer(host) not in disk.metadata.finalizers:
            return
        if not self._hosts.is_given_up(host):
            entry = on_host(disk.status, host)
            why = entry.trouble if entry is not None else ""
            raise Unfinished(
                f"host {host} has not let go of volume {disk.status.volume} yet: {why or 'it says nothing'}. If it is "
                f"lost for good: kubectl taint node {host} node.kubernetes.io/out-of-service=lost:NoExecute"
            )
        log.warning("a host is given up; its grant is taken back", extra={"guest_disk": key_of(disk), "host": host})

    def _take_back(self, disk: AoEGuestDisk) -> None:
        """Take every ticket back, then let go of the claim. Raises: Busy, Unfinished, Unreachable."""
        for host in _hosts_of(disk) if disk.status.volume else ():
            self._grants.unpublish(VolumeId(disk.status.volume), NodeName(host), guest=holder_of(disk))
        self._claims.let_go(disk)

    def _take_back_from(self, disk: AoEGuestDisk, host: str) -> AoEGuestDisk:
        """Take one host's ticket back, and forget the host. Its grant goes from the status first, and only from the one
        that was read: nobody shall use, or be promised, what is being revoked. Raises: Busy, NotFound, Unfinished,
        Unreachable."""
        entry = on_host(disk.status, host)
        if entry is not None and entry.grant is not None:
            status = with_host(disk.status, replace(entry, grant=None))
            disk = self._disks.update_status(replace(disk, status=status))
        self._grants.unpublish(VolumeId(disk.status.volume), NodeName(host), guest=holder_of(disk))
        finalizers = tuple(one for one in disk.metadata.finalizers if one != host_finalizer(host))
        if host not in wanted_hosts(disk) and finalizers != disk.metadata.finalizers:
            disk = self._disks.put_finalizers(disk, finalizers)  # Of a host that was given up.
        return self._teller.change(disk, lambda now: without_host(now, host))


def _identity(node_ids: Mapping[str, str], host: str) -> NodeIdentity:
    """Return a host as it is registered. Raises: NotFound."""
    node_id = node_ids.get(host)
    if node_id is None:
        raise NotFound(
            f"host {host} is no compute node of {GROUP}: its kubelet has no driver of that name; see that the node "
            "exists, and that its aoe-csi-node pod is ready"
        )
    return NodeIdentity.parse(node_id)


def _require_many(admitted: Admitted) -> None:
    """Check that two hosts may have a volume at once. Raises: Unsupported."""
    if not admitted.mode.many_nodes:
        raise Unsupported(
            f"{admitted.claim} is for one node at a time, and while a guest moves two have it; live migration takes a "
            "claim that is ReadWriteMany. Remove libvirt.migrateTo; shut the guest down to move it"
        )


def _hosts_of(disk: AoEGuestDisk) -> tuple[str, ...]:
    """Return the hosts that may have something of a disk."""
    return tuple(sorted({*wanted_hosts(disk), *(one.host for one in disk.status.hosts)}))
