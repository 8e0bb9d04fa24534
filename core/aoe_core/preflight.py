"""Preflight: what is missing on this machine before it can export or attach, and what to do about it.

Reads only. Every check is one finding with a severity, a fact and a remedy, so that the CSI node server, the operator
and a person see the same words.
"""

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aoe_core.errors import AoECsiError
from aoe_core.host.contracts import Runner
from aoe_core.host.lvm import HostLvm
from aoe_core.host.runner import HostRunner
from aoe_core.preparation import prepare
from aoe_core.settings import San, Settings
from aoe_core.volumes.pools import find_problem


class Severity(enum.Enum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """Works, with a risk or a cost that is said."""
    FAILURE = "failure"
    """Must be mended before volumes are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked fact."""

    check: str
    severity: Severity
    fact: str
    remedy: str = ""


JUMBO_MTU = 8228
"""36 bytes of AoE and Ethernet headers around 8,192 bytes of data: the least MTU whose frames carry two pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """A flaw of the kernel's aoe driver that is mended in every release from `mended_in` on, and in stable ones."""

    name: str
    what: str
    mended_in: tuple[int, int, int]
    stable: tuple[tuple[int, int, int], ...]


FLAWS = (
    Flaw(
        name="CVE-2024-26898",
        what="use after free when a device goes away",
        mended_in=(6, 9, 0),
        stable=((5, 10, 214), (5, 15, 153), (6, 1, 83), (6, 6, 23), (6, 7, 11), (6, 8, 2)),
    ),
    Flaw(
        name="CVE-2024-49982",
        what="use after free in more places",
        mended_in=(6, 12, 0),
        stable=((5, 10, 227), (5, 15, 168), (6, 1, 113), (6, 6, 55), (6, 10, 14), (6, 11, 3)),
    ),
)
"""drivers/block/aoe, by the kernel's own CVE announcements."""


def run(settings: Settings, runner: HostRunner | None = None, *, shared: bool = False) -> tuple[Finding, ...]:
    """Check this machine against what its configuration wants of it. `shared`: as `preparation.prepare` has it."""
    runner = runner or HostRunner()
    findings = [
        *_programs(settings, runner),
        *_prepared(settings, runner, shared=shared),
        *judge_kernel(_kernel_release()),
    ]
    for san in settings.san:
        findings.extend(_interface(san))
    findings.extend(find_stacked(settings.san))
    if settings.pool:
        findings.extend(_pools(settings, runner))
    if settings.compute and settings.san:
        findings.extend(_module(settings))
    return tuple(findings)


def _programs(settings: Settings, runner: HostRunner) -> Iterable[Finding]:
    needed = {"nft": "nftables", "systemctl": "systemd"}
    if settings.pool:
        needed |= {
            "lvm": "lvm2", "systemd-run": "systemd", "dmsetup": "dmsetup", "blkid": "util-linux", "flock": "util-linux",
            "setpriv": "util-linux", "unshare": "util-linux", settings.exports.exporter: "vblade",
        }  # fmt: skip
        if any(pool.thin_pool for pool in settings.pool):
            needed |= {"thin_check": "thin-provisioning-tools"}
    if settings.compute:
        needed |= {
            "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs",
            "xfs_growfs": "xfsprogs", "mount": "mount", "blkid": "util-linux",
        }  # fmt: skip
    missing = {program: package for program, package in needed.items() if not runner.has(program)}
    for program, package in missing.items():
        yield Finding(
            check="programs",
            severity=Severity.FAILURE,
            fact=f"{program} is not installed",
            remedy=f"install package {package}",
        )
    if not missing:
        yield Finding(check="programs", severity=Severity.OK, fact=f"all {len(needed)} programs are installed")


def _prepared(settings: Settings, runner: Runner, *, shared: bool) -> Iterable[Finding]:
    try:
        preparation = prepare(settings, check=True, shared=shared, runner=runner)
    except AoECsiError as error:
        yield Finding(check="preparation", severity=Severity.FAILURE, fact=str(error), remedy="mend that first")
        return
    for item in preparation.done:
        yield Finding(
            check="preparation", severity=Severity.FAILURE, fact=f"not done: {item}", remedy="run aoe-csi prepare-host"
        )
    for item in preparation.remaining:
        yield Finding(check="preparation", severity=Severity.FAILURE, fact=item, remedy="do it by hand")
    if not preparation.done and not preparation.remaining:
        yield Finding(check="preparation", severity=Severity.OK, fact="units, rules and module options stand")


def is_mended(flaw: Flaw, release: str) -> bool | None:
    """Say whether a kernel has a flaw mended; None when its version cannot be read."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if match is None:
        return None
    version = (int(match[1]), int(match[2]), int(match[3] or 0))
    if version >= flaw.mended_in:
        return True
    return any(version[:2] == first[:2] and version >= first for first in flaw.stable)


def judge_kernel(release: str) -> Iterable[Finding]:
    """Name each known flaw of the aoe driver that a kernel has, or may have."""
    found = [(flaw, is_mended(flaw, release)) for flaw in FLAWS]
    for flaw, mended in found:
        if not mended:
            yield Finding(
                check="kernel",
                severity=Severity.WARNING,
                fact=f"{release} {'may lack' if mended is None else 'lacks'} the fix of {flaw.name} (aoe, {flaw.what})",
                remedy=f"update the kernel: {flaw.mended_in[0]}.{flaw.mended_in[1]}, or a stable release of 2025 on",
            )
    if all(mended for _, mended in found):
        yield Finding(check="kernel", severity=Severity.OK, fact=f"{release} has the aoe driver's known flaws mended")


def _kernel_release() -> str:
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="ascii").strip()
    # A distribution's own number (6.1.0-56) hides the stable release; its build date line tells.
    if re.match(r"\d+\.\d+\.0-\d", release):
        version = Path("/proc/version").read_text(encoding="utf-8")
        stable = re.search(r"Debian (\d+\.\d+\.\d+)-\d+ \(", version)
        release = stable[1] if stable else release
    return release


def _interface(san: San) -> Iterable[Finding]:
    base = Path("/sys/class/net") / san.interface
    check = f"san {san.name}"
    if not base.exists():
        yield Finding(
            check=check,
            severity=Severity.FAILURE,
            fact=f"interface {san.interface} does not exist",
            remedy="correct `interface` in the configuration, or create it",
        )
        return
    mtu = int((base / "mtu").read_text(encoding="ascii"))
    state = (base / "operstate").read_text(encoding="ascii").strip()
    if (base / "brport").exists():
        yield Finding(
            check=check,
            severity=Severity.FAILURE,
            fact=f"{san.interface} is a bridge port, so its frames never reach an exporter or the initiator",
            remedy="give the SAN a NIC, a bond or a VLAN of its own",
        )
    if state == "down":
        yield Finding(
            check=check,
            severity=Severity.FAILURE,
            fact=f"{san.interface} is down",
            remedy=f"ip link set {san.interface} up",
        )
    if mtu < JUMBO_MTU:
        yield Finding(
            check=check,
            severity=Severity.WARNING,
            fact=f"{san.interface} has MTU {mtu}: frames of {(mtu - 36) // 512 * 512} bytes",
            remedy="set MTU 9000 on every NIC and switch port of this SAN",
        )
    if state != "down" and mtu >= JUMBO_MTU:
        yield Finding(check=check, severity=Severity.OK, fact=f"{san.interface} is up with MTU {mtu}")


def find_stacked(sans: Iterable[San], sys: Path = Path("/sys")) -> Iterable[Finding]:
    """Find SANs of which one's interface lies on the other's: a tagged frame passes the lower one's rules.

    Source: Documentation/ABI/testing/sysfs-class-net, `lower_<name>`.
    """
    by_interface = {san.interface: san for san in sans}
    for san in by_interface.values():
        for lower in sorted((sys / "class/net" / san.interface).glob("lower_*")):
            below = by_interface.get(lower.name.removeprefix("lower_"))
            if below is not None:
                yield Finding(
                    check=f"san {san.name}",
                    severity=Severity.FAILURE,
                    fact=f"{san.interface} lies on {below.interface}, which is SAN {below.name} itself",
                    remedy="give each SAN a NIC, or a VLAN of its own on a NIC that is no SAN",
                )


def _pools(settings: Settings, runner: Runner) -> Iterable[Finding]:
    try:
        report = HostLvm(runner, waits_for_others=False).report()
    except AoECsiError as error:
        yield Finding(check="pools", severity=Severity.FAILURE, fact=str(error), remedy="look at lvm2 on this host")
        return
    for pool in settings.pool:
        problem = find_problem(pool, report)
        if problem is None:
            yield Finding(check=f"pool {pool.name}", severity=Severity.OK, fact=f"{pool.volume_group} can be used")
        else:
            fact, _, remedy = problem.partition("; ")
            yield Finding(check=f"pool {pool.name}", severity=Severity.FAILURE, fact=fact, remedy=remedy)


def _module(settings: Settings) -> Iterable[Finding]:
    parameters = Path("/sys/module/aoe/parameters")
    if not parameters.exists():
        yield Finding(
            check="initiator",
            severity=Severity.FAILURE,
            fact="module aoe is not loaded",
            remedy="run aoe-csi prepare-host (the kernel must have CONFIG_ATA_OVER_ETH)",
        )
        return
    try:
        deadsecs = (parameters / "aoe_deadsecs").read_text(encoding="ascii")
        interfaces = (parameters / "aoe_iflist").read_text(encoding="ascii")
    except OSError as error:
        yield Finding(
            check="initiator",
            severity=Severity.FAILURE,
            fact=f"the aoe driver's parameters cannot be read ({error.strerror})",
            remedy="run this as root",
        )
        return
    yield from judge_driver(settings, deadsecs=int(deadsecs), interfaces=frozenset(re.findall(r"[^\s,]+", interfaces)))


def judge_driver(settings: Settings, *, deadsecs: int, interfaces: frozenset[str]) -> Iterable[Finding]:
    """Compare the running driver with the configuration: one that was loaded by others ignored our options."""
    remedy = "run aoe-csi prepare-host, and see who else loads the module"
    wanted = frozenset(san.interface for san in settings.san)
    if deadsecs != settings.initiator.deadsecs:
        yield Finding(
            check="initiator",
            severity=Severity.FAILURE,
            fact=f"aoe_deadsecs is {deadsecs}, configured are {settings.initiator.deadsecs}",
            remedy=remedy,
        )
    if interfaces != wanted:
        heard = ", ".join(sorted(interfaces)) or "every interface, pods' among them"
        yield Finding(
            check="initiator",
            severity=Severity.FAILURE,
            fact=f"the aoe driver listens on {heard}, configured are {', '.join(sorted(wanted))}",
            remedy=remedy,
        )
    if deadsecs == settings.initiator.deadsecs and interfaces == wanted:
        yield Finding(check="initiator", severity=Severity.OK, fact=f"aoe is loaded, aoe_deadsecs {deadsecs}")
