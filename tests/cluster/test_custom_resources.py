"""The definitions on a real API server: what it refuses, and what a person reads."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aoe_lab import CommandFailed
from aoe_lab.kubernetes.control_plane import ControlPlane

API = "aoe-csi.dev/v1alpha1"
Spec = dict[str, Any]


def manifest(kind: str, name: str, spec: Spec) -> str:
    return json.dumps({"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec})


def ticket(node: str, mode: str = "single-node-writer", *, writable: bool = True, block: bool = False) -> Spec:
    return {"node": node, "nodeId": f"{node}|00000000|", "mode": mode, "writable": writable, "block": block}


VOLUME: Spec = {"size": "1Gi", "pool": "thin"}
SNAPSHOT: Spec = {"volume": "v", "node": "storage1"}
SHELF: Spec = {"san": "main", "shelf": 10, "node": "storage1"}
NODE: Spec = {
    "pools": [{"name": "thin", "volumeGroup": "data", "thinPool": "pool"}],
    "sans": [{"name": "main", "interface": "eth1", "shelves": [{"first": 10, "last": 12}]}],
}
LIVE = "multi-node-multi-writer"
READERS = "multi-node-reader-only"
GUEST, OTHER_GUEST = {"guest": "shop/data/1"}, {"guest": "shop/logs/2"}


REFUSED_AT_CREATION = {
    "volume-without-size": ("AoEVolume", "v", {"pool": "thin"}, "spec.size: Required value"),
    "volume-without-pool": ("AoEVolume", "v", {"size": "1Gi"}, "spec.pool: Required value"),
    "volume-of-nothing": ("AoEVolume", "v", {**VOLUME, "size": "0"}, "size must be at least 1 byte"),
    "volume-of-less-than-nothing": ("AoEVolume", "v", {**VOLUME, "size": "-1Gi"}, "spec.size"),
    "volume-of-a-fraction": ("AoEVolume", "v", {**VOLUME, "size": "1.5Gi"}, "spec.size"),
    "volume-with-a-limit-below-its-size": ("AoEVolume", "v", {**VOLUME, "maxSize": "1Mi"}, "maxSize is less than size"),
    "volume-with-a-dotted-name": ("AoEVolume", "a.b", VOLUME, "metadata.name"),
    "volume-with-a-long-name": ("AoEVolume", "v" * 64, VOLUME, "metadata.name"),
    "volume-with-an-unknown-durability": ("AoEVolume", "v", {**VOLUME, "durability": "none"}, "Unsupported value"),
    "volume-from-nothing": ("AoEVolume", "v", {**VOLUME, "source": {}}, "name a volume or a snapshot"),
    "volume-from-two-sources": (
        "AoEVolume",
        "v",
        {**VOLUME, "source": {"volume": "a", "snapshot": "b"}},
        "name a volume or a snapshot",
    ),
    "volume-with-a-misspelt-field": ("AoEVolume", "v", {**VOLUME, "poool": "x"}, 'unknown field "spec.poool"'),
    "two-writers-of-a-file-system": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a", LIVE), ticket("b", LIVE)]},
        "two nodes may write raw block only",
    ),
    "three-writers": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket(node, LIVE, block=True) for node in "abc"]},
        "two nodes write to this volume already",
    ),
    "two-single-writers": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a"), ticket("b")]},
        "another node holds this volume",
    ),
    "a-writer-beside-a-reader": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a", LIVE, block=True), ticket("b", READERS, writable=False, block=True)]},
        "one and the same mode",
    ),
    "a-guest-beside-pods-that-write": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a", LIVE, block=True), {**ticket("b", LIVE, block=True), **GUEST}]},
        "only while all of them read",
    ),
    "two-guests-one-of-which-writes": (
        "AoEVolume",
        "v",
        {
            **VOLUME,
            "tickets": [
                {**ticket("a", LIVE, writable=False, block=True), **OTHER_GUEST},
                {**ticket("b", LIVE, block=True), **GUEST},
            ],
        },
        "only while all of them read",
    ),
    "a-reader-that-writes": ("AoEVolume", "v", {**VOLUME, "tickets": [ticket("a", READERS)]}, "reader's mode"),
    "a-node-with-two-tickets": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a"), ticket("a")]},
        "Duplicate value",
    ),
    "shelf-4095": ("AoEShelf", "main-4095", {**SHELF, "shelf": 4095}, "shelf 4095 cannot be used"),
    "shelf-65535": ("AoEShelf", "main-65535", {**SHELF, "shelf": 65535}, "65534"),
    "shelf-under-another-name": ("AoEShelf", "main-11", SHELF, "the name must be <san>-<shelf>"),
    "shelf-with-a-leading-zero": ("AoEShelf", "main-010", SHELF, "metadata.name"),
    "shelf-of-another-san": ("AoEShelf", "mainly-10", SHELF, "the name must be <san>-<shelf>"),
    "node-with-a-backward-range": (
        "AoENode",
        "storage1",
        {"sans": [{"name": "main", "interface": "eth1", "shelves": [{"first": 12, "last": 10}]}]},
        "first is greater than last",
    ),
    "node-with-two-pools-of-one-thin-pool": (
        "AoENode",
        "storage1",
        {"pools": [{"name": name, "volumeGroup": "data", "thinPool": "tp"} for name in ("a", "b")]},
        "two pools are of one place",
    ),
    "node-with-two-pools-of-one-volume-group": (
        "AoENode",
        "storage1",
        {"pools": [{"name": name, "volumeGroup": "data"} for name in ("a", "b")]},
        "two pools are of one place",
    ),
    "node-with-two-sans-on-one-card": (
        "AoENode",
        "storage1",
        {"sans": [{"name": name, "interface": "eth1", "shelves": [{"first": 1, "last": 2}]} for name in ("a", "b")]},
        "two SANs are on one interface",
    ),
    "node-with-an-upper-case-pool": (
        "AoENode",
        "storage1",
        {"pools": [{"name": "Fast", "volumeGroup": "data"}]},
        "spec.pools[0].name",
    ),
}


@pytest.mark.parametrize(("kind", "name", "spec", "message"), REFUSED_AT_CREATION.values(), ids=REFUSED_AT_CREATION)
def test_what_must_not_be_is_refused(clean: ControlPlane, kind: str, name: str, spec: Spec, message: str) -> None:
    refused = clean.kubectl("create", "-f-", stdin=manifest(kind, name, spec), check=False)
    assert refused.code != 0, "the API server took it"
    assert message in refused.stderr


REFUSED_CHANGES = {
    "shrinking": ("AoEVolume", "v", VOLUME, {**VOLUME, "size": "1023Mi"}, "a volume cannot shrink"),
    "another-pool": ("AoEVolume", "v", VOLUME, {**VOLUME, "pool": "thick"}, "pool cannot change"),
    "another-san": ("AoEVolume", "v", {**VOLUME, "san": "a"}, {**VOLUME, "san": "b"}, "san cannot change"),
    "a-san-later": ("AoEVolume", "v", VOLUME, {**VOLUME, "san": "b"}, "san cannot change"),
    "another-durability": ("AoEVolume", "v", VOLUME, {**VOLUME, "durability": "direct-sync"}, "durability cannot"),
    "a-source-later": ("AoEVolume", "v", VOLUME, {**VOLUME, "source": {"volume": "x"}}, "source cannot change"),
    "another-mode": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a")]},
        {**VOLUME, "tickets": [ticket("a", LIVE, block=True)]},
        "a ticket cannot change its mode",
    ),
    "a-second-writer": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a")]},
        {**VOLUME, "tickets": [ticket("a"), ticket("b")]},
        "another node holds this volume",
    ),
    "a-guest-on-a-node-whose-pods-have-it": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [ticket("a")]},
        {**VOLUME, "tickets": [{**ticket("a"), **GUEST}]},
        "cannot have a volume on one node",
    ),
    "pods-on-a-node-whose-guest-has-it": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [{**ticket("a"), **GUEST}]},
        {**VOLUME, "tickets": [ticket("a")]},
        "cannot have a volume on one node",
    ),
    "another-guest-of-one-node": (
        "AoEVolume",
        "v",
        {**VOLUME, "tickets": [{**ticket("a"), **GUEST}]},
        {**VOLUME, "tickets": [{**ticket("a"), **OTHER_GUEST}]},
        "cannot have a volume on one node",
    ),
    "another-snapshot": ("AoESnapshot", "s", SNAPSHOT, {**SNAPSHOT, "volume": "w"}, "a snapshot cannot change"),
    "anothers-shelf": ("AoEShelf", "main-10", SHELF, {**SHELF, "node": "storage2"}, "cannot change hands"),
    "a-node-come-back": (
        "AoENode",
        "storage1",
        {**NODE, "decommissioned": True},
        {**NODE, "decommissioned": False},
        "count as lost already",
    ),
}


@pytest.mark.parametrize("change", REFUSED_CHANGES.values(), ids=REFUSED_CHANGES)
def test_what_was_decided_stays(clean: ControlPlane, change: tuple[str, str, Spec, Spec, str]) -> None:
    kind, name, before, after, message = change
    clean.kubectl("create", "-f-", stdin=manifest(kind, name, before))
    refused = clean.kubectl("replace", "-f-", stdin=manifest(kind, name, after), check=False)
    assert refused.code != 0, "the API server took it"
    assert message in refused.stderr


ALLOWED_CHANGES = {
    "growing": (VOLUME, {**VOLUME, "size": "2Gi"}),
    "growing-in-another-unit": (VOLUME, {**VOLUME, "size": "2000000000"}),
    "a-node-is-chosen": (VOLUME, {**VOLUME, "node": "storage1"}),
    "a-node-that-never-took-it-is-changed": ({**VOLUME, "node": "storage1"}, {**VOLUME, "node": "storage2"}),
    "a-node-reboots": (
        {**VOLUME, "tickets": [ticket("a")]},
        {**VOLUME, "tickets": [{**ticket("a"), "nodeId": "a|11111111|"}]},
    ),
    "the-second-end-of-a-migration": (
        {**VOLUME, "tickets": [ticket("a", LIVE, block=True)]},
        {**VOLUME, "tickets": [ticket("a", LIVE, block=True), ticket("b", LIVE, block=True)]},
    ),
    "a-guest-moves": (
        {**VOLUME, "tickets": [{**ticket("a", LIVE, block=True), **GUEST}]},
        {**VOLUME, "tickets": [{**ticket(node, LIVE, block=True), **GUEST} for node in "ab"]},
    ),
    "guests-and-pods-read": (
        {**VOLUME, "tickets": [ticket("a", READERS, writable=False)]},
        {
            **VOLUME,
            "tickets": [
                ticket("a", READERS, writable=False),
                {**ticket("b", READERS, writable=False), **GUEST},
                {**ticket("c", READERS, writable=False), **OTHER_GUEST},
            ],
        },
    ),
    "many-readers": (
        VOLUME,
        {**VOLUME, "tickets": [ticket(f"n{number}", READERS, writable=False) for number in range(64)]},
    ),
}


@pytest.mark.parametrize(("before", "after"), ALLOWED_CHANGES.values(), ids=ALLOWED_CHANGES)
def test_what_may_change_changes(clean: ControlPlane, before: Spec, after: Spec) -> None:
    clean.kubectl("create", "-f-", stdin=manifest("AoEVolume", "v", before))
    clean.kubectl("replace", "-f-", stdin=manifest("AoEVolume", "v", after))
    stored = json.loads(clean.kubectl("get", "aoev", "v", "-ojson").stdout)["spec"]
    assert {key: stored[key] for key in after} == after


def test_a_volume_stays_where_it_was_taken_on(clean: ControlPlane) -> None:
    placed = manifest("AoEVolume", "v", {**VOLUME, "node": "storage1"})
    clean.kubectl("create", "-f-", stdin=placed)
    clean.kubectl("patch", "aoev", "v", "--subresource=status", "--type=merge", '-p={"status":{"node":"storage1"}}')
    for elsewhere in ({**VOLUME, "node": "storage2"}, VOLUME):
        refused = clean.kubectl("replace", "-f-", stdin=manifest("AoEVolume", "v", elsewhere), check=False)
        assert "its data is there" in refused.stderr
    clean.kubectl("replace", "-f-", stdin=manifest("AoEVolume", "v", {**VOLUME, "node": "storage1", "size": "2Gi"}))


def test_of_holders_that_ask_at_once_one_writes(clean: ControlPlane) -> None:
    """Each applies its own ticket; the rule is over the merged list, so no two of them can both have been let in."""
    clean.kubectl("create", "-f-", stdin=manifest("AoEVolume", "v", VOLUME))

    def ask(number: int) -> bool:
        node = f"n{number}"
        asked = clean.kubectl(
            "apply", "--server-side", f"--field-manager=holder-{node}", "-f-",
            stdin=manifest("AoEVolume", "v", {"tickets": [ticket(node)]}), check=False,
        )  # fmt: skip
        assert asked.code == 0 or "another node holds this volume" in asked.stderr
        return asked.code == 0

    with ThreadPoolExecutor(8) as pool:
        let_in = list(pool.map(ask, range(16)))
    held = json.loads(clean.kubectl("get", "aoev", "v", "-ojson").stdout)["spec"]["tickets"]
    assert [one["node"] for one in held] == [f"n{let_in.index(True)}"]
    assert let_in.count(True) == 1


def test_holders_give_back_their_own_tickets_and_no_others(clean: ControlPlane) -> None:
    clean.kubectl("create", "-f-", stdin=manifest("AoEVolume", "v", VOLUME))
    for node, tickets in (("a", [ticket("a", READERS, writable=False)]), ("b", [ticket("b", READERS, writable=False)])):
        clean.kubectl("apply", "--server-side", f"--field-manager=holder-{node}", "-f-",
                      stdin=manifest("AoEVolume", "v", {"tickets": tickets}))  # fmt: skip
    clean.kubectl("apply", "--server-side", "--field-manager=holder-a", "-f-",
                  stdin=manifest("AoEVolume", "v", {"tickets": []}))  # fmt: skip
    held = json.loads(clean.kubectl("get", "aoev", "v", "-ojson").stdout)["spec"]["tickets"]
    assert [one["node"] for one in held] == ["b"]


def test_of_many_claims_to_a_shelf_one_succeeds(clean: ControlPlane) -> None:
    def claim(number: int) -> bool:
        spec = {**SHELF, "node": f"storage{number}"}
        return clean.kubectl("create", "-f-", stdin=manifest("AoEShelf", "main-10", spec), check=False).code == 0

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim, range(10)))
    assert claimed.count(True) == 1
    owner = clean.kubectl("get", "aoesh", "main-10", "-ojsonpath={.spec.node}").stdout
    assert owner == f"storage{claimed.index(True)}"


def test_a_table_answers_what_a_person_asks(clean: ControlPlane) -> None:
    clean.kubectl("create", "-f-", stdin=manifest("AoEVolume", "v", {**VOLUME, "node": "storage1"}))
    status = {
        "phase": "Pending",
        "holders": "compute1 (e10.3)",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "NoSpace",
                "message": "pool thin is full; add a disk",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    patch = f"-p={json.dumps({'status': status})}"
    clean.kubectl("patch", "aoev", "v", "--subresource=status", "--type=merge", patch)
    head, row = clean.kubectl("get", "aoev").stdout.splitlines()
    assert head.split() == ["NAME", "PHASE", "SIZE", "POOL", "NODE", "HELD", "BY", "TROUBLE", "AGE"]
    for word in ("v", "Pending", "1Gi", "thin", "storage1", "compute1 (e10.3)", "pool thin is full; add a disk"):
        assert word in row
    everything = clean.kubectl("get", "aoe").stdout
    assert "aoevolume.aoe-csi.dev/v" in everything


def test_explain_reads_well(plane: ControlPlane) -> None:
    told = plane.kubectl("explain", "aoevolume.spec.tickets").stdout
    assert "Who may use the volume: one for each node." in told
    assert "CSI's access mode." in told


def test_a_stranger_sees_nothing(plane: ControlPlane) -> None:
    plane.identity("stranger", user="stranger")
    with pytest.raises(CommandFailed, match="Forbidden"):
        plane.kubectl("get", "aoev", as_="stranger")
