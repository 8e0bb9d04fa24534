"""The emulator: how it is started, and whether hardware virtualisation can be used.

Owns: the command line. Refuses: to trust /dev/kvm; that it opens does not mean that it runs a machine.
Measured on two cores without KVM: q35 boots as fast as pc and microvm, two processors a third faster than one.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import process, progress
from aoe_lab.cachedir import cache_root
from aoe_lab.errors import CommandTimedOut
from aoe_lab.topology import GATEWAY

if TYPE_CHECKING:
    from aoe_lab.image import Image
    from aoe_lab.topology import MachineSpec

KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet",
    "loglevel=4",
    "mitigations=off",
    "nokaslr",
    "net.ifnames=0",
    "8250.nr_uarts=1",
    "random.trust_cpu=on",
    # An emulated time stamp counter follows the host's; any other clock is a slow device access per reading.
    "tsc=reliable",
    "clocksource=tsc",
    # The image's init starts the others. Before that the kernel rewrites some of its code that idle processors run, and
    # under a QEMU older than 8.1 (its commit deba78709ae8) one of them may run the former code for ever: one boot in a
    # hundred hung, its console empty.
    "maxcpus=1",
    "audit=0",
    "apparmor=0",
    # Else it takes the other's place, without a policy: for want of labels KubeVirt plugs nothing, and says nothing.
    "selinux=0",
    "cryptomgr.notests",
)
# Not `erms`: kernel and libc would clear and copy memory by `rep stosb`, which is emulated byte by byte: what copies
# takes two to three times as long. The others make each access of the kernel to a process's memory a change of state.
SLOW_EMULATED = ("erms", "smap", "smep", "umip", "pku", "mpx")
EMULATED_CPU = ",".join(("max", *(f"-{feature}" for feature in SLOW_EMULATED)))
PROBE_MARK = "AOE-LAB-PROBE-OK"
PROBE_TIMEOUT_S = 20.0


def _start_of(image: Image, *, accelerator: str, console: Path, append: tuple[str, ...]) -> list[str | Path]:
    return [
        "qemu-system-x86_64",
        *("-accel", "kvm" if accelerator == "kvm" else "tcg,thread=multi"),
        *("-cpu", "host" if accelerator == "kvm" else EMULATED_CPU),
        *("-machine", "q35,hpet=off"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", image.kernel),
        *("-initrd", image.initramfs),
        *("-append", " ".join((*KERNEL_ARGUMENTS, *append))),
        *("-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"),
    ]


def accelerator(image: Image) -> str:
    """Return "kvm" if a trial boot with it works here, else "tcg"; the answer is kept per host kernel."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    record = cache_root() / "accelerator.json"
    host = f"{platform.node()} {platform.release()}"
    with suppress(FileNotFoundError, ValueError, AttributeError):
        known = json.loads(record.read_text()).get(host)
        if known in {"kvm", "tcg"}:
            return str(known)
    found = "kvm" if _kvm_boots(image) else "tcg"
    progress.say(f"hardware virtualisation {'works' if found == 'kvm' else 'does not work'} here: using {found}")
    record.write_text(json.dumps({host: found}))
    return found


_hung: list[process.Child] = []
"""Emulators that the host's kernel does not let die; kept, since Python warns of one that nobody has waited for."""


def _kvm_boots(image: Image) -> bool:
    with tempfile.TemporaryDirectory() as place:
        console = Path(place, "console")
        argv = [*_start_of(image, accelerator="kvm", console=console, append=("lab.probe",)), "-no-reboot", "-m", "256"]
        child = process.start(argv)
        end = time.monotonic() + PROBE_TIMEOUT_S
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with suppress(CommandTimedOut):
            process.kill([child.pid])
        if child.poll() is None:
            _hung.append(child)
        return console.exists() and PROBE_MARK in console.read_text(errors="replace")


def machine_argv(  # One argument per thing a machine is made of.
    spec: MachineSpec,
    image: Image,
    *,
    accelerator: str,
    place: Path,
    root_disk: Path,
    tools_disk: Path,
    machine_id: str,
    disk_arguments: list[str],
) -> list[str | Path]:
    """Return the argv of a machine whose files are in `place`; the order of the devices is the order of their names."""
    append = (
        f"lab.name={spec.name}",
        f"lab.address={spec.address}",
        f"lab.gateway={GATEWAY}",
        f"lab.machine_id={machine_id}",
    )
    cards = ["-netdev", _tap("mgmt", spec.mgmt_tap), "-device", _card("mgmt", spec.mgmt_mac)]
    for san in spec.sans:
        cards += ["-netdev", _tap(f"san-{san}", spec.san_tap(san))]
        cards += ["-device", _card(f"san-{san}", spec.san_mac(san)) + ",host_mtu=9000"]
    return [
        *_start_of(image, accelerator=accelerator, console=place / "console.log", append=append),
        *("-name", spec.name),
        *("-smp", str(spec.cpus), "-m", str(spec.memory_mib)),
        "-daemonize",
        *("-pidfile", place / "qemu.pid"),
        *("-qmp", f"unix:{place / 'qmp.sock'},server=on,wait=off"),
        "-blockdev",
        # The host outlives the machine: what the machine wrote to its root disk needs no flush to survive a power cut.
        f"driver=qcow2,node-name=root,cache.no-flush=on,file.driver=file,file.filename={root_disk}",
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        *("-blockdev", f"driver=file,node-name=tools,read-only=on,filename={tools_disk}"),
        *("-device", "virtio-blk-pci,drive=tools,serial=tools"),
        *disk_arguments,
        *cards,
    ]


def _tap(name: str, tap: str) -> str:
    return f"tap,id=tap-{name},ifname={tap},script=no,downscript=no"


def _card(name: str, mac: str) -> str:
    return f"virtio-net-pci,id={name},netdev=tap-{name},mac={mac}"
