"""Frames of a WebSocket as they come and as they are sent; an encoder of our own judges them."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.server
import io
import random
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from support.frames import BROKEN_FRAMES, Peer, cut, server_frame

import thopters

# what the server sends


SIZES = (0, 1, 2, 125, 126, 127, 65535, 65536, 65537)
Messages = list[tuple[int, bytes]]


def random_frames(rng: random.Random, count: int, sizes: Sequence[int]) -> tuple[bytes, Messages]:
    """Return a stream, whole and fragmented messages with control frames between, and the
    messages that it holds."""
    stream = bytearray()
    messages: Messages = []

    def control() -> None:
        opcode, payload = rng.choice((8, 9, 10)), rng.randbytes(rng.choice((0, 1, 60, 125)))
        stream.extend(server_frame(opcode, payload))
        messages.append((opcode, payload))

    for _ in range(count):
        opcode, payload = rng.choice((1, 2)), rng.randbytes(rng.choice(sizes))
        pieces = cut(payload, (rng.randint(0, len(payload)) for _ in range(rng.randrange(4))))
        for number, piece in enumerate(pieces):
            if rng.random() < 0.4:
                control()
            last = number == len(pieces) - 1
            stream += server_frame(0 if number else opcode, piece, final=last)
        messages.append((opcode, payload))
    return bytes(stream), messages


def feed(parser: thopters.FrameParser, pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Have the parser receive `pieces`, and yield what comes out."""
    for opcode, payload in parser.messages():  # of the bytes that came early
        yield opcode, bytes(payload)
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = parser.space()
            count = min(len(room), len(rest))
            assert count, "the parser has no room left"
            room[:count] = rest[:count]
            parser.received(count)
            rest = rest[count:]
            for opcode, payload in parser.messages():
                yield opcode, bytes(payload)


def test_frames_are_the_same_messages_wherever_the_stream_is_cut() -> None:
    stream, messages = random_frames(random.Random(1), 12, (0, 1, 5, 125, 126, 130))
    assert {1, 2, 8, 9, 10} == {opcode for opcode, _ in messages}
    for place in range(len(stream) + 1):
        early, late = cut(stream, [place])
        assert list(feed(thopters.FrameParser(early), [late])) == messages
    byte_by_byte = cut(stream, range(1, len(stream)))
    assert list(feed(thopters.FrameParser(b""), byte_by_byte)) == messages


@pytest.mark.parametrize("seed", range(8))
def test_frames_of_every_size_survive_random_cuts(seed: int) -> None:
    rng = random.Random(seed)
    stream, messages = random_frames(rng, 30, SIZES)
    places = rng.sample(range(1, len(stream)), rng.choice((1, 50, 2000)))
    early, *pieces = cut(stream, places)
    assert list(feed(thopters.FrameParser(early), pieces)) == messages


def test_the_end_of_the_stream_is_no_end_in_the_middle_of_a_message() -> None:
    half, last = server_frame(1, b"a", final=False), server_frame(0, b"b")
    ping, stream = server_frame(9, b"p"), server_frame(2, b"x" * 300)
    stream += half + ping + last + ping
    between = {0, len(stream) - len(ping), len(stream)}
    between.add(len(server_frame(2, b"x" * 300)))
    for size in range(len(stream) + 1):
        parser = thopters.FrameParser(b"")
        list(feed(parser, [stream[:size]]))
        assert parser.is_amid() == (size not in between), size


@pytest.mark.parametrize("size", SIZES)
def test_a_message_comes_with_its_last_byte_and_not_before(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    stream = server_frame(2, payload)
    parser = thopters.FrameParser(b"")
    assert list(feed(parser, [stream[:-1]])) == []
    assert list(feed(parser, [stream[-1:]])) == [(2, payload)]


def test_the_buffer_holds_a_large_message_and_does_not_grow_with_what_has_passed() -> None:
    rng = random.Random(1)
    large, small = rng.randbytes(5_000_000), rng.randbytes(60_000)
    parser = thopters.FrameParser(b"")
    for _ in range(200):
        assert list(feed(parser, [server_frame(2, small)])) == [(2, small)]
        assert len(parser.space()) <= parser.ROOM
    pieces = cut(server_frame(2, large), range(50_000, 5_000_000, 50_000))
    assert list(feed(parser, pieces)) == [(2, large)]
    largest = len(parser.space())
    assert list(feed(parser, pieces * 3)) == [(2, large)] * 3
    assert len(parser.space()) == largest


@pytest.mark.parametrize("broken", BROKEN_FRAMES.values(), ids=BROKEN_FRAMES.keys())
@pytest.mark.parametrize("whole", [True, False])
def test_a_broken_frame_ends_the_connection_after_what_was_good(broken: bytes, whole: bool) -> None:
    stream = server_frame(2, b"good") + broken
    pieces = [stream] if whole else cut(stream, range(1, len(stream)))
    came: Messages = []
    with pytest.raises(thopters.WebSocketLost):
        for message in feed(thopters.FrameParser(b""), pieces):
            came.append(message)
    assert came in ([(2, b"good")], [(2, b"good"), (1, b"begunx")])


def test_a_message_may_be_as_long_as_the_limit_and_not_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thopters, "MAX_MESSAGE_BYTES", 1000)
    whole = server_frame(2, bytes(1000))
    halves = server_frame(2, bytes(500), final=False) + server_frame(0, bytes(500))
    good = [(2, bytes(1000))]
    assert list(feed(thopters.FrameParser(b""), [whole, halves])) == good * 2
    head = server_frame(2, bytes(1001))[:4]
    pieces = server_frame(2, bytes(500), final=False) + server_frame(0, bytes(501), final=False)
    for long in (head, pieces):
        with pytest.raises(thopters.WebSocketLost, match="too long"):
            list(feed(thopters.FrameParser(b""), [long]))


# what we send


def xor(payload: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


@pytest.mark.parametrize("size", [*range(20), *SIZES])
def test_a_mask_is_the_key_xored_over_and_over(size: int) -> None:
    rng = random.Random(size)
    for key in (rng.randbytes(4), b"\0\0\0\0", b"\xff\0\0\0"):
        payload = rng.randbytes(size)
        assert thopters.mask(payload, key) == xor(payload, key)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [1, 2, 8, 9, 10])
def test_a_sent_frame_is_final_masked_and_minimal(opcode: int, size: int) -> None:
    rng = random.Random(size)
    payload, key = rng.randbytes(size), rng.randbytes(4)
    head = bytearray(server_frame(opcode, payload)[: -size or None])
    head[1] |= 0x80
    assert thopters.encode_frame(opcode, payload, key) == bytes(head) + key + xor(payload, key)


def test_s18_each_frame_has_a_mask_that_nobody_can_know_beforehand() -> None:
    """RFC 6455, 5.3: else whoever chooses what we send chooses what is on the wire."""
    ours, theirs = socket.socketpair()
    peer: Any = Peer(ours)
    with ours, theirs:
        websocket = thopters.WebSocket(peer, server_frame(9), thopters.Clock())
        list(websocket.messages())  # a ping, which is answered
        for _ in range(8):
            websocket.send(2, b"same", input_bytes=4)
            websocket.ping()
        websocket.close()
        stream, masks = theirs.recv(1 << 16), []
        while stream:
            end = 6 + (stream[1] & 0x7F)
            masks.append(stream[2:6])
            stream = stream[end:]
    assert len(masks) == len(set(masks)) == 18
    assert bytes(4) not in masks


# how it begins and ends


@pytest.mark.parametrize(
    ("payload", "words", "is_end"),
    [
        (b"", "the connection was closed", True),
        (b"\x03", "the connection was closed", True),
        (b"\x03\xe8", "closed with code 1000", True),
        (b"\x03\xe9going", "closed with code 1001: going", True),
        (b"\x0f\xa0bye", "closed with code 4000: bye", False),
        (b"\x03\xf3\xff", "closed with code 1011: \ufffd", False),
    ],
)
def test_the_reason_of_a_close(payload: bytes, words: str, is_end: bool) -> None:
    lost = thopters.end_of(payload)
    assert (str(lost), lost.is_end) == (words, is_end)


def test_a_reset_right_behind_the_upgrade_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the head is read, and before anything is waited for: rare in a process."""
    ours, theirs = socket.socketpair()

    class Connection(http.client.HTTPConnection):
        def __init__(self) -> None:
            super().__init__("127.0.0.1", 1)
            self.sock = ours

        def request(self, *request: Any, **_: Any) -> None:
            key = request[-1]["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            proof = base64.b64encode(hashlib.sha1(key.encode()).digest())  # noqa: S324
            theirs.sendall(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n")

        def getresponse(self) -> http.client.HTTPResponse:
            response = thopters.response_classes()[1](ours)
            response.begin()
            response.fp = io.BufferedReader(Reset())
            return response

    class Reset(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    console = thopters.Console(io.StringIO(), io.StringIO(), {})
    credential = thopters.Credential(thopters.Secret("token"), "a test")
    transport = thopters.Transport(
        "http://127.0.0.1:1", credential, console=console, clock=thopters.Clock(), environ={}
    )
    monkeypatch.setattr(transport.connector, "open", lambda limit_s: Connection())
    with ours, theirs, pytest.raises(thopters.NoAnswerError, match="broke off"):
        thopters.open_websocket(transport, "/", 10.0)
