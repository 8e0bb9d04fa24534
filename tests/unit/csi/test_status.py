import json

from aoe_core.attach.records import FilesystemUse, StageRecord
from aoe_core.model import AccessMode, Address, Attachment, SanName, Transport, VolumeId, serial_of
from aoe_csi.status import (
    ExportRow,
    HostReport,
    OrphanRow,
    PoolRow,
    as_json,
    as_text,
    grant_rows,
    staged_rows,
    volume_rows,
)

from .memory import NODE, MemoryProvisioner
from .plugin import GIB, Plugin


def full(provisioner: MemoryProvisioner) -> HostReport:
    statuses = provisioner.list_volumes()
    attachment = Attachment(
        volume_id=VolumeId("pvc-1"),
        transport=Transport.AOE,
        serial=serial_of(VolumeId("pvc-1")),
        size_bytes=GIB,
        filesystem="",
        writable=True,
        address=Address(10, 0),
        san=SanName("main"),
    )
    record = StageRecord(
        attachment=attachment,
        staging_path="/staging",
        use=FilesystemUse(mode=AccessMode.SINGLE_NODE_WRITER),
        interface="san0",
        pinned_mac=None,
        staged=False,
        boot="0badcafe",
    )
    return HostReport(
        node="s1",
        pools=(PoolRow(pool="fast", available_bytes=3 * GIB // 2, maximum_volume_bytes=GIB),),
        volumes=volume_rows(status.volume for status in statuses),
        exports=(ExportRow(address="e10.0", volume="pvc-1", node="compute1", state="live"),),
        grants=grant_rows(grant for status in statuses for grant in status.grants),
        staged=staged_rows([record]),
        orphans=(OrphanRow(kind="export", name="e10.7", fact="its volume is gone"),),
    )


def test_the_tables_hold_every_fact_and_sizes_in_words(plugin: Plugin) -> None:
    plugin.published()
    lines = [line.split() for line in as_text(full(plugin.provisioner)).splitlines()]
    assert ["node", "s1"] in lines
    assert ["fast", "1.5", "GiB", "1", "GiB"] in lines
    assert ["pvc-1", "fast", "1", "GiB", "1", "GiB", "ready", "sync", "-"] in lines
    assert ["pvc-1", str(NODE.name), "single-node-writer", "yes", "aoe", "main", "e10.0"] in lines
    assert ["pvc-1", "e10.0", "ext4", "no", "/staging", "-", "0"] in lines
    assert ["export", "e10.7", "its", "volume", "is", "gone"] in lines


def test_the_json_has_the_same_in_bytes(plugin: Plugin) -> None:
    plugin.published()
    report = json.loads(as_json(full(plugin.provisioner)))
    assert report["pools"] == [{"pool": "fast", "available_bytes": 3 * GIB // 2, "maximum_volume_bytes": GIB}]
    assert report["grants"][0]["address"] == "e10.0"
    assert report["staged"][0]["staged"] is False


def test_nothing_there_and_not_looked_at_are_told_apart() -> None:
    text = as_text(HostReport(node="s1", volumes=()))
    assert "volumes: none" in text
    assert "pools" not in text
    assert json.loads(as_json(HostReport(node="s1", volumes=())))["pools"] is None
