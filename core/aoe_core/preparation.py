"""Host preparation: what a machine must have before it exports or attaches, written as plain files and units.

`wanted` is pure: settings in, files out. `prepare` writes those that differ, reloads what reads them, and gives
unowned volume groups of the configured pools this host's system ID. It can be run again at any time; it never
touches a running export. What it cannot decide for an administrator (an lvmlocal.conf of their own) it reports.
"""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aoe_core.errors import AoECsiError, CommandFailed
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Runner
from aoe_core.host.files import replace_durably, sync_directory
from aoe_core.host.ingress import boot_ruleset, interfaces_in
from aoe_core.host.initiator import LinuxInitiator
from aoe_core.host.lvm import HostLvm
from aoe_core.host.runner import HostRunner
from aoe_core.settings import Settings

log = logging.getLogger(__name__)

LIBEXEC = "/usr/local/lib/aoe-csi"
_UNITS = "/etc/systemd/system"
_RULES = "/etc/aoe-csi/ingress.nft"
_LVM_LOCAL = Path("/etc/lvm/lvmlocal.conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile:
    """A file the host must have."""

    path: str
    text: str
    mode: int = 0o644
    by_default: bool = False
    """Only where there is none: somebody else on this machine may answer for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What was done, or would be, and what a person must do."""

    done: tuple[str, ...]
    remaining: tuple[str, ...]


def wanted(settings: Settings, others: Collection[str] = ()) -> tuple[HostFile, ...]:
    """Return every file this machine must have. `others`: interfaces that another role on it has rules for."""
    # In one order, whoever writes first: what two roles make of the same interfaces is one text.
    interfaces = sorted({*(san.interface for san in settings.san), *others})
    files = [
        HostFile(path=_RULES, text=boot_ruleset(interfaces)),
        HostFile(path=f"{_UNITS}/aoe-csi-ingress.service", text=_template("aoe-csi-ingress.service", settings)),
        # Also on machines that only export: somebody's modprobe must not make them attach from every interface.
        HostFile(
            path="/etc/modprobe.d/aoe-csi.conf",
            text=_template("aoe-csi-modprobe.conf", settings),
            # In a cluster the node server of a machine that attaches as well has its own to say.
            by_default=not settings.compute and settings.known_node is None,
        ),
        HostFile(path="/etc/udev/rules.d/10-aoe-csi.rules", text=_template("aoe-csi.rules", settings)),
    ]
    if settings.pool:
        files += [
            HostFile(path=f"{_UNITS}/aoe-csi-export@.service", text=_template("aoe-csi-export@.service", settings)),
            HostFile(path=f"{_UNITS}/aoe-csi-exports.service", text=_template("aoe-csi-exports.service", settings)),
            HostFile(path=f"{LIBEXEC}/export-wrapper", text=_template("export-wrapper", settings), mode=0o755),
            HostFile(path=f"{LIBEXEC}/start-exports", text=_template("start-exports", settings), mode=0o755),
            HostFile(path="/etc/udev/rules.d/57-aoe-csi.rules", text=_template("aoe-csi-volumes.rules", settings)),
        ]
    return tuple(files)


def prepare(
    settings: Settings, *, check: bool = False, shared: bool = False, runner: Runner | None = None
) -> Preparation:
    """Bring the host to what `wanted` says; with `check`, only say what differs. Raises: CommandFailed.

    `shared`: another role may prepare this host too, with other SANs; rules of interfaces that only it knows stay.
    """
    runner = runner or HostRunner()
    others = _interfaces_with_rules() if shared else frozenset()
    done: list[str] = []
    remaining: list[str] = []
    differing = [file for file in wanted(settings, others) if not _matches(file)]
    for file in differing:
        done.append(f"write {file.path}")
        if not check:
            _write(file)
    if not check and differing:
        _run(runner, ["systemctl", "daemon-reload"])
        _run(runner, ["udevadm", "control", "--reload"])
    _prepare_lvm(settings, runner, done, remaining, check=check)
    units = ["aoe-csi-ingress.service", *(["aoe-csi-exports.service"] if settings.pool else [])]
    for unit in units:
        if runner.run(["systemctl", "is-enabled", "--quiet", unit], timeout_s=30).code != 0:
            done.append(f"enable {unit}")
            if not check:
                _run(runner, ["systemctl", "enable", "--quiet", unit])
    if not check:
        _make_durable({Path(file.path).parent for file in wanted(settings, others)})
    if runner.run(["systemctl", "is-active", "--quiet", units[0]], timeout_s=30).code != 0:
        done.append(f"start {units[0]}")
        if not check:
            _run(runner, ["systemctl", "start", units[0]])
    elif not check and any("ingress" in file.path for file in differing):
        # One transaction per interface: the pins of what is staged stay.
        _run(runner, ["systemctl", "restart", units[0]])
    if not check:
        _load_module(settings, runner, done)
    return Preparation(done=tuple(done), remaining=tuple(remaining))


def try_to_prepare(settings: Settings, runner: Runner) -> None:
    """Prepare the host, which another role may share; what fails is logged, and preflight's to tell."""
    try:
        outcome = prepare(settings, shared=True, runner=runner)
    except AoECsiError as error:
        log.error("host is not prepared", extra={"error": str(error)})
    else:
        log.info("host is prepared", extra={"done": list(outcome.done), "by_hand": list(outcome.remaining)})


def _interfaces_with_rules() -> frozenset[str]:
    try:
        text = Path(_RULES).read_text(encoding="utf-8")
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{_RULES} cannot be read ({error}); remove it, it is written anew") from error
    return interfaces_in(text)


def _prepare_lvm(settings: Settings, runner: Runner, done: list[str], remaining: list[str], *, check: bool) -> None:
    text = _template("lvmlocal.conf", settings)
    present = _LVM_LOCAL.read_text(encoding="utf-8") if _LVM_LOCAL.exists() else ""
    if present != text:
        # The distribution's file holds an empty `local` section and comments only.
        own = re.sub(r"(?m)^\s*#.*$|local\s*\{|\}|\s", "", present)
        if own and "aoe-csi" not in present:
            remaining.append(f"{_LVM_LOCAL} has settings of yours; merge these into it by hand:\n{text}")
        else:
            done.append(f"write {_LVM_LOCAL}")
            if not check:
                _write(HostFile(path=str(_LVM_LOCAL), text=text))
    if not settings.pool or check:
        return
    lvm = HostLvm(runner, waits_for_others=False)
    system_id = lvm.system_id()
    ours = {pool.volume_group for pool in settings.pool}
    for group in (one for one in lvm.report().groups if one.name in ours):
        if not group.system_id:
            done.append(f"give volume group {group.name} the system ID {system_id}")
            _run(runner, ["vgchange", "--yes", "--systemid", system_id, group.name])
        # And how it was made, perhaps a moment ago.
        lvm.flush(group.name)


def _load_module(settings: Settings, runner: Runner, done: list[str]) -> None:
    if not settings.compute or not settings.san:
        return
    if not Path("/sys/module/aoe").exists():
        done.append("load module aoe")
    initiator = LinuxInitiator(runner, BlockingCalls())
    initiator.prepare([san.interface for san in settings.san], settings.initiator.deadsecs)


def _template(name: str, settings: Settings) -> str:
    text = resources.files("aoe_core.host").joinpath("files", name).read_text(encoding="utf-8")
    return (
        text.replace("@STATE@", settings.state_directory)
        .replace("@LIBEXEC@", LIBEXEC)
        # An empty list would mean every interface.
        .replace("@INTERFACES@", ",".join(san.interface for san in settings.san) or "none")
        .replace("@DEADSECS@", str(settings.initiator.deadsecs))
        .replace("@VOLUME_GROUPS@", "|".join(sorted({pool.volume_group for pool in settings.pool})))
    )


def _matches(file: HostFile) -> bool:
    path = Path(file.path)
    if file.by_default and path.exists():
        return True
    try:
        return path.read_text(encoding="utf-8") == file.text and path.stat().st_mode & 0o777 == file.mode
    except (OSError, UnicodeDecodeError):
        return False


def _write(file: HostFile) -> None:
    path = Path(file.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, file.text, file.mode)
    except OSError as error:
        raise CommandFailed(
            f"{file.path} cannot be written ({error.strerror}); run this as root on the host"
        ) from error


def _make_durable(directories: set[Path]) -> None:
    """Also what systemctl links, and what a process made that died before it could see to it.

    A storage machine that loses power a minute after it was prepared must know its exports when it comes back.
    """
    wants = Path(_UNITS) / "multi-user.target.wants"
    try:
        for directory in sorted({*directories, wants} | {one.parent for one in (*directories, wants)}):
            sync_directory(directory)
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be made durable ({error.strerror}); look at its disk") from error


def _run(runner: Runner, argv: list[str]) -> None:
    finished = runner.run(argv, timeout_s=60)
    if finished.code != 0:
        raise CommandFailed(f"{' '.join(argv)} failed (exit {finished.code}): {finished.complaint}")
