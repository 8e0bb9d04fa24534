"""LVM2 through its commands: one report to read everything, named transient units to change anything.

Changes run in `systemd-run --wait --pipe --unit=aoe-csi-lvm-…`: they outlive this process and its container, and the
unit's name is a lock on the volume group and the handle to find it by (lvm2 must never be killed half-way). To start a
unit costs about what lvcreate does, so those that wait for a volume group share the next one. Creations and removals
share a process of LVM, too, which saves a third of each. A report waits for the changes under way: whoever looks in
order to change something could not do it before, and all who wait share one.
lvm2 leaves what it writes in the disks' caches. So they are flushed before a change counts as done, and before a report
is believed that may show a change whose end nobody has seen.
LVM's exit codes: 0 done, 5 failed; which failure it was is told by the text, matched where a caller must know.
Sources: lvmreport(7), lvm.conf(5), lvcreate(8), lvmsystemid(7), systemd-run(1).
"""

import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from aoe_core.errors import AoECsiError, Busy, CommandFailed, Conflict, InUse, NoSpace, NotFound, Unfinished
from aoe_core.host.batches import Batches
from aoe_core.host.blocks import flush_device
from aoe_core.host.contracts import Finished, LogicalVolume, LvKind, LvmReport, Runner, VolumeGroup
from aoe_core.host.looks import SharedLook
from aoe_core.units import SECTOR_BYTES, round_up

log = logging.getLogger(__name__)

_UNIT_PREFIX = "aoe-csi-lvm-"
_REPORT_S = 60.0
_CHANGE_S = 120.0
_NEXT_S = 20.0
"""How long a change may take, and how much longer each one that runs with it."""
_TURN_S = 300.0
"""How long a change waits for those before it."""
_HOLD_S = 20.0
"""How long a report waits for the changes that were under way before it."""
_LINGER = 1 / 20
"""Part of a report's duration within which those who shared it have told what they want changed."""
_TOGETHER = 8
"""Changes of one unit: the first of them is answered when the last has ended."""
_ENDED = "aoe-csi-ended"
"""Begins the line that tells a command's exit code."""
_SAID_DONE = {
    "lvcreate": r'Logical volume "\S+" created',
    "lvremove": r'Logical volume "\S+" successfully removed',
}
"""What LVM says of a command that did what it was told. Its own shell, lvm(8), tells no exit codes."""
_PLAIN = re.compile(r"[A-Za-z0-9_+.:=/-]+")
"""Words that LVM's shell takes as they are."""
_NEXT = "systemid"
"""A command of LVM's shell that touches nothing, and what it says: stands between those that change something."""
_SAID_NEXT = r"^ *system ID:.*$"
_LVM_FAILED = 5

_VG_FIELDS = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_systemid,vg_attr,vg_missing_pv_count"
_LV_FIELDS = "lv_name,lv_size,lv_tags,lv_layout,pool_lv,origin,lv_active,data_percent,metadata_percent,lv_time"


class _VgRow(msgspec.Struct, frozen=True):
    vg_name: str
    vg_uuid: str
    vg_size: str
    vg_free: str
    vg_extent_size: str
    vg_systemid: str
    vg_attr: str
    vg_missing_pv_count: str


class _LvRow(msgspec.Struct, frozen=True):
    lv_name: str
    lv_size: str
    lv_tags: str
    lv_layout: str
    pool_lv: str
    origin: str
    lv_active: str
    data_percent: str
    metadata_percent: str
    lv_time: str


class _SegRow(msgspec.Struct, frozen=True):
    """`zero` belongs to segments: asked among LV fields, fullreport breaks off half-way with exit 5."""

    lv_name: str
    zero: str


class _PvRow(msgspec.Struct, frozen=True):
    pv_name: str


class _Group(msgspec.Struct, frozen=True):
    vg: list[_VgRow] = []
    pv: list[_PvRow] = []
    lv: list[_LvRow] = []
    seg: list[_SegRow] = []


class _Report(msgspec.Struct, frozen=True):
    report: list[_Group]


# Made before there are threads: two that make it at once would crash in msgspec.
_DECODER = msgspec.json.Decoder(_Report)


def parse_report(text: str, local_system_id: str) -> LvmReport:
    """Turn `lvm fullreport --reportformat json` into values. Raises: CommandFailed when it is not that."""
    try:
        report = _DECODER.decode(text)
        groups: list[VolumeGroup] = []
        volumes: list[LogicalVolume] = []
        for entry in report.report:
            if not entry.vg or not entry.vg[0].vg_name:
                continue  # Physical volumes that belong to no VG.
            # One that is missing is called "[unknown]".
            devices = tuple(sorted({row.pv_name for row in entry.pv if row.pv_name.startswith("/")}))
            group = _group(entry.vg[0], local_system_id, devices)
            groups.append(group)
            zeroing = {row.lv_name: row.zero != "" for row in entry.seg}
            volumes.extend(
                _volume(group.name, row, zeroing=zeroing.get(row.lv_name, False)) for row in entry.lv if row.lv_name
            )
    except (msgspec.MsgspecError, ValueError) as error:
        raise CommandFailed(f"lvm's report cannot be read ({error}); check the installed lvm2's version") from error
    return LvmReport(groups=tuple(groups), volumes=tuple(volumes))


def _group(row: _VgRow, local_system_id: str, devices: tuple[str, ...]) -> VolumeGroup:
    # vg_attr: w/r writable, z resizable, x exported, p partial, …; see vgs(8).
    return VolumeGroup(
        name=row.vg_name,
        uuid=row.vg_uuid,
        size_bytes=int(row.vg_size or 0),
        free_bytes=int(row.vg_free or 0),
        extent_bytes=int(row.vg_extent_size or 0),
        system_id=row.vg_systemid,
        foreign=bool(row.vg_systemid) and row.vg_systemid != local_system_id,
        exported=row.vg_attr[2:3] == "x",
        partial=row.vg_attr[3:4] == "p" or int(row.vg_missing_pv_count or 0) > 0,
        writable=row.vg_attr[:1] == "w",
        devices=devices,
    )


def _volume(vg: str, row: _LvRow, *, zeroing: bool) -> LogicalVolume:
    layout = set(row.lv_layout.split(","))
    if {"thin", "pool"} <= layout:
        kind = LvKind.THIN_POOL
    elif "thin" in layout:
        kind = LvKind.THIN
    elif layout & {"linear", "striped", "raid"} and "pool" not in layout:
        kind = LvKind.THICK
    else:
        kind = LvKind.OTHER
    return LogicalVolume(
        vg=vg,
        name=row.lv_name,
        kind=kind,
        size_bytes=int(row.lv_size or 0),
        tags=frozenset(tag for tag in row.lv_tags.split(",") if tag),
        thin_pool=row.pool_lv.strip("[]"),
        origin=row.origin.strip("[]"),
        active=row.lv_active == "active",
        data_percent=float(row.data_percent or 0),
        metadata_percent=float(row.metadata_percent or 0),
        created_s=int(row.lv_time or 0),
        zeroing=zeroing,
    )


@dataclass(frozen=True, slots=True)
class _Change:
    vg: str
    name: str
    argv: tuple[str, ...]

    @property
    def lv(self) -> str:
        return f"{self.vg}/{self.name}"

    @property
    def what(self) -> str:
        return f"{self.argv[0]} of {self.lv}"


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a command ended; `code` None: it never said."""

    code: int | None
    said: str


def _share_a_process(changes: Sequence[_Change]) -> bool:
    """Whether LVM's shell may be given changes: several, of which it says when they are done."""
    words = (word for one in changes for word in one.argv)
    return len(changes) > 1 and all(one.argv[0] in _SAID_DONE for one in changes) and all(map(_PLAIN.fullmatch, words))


def _script(changes: Sequence[_Change], *, shared: bool) -> str:
    """Return what runs commands one after the other, whatever becomes of each, and tells them apart. `shared`: by one
    process of LVM."""
    if shared:
        # All of it is among the unit's arguments: a pipe of ours could break in the middle of a command.
        lines = "\n".join(f"{' '.join(one.argv)}\n{_NEXT}" for one in changes)
        return f"lvm 2>&1 <<'{_ENDED}'\n{lines}\n{_ENDED}"
    return "\n".join(f"{shlex.join(one.argv)} 2>&1; printf '\\n{_ENDED} %s\\n' $?" for one in changes)


def _endings(changes: Sequence[_Change], finished: Finished, *, shared: bool) -> tuple[_Ended, ...]:
    """Tell apart what the commands of a script said. What none of them said belongs to those that did not end."""
    if shared:
        *said, left = re.split(_SAID_NEXT, finished.stdout, flags=re.MULTILINE)
        ended = [
            _Ended(0 if re.search(_SAID_DONE[one.argv[0]], text) else _LVM_FAILED, text)
            for one, text in zip(changes, said, strict=False)
        ]
    else:
        *parts, left = re.split(rf"^{_ENDED} (\d+)$", finished.stdout, flags=re.MULTILINE)
        ended = [_Ended(int(code), text) for text, code in zip(parts[0::2], parts[1::2], strict=True)]
    rest = _Ended(None, finished.stderr + left)
    return (*ended, *[rest] * (len(changes) - len(ended)))


class HostLvm:
    """The host's LVM.

    Args: `waits_for_others`: whether `report` is refused while changes run on whose caller is gone. True for whoever
    decides by a report; a command that only shows the host to a person looks at it as it is. `flush`: has a disk write
    out its cache.
    """

    def __init__(
        self, runner: Runner, *, waits_for_others: bool = True, flush: Callable[[str], None] = flush_device
    ) -> None:
        self._runner = runner
        self._flush_device = flush
        self._devices: dict[str, tuple[str, ...]] = {}
        """VG → its disks, as the last report had them; only VGs that this host may change."""
        self._doubts = int(waits_for_others)
        """How often a change may have been left in the disks' caches: by a former process, or since nobody waited."""
        self._settled_doubts = 0
        """How many of these came before the last flush of all."""
        self._system_id: str | None = None
        self._guard = threading.Lock()
        self._own: dict[str, threading.Event] = {}
        """Unit of a change that this process waits for → set when nobody does any more."""
        self._left_running: set[str] = set()
        """Units of changes that this process stopped waiting for."""
        self._batches: dict[str, Batches[_Change, _Ended]] = {}
        """VG → its changes, those that wait gathered for one unit."""
        self._others_may_run = waits_for_others
        """Until it has been seen once that a former process left no change behind: no new one can appear, since only
        one process at a time serves a host."""
        self._report_took_s = 0.0
        self._look = SharedLook(self._report, hold=self._await_changes)

    def report(self) -> LvmReport:
        """Return all VGs and LVs, read by one `lvm fullreport` that began after this call.

        Raises: CommandFailed when lvm fails: what exists is then unknown, never "nothing"; Busy while a change runs on
        that nobody waits for.
        """
        return self._look.take()

    def _await_changes(self) -> None:
        """Let end what is under way now; what begins meanwhile does not hold up a look any longer."""
        deadline = time.monotonic() + _HOLD_S
        with self._guard:
            running = tuple(self._own.values())
        for ended in running:
            ended.wait(max(0.0, deadline - time.monotonic()))

    def _report(self) -> LvmReport:
        self._refuse_while_changes_run_on()
        finished = self._runner.run(
            [
                "lvm", "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix", "--foreign",
                "--config", "report{time_format=\"%s\" compact_output=0}",
                "--configreport", "vg", "-o", _VG_FIELDS,
                "--configreport", "lv", "-o", _LV_FIELDS,
                "--configreport", "pv", "-o", "pv_name", "--configreport", "pvseg", "-o", "pv_name",
                "--configreport", "seg", "-o", "lv_name,zero",
            ],
            timeout_s=_REPORT_S,
        )  # fmt: skip
        if finished.code != 0:
            log.error("lvm report failed", extra={"code": finished.code, "stderr": finished.stderr})
            raise CommandFailed(f"lvm could not report its volumes (exit {finished.code}); see this host's log")
        self._report_took_s = finished.seconds
        report = parse_report(finished.stdout, self.system_id())
        with self._guard:
            self._devices = {group.name: group.devices for group in report.groups if not group.foreign}
            doubts = self._doubts
        if doubts > self._settled_doubts:
            for vg in tuple(self._devices):
                self.flush(vg)
            with self._guard:
                self._settled_doubts = max(self._settled_doubts, doubts)
        return report

    def flush(self, vg: str) -> None:
        """Make durable what was last changed of a VG that was reported. Raises: CommandFailed."""
        for device in self._devices.get(vg, ()):
            self._flush_device(device)

    def system_id(self) -> str:
        """Return this host's LVM system ID, empty when it has none (lvmsystemid(7)). Raises: CommandFailed."""
        if self._system_id is None:
            finished = self._runner.run(["lvm", "systemid"], timeout_s=_REPORT_S)
            match = re.search(r"system ID:?\s*(\S*)", finished.stdout)
            if finished.code != 0 or match is None:
                # Not remembered as none: every volume group would be another host's.
                log.error("lvm systemid failed", extra={"code": finished.code, "stderr": finished.stderr})
                raise CommandFailed(f"lvm could not tell its system ID (exit {finished.code}); see this host's log")
            self._system_id = match[1]
        return self._system_id

    def create(self, vg: str, name: str, size_bytes: int, tags: Iterable[str], thin_pool: str = "") -> None:
        """lvcreate; the content is left as it is (`-Wn -Zn`): the engine zeroes what must be zero, knowingly."""
        tag_words = [word for tag in sorted(tags) for word in ("--addtag", tag)]
        if thin_pool:
            shape = ["--virtualsize", _size_word(size_bytes), "--thinpool", thin_pool]
        else:
            shape = ["--size", _size_word(size_bytes), "--wipesignatures", "n", "--zero", "n"]
        self._change(vg, name, ["lvcreate", "--yes", "--name", name, *shape, *tag_words, vg])

    def snapshot(self, vg: str, origin: str, name: str, tags: Iterable[str], *, writable: bool) -> None:
        """Lvcreate -s of a thin LV, activated like any other (`-kn`)."""
        tag_words = [word for tag in sorted(tags) for word in ("--addtag", tag)]
        permission = "rw" if writable else "r"
        self._change(
            vg,
            name,
            ["lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--permission", permission,
             "--name", name, *tag_words, f"{vg}/{origin}"],
        )  # fmt: skip

    def retag(self, vg: str, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Lvchange with all tags in one metadata commit."""
        words = [word for tag in sorted(remove) for word in ("--deltag", tag)]
        words += [word for tag in sorted(add) for word in ("--addtag", tag)]
        self._change(vg, name, ["lvchange", *words, f"{vg}/{name}"])

    def extend(self, vg: str, name: str, size_bytes: int) -> None:
        """Lvextend to an absolute size; "matches existing size" is success."""
        self._change(vg, name, ["lvextend", "--size", _size_word(size_bytes), f"{vg}/{name}"])

    def rename(self, vg: str, name: str, new_name: str) -> None:
        """Lvrename."""
        self._change(vg, name, ["lvrename", vg, name, new_name])

    def activate(self, vg: str, name: str, *, on: bool) -> None:
        """Lvchange -a."""
        self._change(vg, name, ["lvchange", "--activate", "y" if on else "n", f"{vg}/{name}"])

    def remove(self, vg: str, name: str) -> None:
        """Lvremove; refuses an open LV."""
        self._change(vg, name, ["lvremove", "--yes", f"{vg}/{name}"])

    def _refuse_while_changes_run_on(self) -> None:
        """Looked at before the report is read: what has ended by then is in it."""
        with self._guard:
            looking = self._others_may_run or bool(self._left_running)
            left_running, own = set(self._left_running), set(self._own)
        if not looking:
            return
        finished = self._runner.run(
            ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,reloading",
             f"{_UNIT_PREFIX}*.service"],
            timeout_s=_REPORT_S,
        )  # fmt: skip
        if finished.code != 0:
            raise CommandFailed(f"systemd could not list this host's units (exit {finished.code}); see this host's log")
        running = {line.split()[0] for line in finished.stdout.splitlines() if line.strip()}
        with self._guard:
            # One that this process gave up runs on under a name that its next change asks for again.
            foreign = sorted((running - own - self._own.keys()) | (running & left_running))
            if not foreign:
                self._others_may_run = False
                self._left_running -= left_running
        if foreign:
            raise Busy(
                f"{foreign[0]} still changes this host's volumes, and whoever began it is gone; it ends by itself, "
                f"or look at it with systemctl status {foreign[0]}"
            )

    def _change(self, vg: str, name: str, argv: Sequence[str]) -> None:
        """Change something of a VG, together with others who want to.

        LVM lets one command at a time change a VG. Waiting here costs nothing; fifty commands that wait for LVM's lock
        wake each other up at every release, and the last of them run into their limit before they began.
        """
        with self._guard:
            batches = self._batches.setdefault(vg, self._new_batches())
        change = _Change(vg, name, tuple(argv))
        try:
            ended = batches.ask(change)
        except Busy as busy:
            raise Busy(
                f"{change.lv}: volume group {vg} is being changed, {busy}; try again, and look at systemctl list-units "
                f"'{_UNIT_PREFIX}*' if it repeats"
            ) from busy
        error = _failure(change, ended)
        if error is not None:
            log.warning("lvm change failed", extra={"argv": list(argv), "said": ended.said})
            raise error

    def _new_batches(self) -> Batches[_Change, _Ended]:
        return Batches(
            self._change_now,
            at_most=_TOGETHER,
            patience_s=_TURN_S,
            linger_s=lambda: _LINGER * self._report_took_s,
        )

    def _change_now(self, changes: Sequence[_Change]) -> tuple[_Ended, ...]:
        vg = changes[0].vg
        unit = _unit_name(vg)
        shared = _share_a_process(changes)
        with self._guard:
            self._own[unit] = threading.Event()
        try:
            finished = self._runner.run(
                ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", f"--unit={unit}",
                 "--property=LimitCORE=0", "--setenv=LC_ALL=C", "--", "sh", "-c", _script(changes, shared=shared)],
                timeout_s=_CHANGE_S + _NEXT_S * (len(changes) - 1),
            )  # fmt: skip
        except Unfinished:
            with self._guard:
                self._left_running.add(unit)
                self._doubts += 1
            raise
        finally:
            with self._guard:
                self._own.pop(unit).set()
        endings = _endings(changes, finished, shared=shared)
        for change, ended in zip(changes, endings, strict=True):
            log.info(
                "lvm change",
                extra={
                    "argv": list(change.argv),
                    "code": ended.code,
                    "together": len(changes),
                    "ms": round(finished.seconds * 1000),
                },
            )
        try:
            self.flush(vg)
        except CommandFailed as error:
            with self._guard:
                self._doubts += 1
            done = ", ".join(change.what for change in changes)
            raise Unfinished(f"{done} is done and may not survive a power cut: {error}") from error
        return endings


def _unit_name(vg: str) -> str:
    # What a unit's name may not have (systemd.unit(5)), so that no two VGs have the same.
    return _UNIT_PREFIX + re.sub(r"[^A-Za-z0-9_.-]", lambda found: f":{ord(found[0]):02x}", vg) + ".service"


def _size_word(size_bytes: int) -> str:
    """LVM rounds up to whole extents by itself, but refuses what is no whole number of sectors."""
    return f"{round_up(size_bytes, SECTOR_BYTES)}b"


# What lvm2 2.03 and systemd-run say, and what it means; the first that matches counts.
_BUSY = r"was already loaded|already exists, refusing|has a fragment file"
_NOTHING_TO_DO = r"matches existing size|No size change|not larger than existing size"
_MEANINGS: tuple[tuple[str, type[AoECsiError], str], ...] = (
    (_BUSY, Busy, "{lv}: a change of its volume group still runs on this host; try again when it has ended"),
    (
        r"insufficient (free|suitable|.*extents|.*space)|free extents|No space left|above threshold",
        NoSpace,
        "{lv}: the volume group or thin pool has too little free space; free some or add a disk",
    ),
    (r"already exists", Conflict, "logical volume {lv} exists already; choose another name"),
    (
        r"Failed to find logical volume|not found in volume group|Existing logical volume .* not found",
        NotFound,
        "logical volume {lv} does not exist; check its name with lvs",
    ),
    (r"Volume group \"?\S+\"? not found", NotFound, "{lv}: its volume group does not exist here; attach its disks"),
    (
        r"contains a filesystem in use|in use\.?$|is used by another device|in use by|is in use",
        InUse,
        "logical volume {lv} is open; stop what uses it first",
    ),
)


def _failure(change: _Change, ended: _Ended) -> AoECsiError | None:
    """Name a failed change by its text; None when it was made, or there was nothing to do."""
    if ended.code == 0 or re.search(_NOTHING_TO_DO, ended.said):
        return None
    for pattern, kind, sentence in _MEANINGS:
        if re.search(pattern, ended.said, re.IGNORECASE | re.MULTILINE):
            return kind(sentence.format(lv=change.lv))
    lines = (line.strip() for line in ended.said.splitlines())
    reason = next((line for line in lines if line and "WARNING" not in line), "no message")[:200]
    if ended.code is None:
        return Unfinished(f"{change.what} did not come to its end: {reason}")
    return CommandFailed(f"{change.what} failed (exit {ended.code}): {reason}")
