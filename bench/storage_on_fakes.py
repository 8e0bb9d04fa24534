"""The storage role as a process, on a machine of fakes that holds many volumes: what bench.resources measures."""

import argparse
import os
import signal
import threading
from pathlib import Path

from aoe_core.fakes.lvm import ThinMedium
from aoe_core.fakes.world import World
from aoe_core.host.contracts import LvKind
from aoe_core.host.exports import ExportFiles
from aoe_core.host.files import DurableFiles
from aoe_core.model import PoolName, SanName, VolumeId, VolumeSpec, VolumeState
from aoe_core.resources.kubernetes import KubernetesEvents, KubernetesLeases, KubernetesStore
from aoe_core.resources.node import SanStatus
from aoe_core.settings import Settings
from aoe_core.units import GIB, MIB
from aoe_core.volumes import tags
from aoe_core.volumes.engine import Engine
from aoe_core.volumes.host import StorageHost
from aoe_operator import handlers, metrics
from aoe_operator.seen import Seen
from aoe_operator.storage_process import StorageProcess

SIZE_BYTES = 64 * MIB
SAN, INTERFACE, GROUP = SanName("main"), "san0", "vg0"


class Host:
    """A machine of fakes with volumes that were given out long ago."""

    def __init__(self, volumes: int) -> None:
        self.world = World()
        self.machine = self.world.add_machine("storage1", san0=SAN)
        group = self.machine.lvm.add_group(GROUP, (volumes + 64) * SIZE_BYTES + 4 * GIB)
        pool = self.machine.lvm.add_thin_pool(GROUP, "tp0", 2 * GIB)
        for number in range(volumes):
            spec = VolumeSpec(volume_id=VolumeId(f"v{number}"), pool=PoolName("thin"), size_bytes=SIZE_BYTES)
            volume = self.machine.lvm.put(
                group,
                tags.volume_lv_name(spec.volume_id),
                LvKind.THIN,
                SIZE_BYTES,
                tags.of_volume(spec, SIZE_BYTES, VolumeState.READY, None),
                medium=ThinMedium(pool),
            )
            volume.pool = pool

    def open_engine(self, settings: Settings) -> Engine:
        process = self.machine.start_process("aoe-csi")
        host = StorageHost(
            lvm=process.lvm,
            blocks=process.blocks,
            export_files=ExportFiles(process.records("exports")),
            export_units=process.export_units,
            segments=process.segments,
            interface_mac=lambda interface: self.machine.cards[interface].mac,
            is_staged=lambda _: False,
            now_s=lambda: int(self.world.clock.now()),
        )
        return Engine(settings, host)


def _card(interface: str) -> SanStatus:
    return SanStatus(name="", interface=interface, macs=("52:54:00:00:01:0b",), mtu=9000, up=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("volumes", type=int)
    parser.add_argument("state", type=Path)
    parser.add_argument("metrics")
    options = parser.parse_args()
    os.environ["KUBECONFIG"] = str(options.kubeconfig)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    metrics.serve(options.metrics)
    handlers.start_logs(as_json=False, debug=False)
    with StorageProcess(
        "storage1",
        KubernetesStore(options.kubeconfig, holder="storage-storage1"),
        KubernetesLeases(options.kubeconfig, "default"),
        KubernetesEvents(options.kubeconfig, "bench"),
        Seen(DurableFiles(options.state)),
        open_engine=Host(options.volumes).open_engine,
        card=_card,
        prepare=lambda _: None,
        check=lambda _: (),
        boot="b",
        machine_id="1" * 32,
        stop=stop,
    ) as process:
        handlers.run(handlers.storage(process.role, "storage1"), stop=stop, liveness=None)


if __name__ == "__main__":
    main()
