"""The guests of this host, through libvirt: the one module that knows its Python bindings.

They are Debian's package python3-libvirt and are loaded when the first question is asked, so that machines without
guests need none. Each question opens a connection of its own and closes it: a daemon that was restarted in between is
then no case of its own, and nothing is remembered that may be stale. Every call runs in a thread of its own with a
limit, for a daemon that hangs must not take us with it; nor a guest whose emulator hangs with its storage, which holds
up a change of that guest and of no other.

Errors are told apart by libvirt's codes, never by texts, but for the one of a guest without a free slot, which has no
code. Sources: libvirt.org/html/libvirt-virterror.html, libvirt-libvirt-domain.html; libvirt 9.0, src/qemu.
"""

import logging
import uuid as uuids
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    InUse,
    NoSpace,
    NotFound,
    Unfinished,
    Unreachable,
    Unsupported,
)
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.host.disk_xml import parse_disks, render_disk

log = logging.getLogger(__name__)

URI = "qemu:///system"
_LIMIT_S = 60.0
"""For one call. libvirt itself gives up after 30 s when another operation holds the domain."""
_MOMENTS = 5
"""How often a domain that changed under a look is looked at again."""
_NO_SLOT = "No more available PCI slots"
_Result = TypeVar("_Result")


class LibvirtHypervisor:
    """Hypervisor of this host."""

    def __init__(self, calls: BlockingCalls, uri: str = URI, *, limit_s: float = _LIMIT_S) -> None:
        self._calls = calls
        self._uri = uri
        self._limit_s = limit_s

    def domains(self) -> tuple[Domain, ...]:
        """Return every domain; one that goes away meanwhile is not among them."""

        def look(api: ModuleType, connection: Any) -> tuple[Domain, ...]:
            found = []
            for handle in connection.listAllDomains():
                try:
                    found.append(_domain(api, handle))
                except api.libvirtError as error:
                    if error.get_error_code() != api.VIR_ERR_NO_DOMAIN:
                        raise
            return tuple(found)

        return self._call("the domains cannot be listed", look)

    def get_domain(self, domain: str) -> Domain:
        """Return the domain of a UUID or name."""

        def look(api: ModuleType, connection: Any) -> Domain:
            return _domain(api, _handle(api, connection, domain))

        return self._call(f"domain {domain!r} cannot be looked at", look)

    def attach_config(self, uuid: str, disk: DomainDisk) -> None:
        """Give a domain's configuration a disk."""
        self._change(
            f"disk {disk.target} cannot be put into the configuration of domain {uuid}",
            uuid,
            lambda api, handle: handle.attachDeviceFlags(render_disk(disk), api.VIR_DOMAIN_AFFECT_CONFIG),
        )

    def attach_live(self, uuid: str, disk: DomainDisk) -> None:
        """Give a running guest a disk."""
        self._change(
            f"disk {disk.target} cannot be plugged into domain {uuid}",
            uuid,
            lambda api, handle: handle.attachDeviceFlags(render_disk(disk), api.VIR_DOMAIN_AFFECT_LIVE),
        )

    def detach_config(self, uuid: str, alias: str) -> None:
        """Take a disk from a domain's configuration."""
        self._change(
            f"disk {alias} cannot be taken from the configuration of domain {uuid}",
            uuid,
            lambda api, handle: _detach(api, handle, alias, api.VIR_DOMAIN_AFFECT_CONFIG),
        )

    def ask_to_detach(self, uuid: str, alias: str) -> None:
        """Send the request and return: by alias, libvirt does not wait for the guest (virDomainDetachDeviceAlias)."""
        self._change(
            f"domain {uuid} cannot be asked to let go of disk {alias}",
            uuid,
            lambda api, handle: _detach(api, handle, alias, api.VIR_DOMAIN_AFFECT_LIVE),
        )

    def start(self, uuid: str) -> None:
        """Start a guest."""
        self._change(f"domain {uuid} cannot be started", uuid, lambda _, handle: handle.create())

    def resize(self, uuid: str, target: str, size_bytes: int) -> None:
        """Tell a running guest the size of a disk (without the flag libvirt counts KiB)."""
        self._change(
            f"disk {target} of domain {uuid} cannot be resized",
            uuid,
            lambda api, handle: handle.blockResize(target, size_bytes, api.VIR_DOMAIN_BLOCK_RESIZE_BYTES),
        )

    # --- parts --------------------------------------------------------------------------------------------------

    def _change(self, refusal: str, uuid: str, act: Callable[[ModuleType, Any], object]) -> None:
        def change(api: ModuleType, connection: Any) -> None:
            act(api, connection.lookupByUUIDString(uuid))

        self._call(refusal, change, changed_uuid=uuid)
        log.info("libvirt changed", extra={"domain": uuid})

    def _call(
        self, refusal: str, act: Callable[[ModuleType, Any], _Result], *, changed_uuid: str | None = None
    ) -> _Result:
        """Ask libvirt something, or have it change a domain."""
        api = _bindings()
        whom = f"libvirt at {self._uri}" + (f" about domain {changed_uuid}" if changed_uuid is not None else "")

        def work() -> _Result:
            try:
                connection = api.open(self._uri)
            except api.libvirtError as error:
                raise Unreachable(
                    f"libvirt does not answer at {self._uri} ({_text(error)}); look at systemctl status libvirtd, "
                    "and run this as root"
                ) from error
            try:
                return act(api, connection)
            finally:
                connection.close()

        try:
            return self._calls.run(whom, work, timeout_s=self._limit_s)
        except api.libvirtError as error:
            raise translated(api, error, refusal, changes=changed_uuid is not None) from error
        except Unfinished as error:
            hangs = f"{refusal}: libvirt at {self._uri} did not answer within {self._limit_s:g} s"
            if changed_uuid is None:
                raise Unreachable(f"{hangs}; restart libvirtd") from error
            raise Unfinished(
                f"{hangs}; its emulator may wait for storage that is away (virsh domblkerror, aoe-stat); else restart "
                "libvirtd"
            ) from error


def translated(api: ModuleType, error: Any, refusal: str, *, changes: bool) -> AoECsiError:
    """Return the project's error for one of libvirt's."""
    code, sentence = error.get_error_code(), f"{refusal}: {_text(error)}"
    if _is_lost(api, error):
        # What was asked for may have been done.
        lost = f"{sentence}; look at systemctl status libvirtd, then call again"
        return Unfinished(lost) if changes else Unreachable(lost)
    if code == api.VIR_ERR_INTERNAL_ERROR and _NO_SLOT in _text(error):
        return NoSpace(sentence)
    if code == api.VIR_ERR_NO_DOMAIN:
        return NotFound(f"{sentence}; look at virsh list --all")
    kinds: dict[int, type[AoECsiError]] = {
        api.VIR_ERR_DEVICE_MISSING: NotFound,
        api.VIR_ERR_CONFIG_UNSUPPORTED: Conflict,  # "non unique alias detected", among others.
        api.VIR_ERR_XML_ERROR: Conflict,  # "target 'vdb' duplicated for disk sources".
        api.VIR_ERR_OPERATION_INVALID: InUse,  # "not applicable at this time": not running, "target already exists".
        api.VIR_ERR_RESOURCE_BUSY: InUse,
        api.VIR_ERR_OPERATION_TIMEOUT: Busy,  # "cannot acquire state change lock".
        api.VIR_ERR_NO_SUPPORT: Unsupported,
        api.VIR_ERR_OPERATION_UNSUPPORTED: Unsupported,
        api.VIR_ERR_ARGUMENT_UNSUPPORTED: Unsupported,
    }
    return kinds.get(code, CommandFailed)(sentence)


def _bindings() -> ModuleType:
    try:
        import libvirt  # noqa: PLC0415 - only a machine with guests has it.
    except ImportError as error:
        raise CommandFailed(
            f"libvirt's Python bindings cannot be loaded ({error}): apt install python3-libvirt, and have this "
            "program's environment see Debian's packages (python3 -m venv --system-site-packages)"
        ) from error
    # Otherwise each error is also printed.
    libvirt.registerErrorHandler(lambda *_: None, None)
    api: ModuleType = libvirt
    return api


def _handle(api: ModuleType, connection: Any, domain: str) -> Any:
    try:
        return connection.lookupByUUIDString(str(uuids.UUID(domain)))
    except ValueError:
        pass
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_NO_DOMAIN:
            raise
    return connection.lookupByName(domain)


def _domain(api: ModuleType, handle: Any) -> Domain:
    """Return a domain as it is at one moment. That takes several questions, between which it may start, end or go to
    sleep: one that ended would show its configuration as what it runs with. Raises: Busy when it keeps doing so."""
    for _ in range(_MOMENTS):
        before = _standing(api, handle)
        running, persistent, saved, arriving = before
        domain = Domain(
            name=handle.name(),
            uuid=handle.UUIDString(),
            running=running,
            persistent=persistent,
            live=parse_disks(handle.XMLDesc(0)) if running else (),
            config=parse_disks(handle.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE)) if persistent else (),
            saved=saved,
            autostart=bool(handle.autostart()),
            arriving=arriving,
        )
        if _standing(api, handle) == before:
            return domain
    raise Busy(f"domain {handle.name()} starts and ends all the time; see who does so, then call again")


def _standing(api: ModuleType, handle: Any) -> tuple[bool, bool, bool, bool]:
    """Return whether a domain runs, has a configuration, has its memory on disk (also while it is about to run), and is
    about to run, or paused for a migration (virDomainPausedReason)."""
    state, reason = handle.state()
    on_its_way = (api.VIR_DOMAIN_PAUSED_STARTING_UP, api.VIR_DOMAIN_PAUSED_MIGRATION)
    return (
        bool(handle.isActive()),
        bool(handle.isPersistent()),
        bool(handle.hasManagedSaveImage()),
        state == api.VIR_DOMAIN_PAUSED and reason in on_its_way,
    )


def _detach(api: ModuleType, handle: Any, alias: str, flags: int) -> None:
    """Detach by alias. Raises: NotFound when no disk has it: libvirt 9.0 has no code for that, so its XML is asked."""
    try:
        handle.detachDeviceAlias(alias, flags)
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_INTERNAL_ERROR or _is_lost(api, error):
            raise
        xml = handle.XMLDesc(api.VIR_DOMAIN_XML_INACTIVE if flags == api.VIR_DOMAIN_AFFECT_CONFIG else 0)
        if any(disk.alias == alias for disk in parse_disks(xml)):
            raise
        raise NotFound(f"domain {handle.name()} has no disk {alias}; look at virsh dumpxml") from error


def _is_lost(api: ModuleType, error: Any) -> bool:
    """Say whether the connection broke, and not the daemon said no."""
    return error.get_error_domain() in (api.VIR_FROM_RPC, api.VIR_FROM_REMOTE)


def _text(error: Any) -> str:
    return str(error.get_error_message() or error)[:200]
