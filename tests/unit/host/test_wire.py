import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.host import wire
from aoe_core.host.contracts import Answer
from aoe_core.model import Address, Mac

OWN = Mac("52:54:00:00:00:01")
TARGET = Mac("52:54:00:00:01:15")
OTHER = Mac("52:54:00:00:01:16")
ADDRESS = Address(10, 3)
TAG = 0x2468ACE

macs = st.binary(min_size=6, max_size=6).map(lambda data: Mac(data.hex(":")))
frames = st.builds(
    wire.Frame,
    destination=macs,
    source=macs,
    response=st.booleans(),
    error=st.integers(0, 255),
    shelf=st.integers(0, 0xFFFF),
    slot=st.integers(0, 0xFF),
    command=st.integers(0, 0xFF),
    tag=st.integers(0, 0xFFFFFFFF),
    arguments=st.binary(max_size=600),
)


def answer_to_query(
    *, source: Mac = TARGET, destination: Mac = OWN, tag: int | None = None, **changes: object
) -> bytes:
    fields: dict[str, object] = {
        "destination": destination,
        "source": source,
        "response": True,
        "error": 0,
        "shelf": ADDRESS.shelf,
        "slot": ADDRESS.slot,
        "command": wire.COMMAND_CONFIG,
        "tag": wire.PROGRAM_TAG | TAG if tag is None else tag,
        "arguments": bytes.fromhex("0010 4019 02 10 0000"),
    }
    return wire.encode(wire.Frame(**{**fields, **changes}))  # type: ignore[arg-type]


def identity(serial: bytes, sectors: int, *, status: int = 0x40) -> bytes:
    """The arguments of a response as vblade writes them: ASCII in words with swapped bytes."""
    data = bytearray(512)
    padded = serial.ljust(20, b" ")
    data[20:40] = b"".join(padded[i : i + 2][::-1] for i in range(0, 20, 2))
    data[200:208] = struct.pack("<Q", sectors)
    return bytes([0, 0, 1, status]) + bytes(8) + bytes(data)


def identified(serial: bytes, sectors: int, *, source: Mac = TARGET, tag: int | None = None) -> bytes:
    return answer_to_query(
        source=source,
        tag=wire.PROGRAM_TAG | (TAG ^ 1) if tag is None else tag,
        command=wire.COMMAND_ATA,
        arguments=identity(serial, sectors),
    )


@pytest.fixture
def roll() -> wire.Roll:
    return wire.Roll(OWN, ADDRESS, TAG)


@given(frames)
def test_a_frame_is_read_as_it_was_written(frame: wire.Frame) -> None:
    data = wire.encode(frame)
    found = wire.decode(data)
    assert found is not None
    assert len(data) >= 60
    assert found.arguments[: len(frame.arguments)] == frame.arguments
    assert not found.arguments[len(frame.arguments) :].strip(b"\0")
    assert wire.encode(found) == data


@given(st.binary(max_size=700))
def test_no_bytes_from_the_wire_raise(data: bytes) -> None:
    roll = wire.Roll(OWN, ADDRESS, TAG)
    frame = wire.decode(data)
    assert frame is None or wire.encode(frame)[14:] == data.ljust(60, b"\0")[14:] or frame.error or data[14] & 0x3
    assert roll.take(data) is None
    assert roll.answers() == ()


@given(st.binary(max_size=600))
def test_no_arguments_raise(arguments: bytes) -> None:
    found = wire.parse_identity(arguments)
    assert found is None or (len(arguments) >= 524 and found[1] % 512 == 0)


def test_the_query_is_laid_out_as_the_protocol_says() -> None:
    data = wire.encode(wire.config_query(OWN, ADDRESS.shelf, ADDRESS.slot, 0x80000007))
    assert data.hex(" ", 2) == (
        "ffff ffff ffff 5254 0000 0001 88a2 1000 000a 0301 8000 0007 0000 0000 0010 0000" + " 0000" * 14
    )


def test_identify_is_a_read_command_of_one_sector() -> None:
    data = wire.encode(wire.identify_request(OWN, TARGET, ADDRESS, 0x80000007))
    assert data[:24].hex() == "52540000011552540000000188a21000000a030080000007"
    assert data[24:36].hex() == "000001ec" + "00" * 8


def test_serial_and_size_are_read_from_swapped_words() -> None:
    assert wire.parse_identity(identity(b"10.3:abcdefghi", 2048)) == ("10.3:abcdefghi", 1048576)


def test_an_ata_error_is_no_identity() -> None:
    assert wire.parse_identity(identity(b"10.3:abcdefghi", 2048, status=0x41)) is None


def test_every_question_carries_a_programs_tag(roll: wire.Roll) -> None:
    roll.take(answer_to_query())
    sent = [wire.decode(question) for question in roll.questions()]
    assert [frame.command for frame in sent if frame] == [wire.COMMAND_CONFIG, wire.COMMAND_ATA]
    assert all(frame.tag & 0x80000000 for frame in sent if frame)


def test_who_answers_is_asked_what_it_is(roll: wire.Roll) -> None:
    follow_up = wire.decode(roll.take(answer_to_query()) or b"")
    assert follow_up is not None
    assert (follow_up.destination, follow_up.command, follow_up.arguments[3]) == (TARGET, 0, 0xEC)
    assert roll.take(identified(b"10.3:abcdefghi", 2048)) is None
    assert roll.answers() == (Answer(mac=TARGET, serial="10.3:abcdefghi", size_bytes=1048576),)
    assert len(roll.questions()) == 1


def test_a_card_that_does_not_tell_what_it_is_still_counts(roll: wire.Roll) -> None:
    roll.take(answer_to_query())
    roll.take(answer_to_query(source=OTHER))
    roll.take(identified(b"10.3:abcdefghi", 2048))
    assert roll.answers() == (
        Answer(mac=TARGET, serial="10.3:abcdefghi", size_bytes=1048576),
        Answer(mac=OTHER, serial="", size_bytes=0),
    )


def test_two_targets_behind_one_card_are_two_answers(roll: wire.Roll) -> None:
    roll.take(answer_to_query())
    roll.take(identified(b"10.3:abcdefghi", 2048))
    roll.take(identified(b"10.3:ihgfedcba", 2048))
    assert {answer.serial for answer in roll.answers()} == {"10.3:abcdefghi", "10.3:ihgfedcba"}


@pytest.mark.parametrize(
    "stranger",
    [
        answer_to_query(response=False),
        answer_to_query(error=2),
        answer_to_query(destination=OTHER),
        answer_to_query(destination=wire.BROADCAST),
        answer_to_query(tag=0),
        answer_to_query(tag=TAG),
        answer_to_query(tag=wire.PROGRAM_TAG | (TAG ^ 1)),
        answer_to_query(shelf=11),
        answer_to_query(slot=4),
        answer_to_query(command=wire.COMMAND_ATA),
        answer_to_query(command=2),
        answer_to_query()[:12] + b"\x08\x00" + answer_to_query()[14:],
        answer_to_query()[:14] + b"\x28" + answer_to_query()[15:],
        answer_to_query()[:20],
        b"",
    ],
)
def test_a_reply_that_does_not_fit_in_every_point_is_not_counted(roll: wire.Roll, stranger: bytes) -> None:
    assert roll.take(stranger) is None
    assert roll.answers() == ()


def test_an_identity_nobody_asked_for_is_not_believed(roll: wire.Roll) -> None:
    roll.take(identified(b"10.3:abcdefghi", 2048))
    roll.take(answer_to_query())
    roll.take(identified(b"10.3:abcdefghi", 2048, tag=0x80000000))
    assert roll.answers() == (Answer(mac=TARGET, serial="", size_bytes=0),)
