import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import Invalid, NotFound
from aoe_core.model import (
    Address,
    Attachment,
    Mac,
    NodeIdentity,
    NodeName,
    SanName,
    Transport,
    VolumeId,
    derive_id,
    is_derived_id,
    parse_mac,
    serial_of,
)
from aoe_core.units import format_bytes, round_up


@given(st.text(min_size=1, max_size=128))
def test_every_name_becomes_an_id_that_lvm_and_kubernetes_take(name: str) -> None:
    made = derive_id(name)
    assert is_derived_id(made)
    assert len(made) <= 63
    assert not made.startswith("-")
    assert derive_id(name) == made


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_two_names_never_share_an_id(one: str, other: str) -> None:
    assert (derive_id(one) == derive_id(other)) == (one == other)


def test_a_name_that_looks_hashed_is_hashed() -> None:
    hashed = derive_id("Ünicode")
    assert derive_id(hashed) != hashed


@given(st.text(min_size=1, max_size=63))
def test_serials_fit_beside_the_longest_address(volume: str) -> None:
    serial = serial_of(VolumeId(volume))
    assert len(f"65534.254:{serial}") < 20
    assert serial == serial.lower()


@pytest.mark.parametrize(("shelf", "slot"), [(4095, 0), (65535, 0), (-1, 0), (1, 255), (1, -1), (70000, 1)])
def test_addresses_linux_refuses_are_refused(shelf: int, slot: int) -> None:
    with pytest.raises(Invalid):
        Address(shelf, slot)


@given(st.integers(0, 65534).filter(lambda shelf: shelf != 4095), st.integers(0, 254))
def test_addresses_are_read_as_they_are_written(shelf: int, slot: int) -> None:
    assert Address.parse(str(Address(shelf, slot))) == Address(shelf, slot)


macs = (
    st.integers(0, 2**46 - 1)
    .map(lambda number: f"{number << 2:012x}")
    .map(lambda digits: Mac(":".join(("52", *(digits[i : i + 2] for i in range(2, 12, 2))))))
)
names = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)


@given(
    names,
    st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    st.dictionaries(names.map(SanName), st.lists(macs, min_size=1, max_size=2).map(tuple), max_size=3),
)
def test_node_ids_are_read_as_they_are_written(name: str, boot: str, sans: dict[SanName, tuple[Mac, ...]]) -> None:
    node = NodeIdentity(name=NodeName(name), boot=boot, macs=tuple(sans.items()))
    assert NodeIdentity.parse(str(node)) == node


@given(st.text(max_size=300))
def test_an_id_we_cannot_have_given_names_no_node(node_id: str) -> None:
    try:
        node = NodeIdentity.parse(node_id)
    except NotFound:
        return
    assert str(node) == node_id


@pytest.mark.parametrize("text", ["", "52:54:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "52:54:00:12:34:zz"])
def test_what_is_no_network_card_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_mac(text)


def attachment() -> Attachment:
    return Attachment(
        volume_id=VolumeId("pvc-1"),
        transport=Transport.AOE,
        serial=serial_of(VolumeId("pvc-1")),
        size_bytes=1 << 30,
        filesystem="ext4",
        writable=True,
        address=Address(10, 3),
        san=SanName("main"),
        target_mac=Mac("52:54:00:00:01:0b"),
    )


def test_a_publish_context_is_read_as_it_is_written() -> None:
    assert Attachment.parse(attachment().context()) == attachment()


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"version": ""},
        {"transport": "iscsi"},
        {"address": "e4095.1"},
        {"address": ""},
        {"size_bytes": "many"},
        {"writable": "yes"},
        {"target_mac": "nonsense"},
        {"transport": "local", "device": "v-pvc-1"},
    ],
)
def test_a_damaged_publish_context_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        Attachment.parse(attachment().context() | change)


@pytest.mark.parametrize("key", ["volume_id", "transport", "serial", "size_bytes", "filesystem", "writable", "device"])
def test_a_publish_context_without_a_key_names_it(key: str) -> None:
    context = attachment().context()
    del context[key]
    with pytest.raises(Invalid, match=key):
        Attachment.parse(context)


@given(st.integers(0, 2**60), st.integers(1, 2**30))
def test_rounding_up_is_the_least_multiple(size_bytes: int, step_bytes: int) -> None:
    rounded = round_up(size_bytes, step_bytes)
    assert rounded % step_bytes == 0
    assert size_bytes <= rounded < size_bytes + step_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (700, "700 B"), (1024, "1 KiB"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_in_words(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text
