"""The store on a real API server: each error by its name, nothing overwritten unseen, nobody waits for ever."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aoe_core.errors import Busy, Conflict, Invalid, NotFound, Unreachable
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.guest_kubernetes import KubernetesGuestDisks
from aoe_core.resources.kubernetes import KubernetesLeases, KubernetesStore
from aoe_core.resources.leases import LiveNodes
from aoe_core.resources.node import AoENode, AoENodeSpec, PoolSpec
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec, AoEVolumeStatus
from aoe_lab.kubernetes.control_plane import ControlPlane


@pytest.fixture
def store(clean: ControlPlane) -> Iterator[KubernetesStore]:
    with KubernetesStore(clean.kubeconfig) as opened:
        yield opened


def volume(name: str = "v", size: str = "1Gi") -> AoEVolume:
    return AoEVolume(metadata=ObjectMeta(name=name), spec=AoEVolumeSpec(size=size, pool="thin"))


def ticket(node: str) -> dict[str, object]:
    return {"node": node, "nodeId": f"{node}|00000000|", "mode": "single-node-writer", "writable": True}


def test_what_was_made_is_read_back(store: KubernetesStore) -> None:
    made = store.create(volume())
    assert made.spec == volume().spec
    assert made.metadata.uid
    assert store.get(AoEVolume, "v") == made
    assert store.list(AoEVolume) == (made,)


def test_what_is_not_there_is_not_found(store: KubernetesStore) -> None:
    with pytest.raises(NotFound, match="AoEVolume v does not exist"):
        store.get(AoEVolume, "v")
    with pytest.raises(NotFound):
        store.apply(AoEVolume, "v", {"spec": {"tickets": [ticket("a")]}}, holder="a")
    with pytest.raises(NotFound):
        store.update_status(volume())
    store.delete(AoEVolume, "v")
    assert store.list(AoEVolume) == ()


def test_a_name_is_taken_once(store: KubernetesStore) -> None:
    store.create(volume())
    with pytest.raises(Conflict, match="v"):
        store.create(volume())


def test_a_rule_that_is_broken_is_quoted(store: KubernetesStore) -> None:
    store.create(volume(size="2Gi"))
    shrunk = store.get(AoEVolume, "v")
    with pytest.raises(Invalid, match="a volume cannot shrink"):
        store.update(msgspec.structs.replace(shrunk, spec=msgspec.structs.replace(shrunk.spec, size="1Gi")))


def test_a_stale_copy_overwrites_nothing(store: KubernetesStore) -> None:
    stale = store.create(volume())
    store.apply(AoEVolume, "v", {"spec": {"tickets": [ticket("a")]}}, holder="a")
    with pytest.raises(Busy):
        store.update(msgspec.structs.replace(stale, spec=msgspec.structs.replace(stale.spec, size="2Gi")))
    with pytest.raises(Busy):
        store.update_status(msgspec.structs.replace(stale, status=AoEVolumeStatus(phase="Ready")))
    kept = store.get(AoEVolume, "v")
    assert (kept.spec.size, kept.status.phase) == ("1Gi", "Pending")


def test_a_status_leaves_the_spec_alone(store: KubernetesStore) -> None:
    made = store.create(volume())
    changed = msgspec.structs.replace(
        made,
        spec=msgspec.structs.replace(made.spec, size="5Gi"),
        status=AoEVolumeStatus(phase="Ready", node="storage1"),
    )
    written = store.update_status(changed)
    assert (written.spec.size, written.status.phase, written.status.node) == ("1Gi", "Ready", "storage1")
    assert written.metadata.generation == made.metadata.generation


def test_each_holder_answers_for_its_own_ticket(store: KubernetesStore) -> None:
    store.create(volume())
    store.apply(AoEVolume, "v", {"spec": {"tickets": [ticket("a")]}}, holder="a")
    with pytest.raises(Invalid, match="another node holds this volume"):
        store.apply(AoEVolume, "v", {"spec": {"tickets": [ticket("b")]}}, holder="b")
    store.apply(AoEVolume, "v", {"spec": {"tickets": []}}, holder="a")
    held = store.apply(AoEVolume, "v", {"spec": {"tickets": [ticket("b")]}}, holder="b")
    assert [one.node for one in held.spec.tickets] == ["b"]


def test_a_list_is_whole_whatever_its_length(store: KubernetesStore) -> None:
    names = [f"v-{number:04}" for number in range(600)]
    for name in names:
        store.create(volume(name))
    assert [one.metadata.name for one in store.list(AoEVolume)] == names


def test_the_revision_grows_with_every_change_whoever_asks(store: KubernetesStore, clean: ControlPlane) -> None:
    with KubernetesGuestDisks(clean.kubeconfig, holder="test") as disks:
        seen = [store.revision(), disks.revision()]
        for name in ("v", "w"):
            store.create(volume(name))
            seen += [store.revision(), disks.revision()]
        for number in range(2):
            store.create(AoENode(metadata=ObjectMeta(name=f"n{number}"), spec=AoENodeSpec()))
        seen.append(store.revision())
    assert seen == sorted(seen)
    assert len({seen[0], seen[2], seen[4], seen[6]}) == 4


def test_whoever_waits_sees_the_change(store: KubernetesStore) -> None:
    made = store.create(volume())

    def become_ready() -> None:
        time.sleep(0.5)
        store.update_status(msgspec.structs.replace(made, status=AoEVolumeStatus(phase="Ready")))

    thread = threading.Thread(target=become_ready)
    thread.start()
    seen = store.await_(
        AoEVolume, "v", lambda one: one.status.phase if one and one.status.phase == "Ready" else None, timeout_s=60
    )
    thread.join()
    assert seen == "Ready"


def test_whoever_waits_for_an_end_sees_it(store: KubernetesStore) -> None:
    store.create(volume())
    timer = threading.Timer(0.5, lambda: store.delete(AoEVolume, "v"))
    timer.start()
    assert store.await_(AoEVolume, "v", lambda one: "gone" if one is None else None, timeout_s=60) == "gone"
    timer.join()


def test_whoever_waits_is_told_and_does_not_ask(store: KubernetesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at a change, nor when another resource changes or goes: a hundred may wait, and more change."""
    made = store.create(volume())
    store.create(volume("other"))
    assert store.await_(AoEVolume, "v", lambda one: one, timeout_s=60) is not None
    asked: list[str] = []
    get = store.get

    def counted(kind: type[Any], name: str) -> Any:
        asked.append(name)
        return get(kind, name)

    monkeypatch.setattr(store, "get", counted)
    seen: list[str] = []
    in_wait = threading.Event()

    def ready(one: AoEVolume | None) -> bool | None:
        assert one is not None
        seen.append(one.status.phase)
        in_wait.set()
        return one.status.phase == "Ready" or None

    def change() -> None:
        in_wait.wait(60)
        store.delete(AoEVolume, "other")
        creating = store.update_status(msgspec.structs.replace(made, status=AoEVolumeStatus(phase="Creating")))
        store.update_status(msgspec.structs.replace(creating, status=AoEVolumeStatus(phase="Ready")))

    thread = threading.Thread(target=change)
    thread.start()
    assert store.await_(AoEVolume, "v", ready, timeout_s=15)
    thread.join()
    assert seen[-1] == "Ready"
    assert asked == ["v"]


def test_waiting_ends(store: KubernetesStore) -> None:
    assert store.await_(AoEVolume, "v", lambda one: one, timeout_s=0.2) is None


@dataclass
class Refusal(Exception):
    why: str


def test_whoever_waits_may_give_up(store: KubernetesStore) -> None:
    def refuse(_: AoEVolume | None) -> None:
        raise Refusal("lost")

    with pytest.raises(Refusal):
        store.await_(AoEVolume, "v", refuse, timeout_s=60)


def test_a_node_s_lists_are_read_back(store: KubernetesStore) -> None:
    spec = AoENodeSpec(pools=(PoolSpec(name="thin", volume_group="data", thin_pool="pool", spare="1Gi"),))
    store.create(AoENode(metadata=ObjectMeta(name="storage1.example.org"), spec=spec))
    assert store.get(AoENode, "storage1.example.org").spec == spec


def test_a_renewed_lease_shows(plane: ControlPlane) -> None:
    leases = KubernetesLeases(plane.kubeconfig, "default")
    live = LiveNodes(leases)
    try:
        leases.renew_lease("storage1.example.org")
        leases.renew_lease("storage2")
        assert live() == frozenset()
        leases.renew_lease("storage1.example.org")
        assert live() == {"storage1.example.org"}
        assert leases.leases().keys() >= {"storage1.example.org", "storage2"}
    finally:
        leases.close()


def test_a_server_that_is_not_there_is_unreachable(plane: ControlPlane, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(plane.kubeconfig.read_text().replace(f":{plane.port}", ":1"))
    with KubernetesStore(elsewhere) as nowhere, pytest.raises(Unreachable, match="does not answer"):
        nowhere.get(AoEVolume, "v")


def test_a_stranger_is_told_so(plane: ControlPlane) -> None:
    stranger = plane.identity("stranger", user="stranger")
    with KubernetesStore(stranger) as refused, pytest.raises(Unreachable, match=r"403.*forbidden"):
        refused.list(AoEVolume)
