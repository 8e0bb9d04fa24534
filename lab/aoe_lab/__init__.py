"""The project's machines: real kernels, disks that lose their cache, and SANs whose cables can be pulled.

    with Lab.start(Topology(storage=2, compute=2)) as lab:
        lab.machine("storage1").run("lsblk")

One lab is one network namespace and one directory of state; see docs/lab.md.
"""

from aoe_lab.disks import DiskServer
from aoe_lab.emulator import MachineState
from aoe_lab.errors import BootFailed, CommandFailed, CommandTimedOut, LabError, MachineUnreachable
from aoe_lab.lab import Lab
from aoe_lab.machine import Machine
from aoe_lab.process import Finished
from aoe_lab.remote_process import RemoteProcess
from aoe_lab.topology import DataDisk, Topology

__all__ = [
    "BootFailed",
    "CommandFailed",
    "CommandTimedOut",
    "DataDisk",
    "DiskServer",
    "Finished",
    "Lab",
    "LabError",
    "Machine",
    "MachineState",
    "MachineUnreachable",
    "RemoteProcess",
    "Topology",
]
