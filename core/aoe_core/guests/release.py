"""A running guest lets go of a disk: asked, and awaited; and so is the end of what libvirt does about it.

Awaited by looking at its XML and not by libvirt's events: an event is lost with the process that waits for it, or with
a daemon that restarts; what the XML says is not. So it costs a look a second, and needs no thread of its own.
"""

from collections.abc import Callable

from aoe_core.errors import CommandFailed, InUse, NotFound, Unfinished
from aoe_core.guests.disk import find_disk
from aoe_core.guests.host import GuestHost

LET_GO_S = 160.0
"""How long a guest may take before the caller is told: eight requests of 20 s, as Nova has it."""
_ASK_AGAIN_S = 20.0
"""A guest that was still booting has lost the first request; QEMU takes another one after some seconds."""
_LOOK_S = 1.0
CLOSED_S = 30.0
"""How long a device may stay open after no domain has it any more; QEMU closes it at once, unless it waits for I/O."""
_CLOSE_LOOK_S = 0.5
Tell = Callable[[str], None]
"""Takes a line for the person who waits."""


def silently(_: str) -> None:
    """Tell nobody."""


def await_release(
    host: GuestHost,
    uuid: str,
    alias: str,
    *,
    ask: Callable[[], None],
    wait_s: float = LET_GO_S,
    tell: Tell = silently,
) -> None:
    """Ask a guest to let go of a disk, by `ask`, until it has, or has ended, or is gone.

    Raises: Unfinished when it still has it after `wait_s`; Unreachable when libvirt does not answer; Busy when another
    operation has the domain.
    """
    ends_s, asked_s, refusal = host.now_s() + wait_s, None, ""
    while True:
        try:
            domain = host.hypervisor.get_domain(uuid)
        except NotFound:
            return
        disk, now_s = find_disk(domain.live, alias), host.now_s()
        if disk is None:
            return
        if now_s >= ends_s:
            raise Unfinished(
                f"guest {domain.name} keeps disk {disk.target} ({alias}) after {wait_s:g} s{refusal}; unmount it there "
                "and see that the guest's system runs, or shut the guest down, then call again"
            )
        if asked_s is None or now_s - asked_s >= _ASK_AGAIN_S:
            tell(f"waiting for guest {domain.name} to let go of {disk.target}, for at most {ends_s - now_s:.0f} s")
            asked_s = now_s
            try:
                ask()
            except (NotFound, InUse):
                continue  # It let go or ended this moment: the next look says which.
            except CommandFailed as error:
                refusal = f" (libvirt: {error})"  # Perhaps it is at it already.
        host.sleep(_LOOK_S)


def await_closed(host: GuestHost, what: str, is_open: Callable[[], bool]) -> None:
    """Wait until a device that no domain has any more is closed. The link to it has to lead there until then: by it
    libvirt finds the node it takes from the guest's emulator. Raises: Unfinished."""
    ends_s = host.now_s() + CLOSED_S
    while is_open():
        if host.now_s() >= ends_s:
            raise Unfinished(
                f"{what} is gone from every domain and still open on this host after {CLOSED_S:g} s; find out with "
                "fuser -v who has it, end that, then detach it again"
            )
        host.sleep(_CLOSE_LOOK_S)
