"""The thinnest real path: a volume from LVM over the wire to a mounted file system, and back."""

from collections.abc import Callable

import pytest

from aoe_lab.standalone import THICK, THIN, Standalone, Workload, capability


@pytest.mark.parametrize(
    ("pool", "filesystem"),
    [
        (THIN, "ext4"),
        (THICK, "xfs"),
        pytest.param(THICK, "ext4", marks=pytest.mark.long),
        pytest.param(THIN, "xfs", marks=pytest.mark.long),
    ],
)
def test_a_file_written_on_one_node_is_read_on_another(
    cluster: Standalone, workload: Callable[..., Workload], pool: str, filesystem: str
) -> None:
    size_bytes = 512 << 20 if filesystem == "xfs" else 128 << 20
    volume = workload(pool=pool, size_bytes=size_bytes, capability=capability(filesystem=filesystem))
    assert volume.create().capacity_bytes == size_bytes

    target = volume.attach("compute1")
    compute1 = cluster.compute["compute1"].machine
    assert compute1.run(f"findmnt -no FSTYPE {target}").stdout.strip() == filesystem
    compute1.run(f"dd if=/dev/urandom of={target}/file bs=1M count=8 conv=fsync status=none")
    written = compute1.run(f"sha256sum < {target}/file").stdout
    volume.detach("compute1")

    volume.attach("compute2")
    assert cluster.compute["compute2"].machine.run(f"sha256sum < {target}/file").stdout == written
    volume.detach("compute2")


def test_a_raw_block_volume_is_the_device_itself(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=64 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    machine = cluster.compute["compute1"].machine
    assert machine.run(f"stat -c %F {target}").stdout.strip() == "block special file"
    assert int(machine.run(f"blockdev --getsize64 {target}").stdout) == 64 << 20
    machine.run(f"dd if=/dev/urandom of={target} bs=1M count=4 oflag=direct status=none")
    written = machine.run(f"head -c 4M {target} | sha256sum").stdout
    storage = cluster.storage["storage1"].machine
    assert storage.run(f"head -c 4M /dev/data/v-{volume.volume_id} | sha256sum").stdout == written
    volume.detach("compute1")
