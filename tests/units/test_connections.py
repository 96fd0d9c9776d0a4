"""Proxies, families of addresses, and deadlines."""

from __future__ import annotations

import base64
import socket

import pytest
from support.units import FakeClock

import thopters

# proxies


@pytest.mark.parametrize(
    ("rules", "host", "matches"),
    [
        ("*", "api.example", True),
        ("example", "api.example", True),
        (".example", "api.example", True),
        ("*.example", "api.example", True),
        ("api.example", "api.example", True),
        (".api.example", "api.example", True),
        ("EXAMPLE", "api.example", True),
        ("other, example", "api.example", True),
        ("other,example", "api.example", True),
        ("other example", "api.example", True),
        ("  ,, example ,", "api.example", True),
        ("example:443", "api.example", True),
        ("api.example:443", "api.example", True),
        (".example:443", "api.example", True),
        ("*.example:443", "api.example", True),
        ("example:80", "api.example", False),
        ("api.example:4430", "api.example", False),
        ("", "api.example", False),
        (",", "api.example", False),
        (" , ", "api.example", False),
        (".", "api.example", False),
        ("*.", "api.example", False),
        (". *.", "api.example.", False),
        (":443", "api.example", False),
        ("ample", "api.example", False),
        ("pi.example", "api.example", False),
        ("www.api.example", "api.example", False),
        ("example.com", "api.example", False),
        ("api", "api.example", False),
        ("10.0.0.0/8", "api.example", False),
        ("/8", "api.example", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.99/24", "10.1.2.3", True),
        ("10.0.0.0/255.0.0.0", "10.1.2.3", True),
        ("nonsense/99, 10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("11.0.0.0/8", "10.1.2.3", False),
        ("0.0.0.0/0", "10.1.2.3", True),
        ("10.1.2.30", "10.1.2.3", False),
        ("::/0", "10.1.2.3", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db9::/32", "2001:db8::1", False),
        ("0.0.0.0/0", "2001:db8::1", False),
    ],
)
def test_no_proxy(rules: str, host: str, matches: bool) -> None:
    assert thopters.no_proxy_matches(host, 443, rules) is matches


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://one:3128"}, ("one", 3128)),
        ({"https_proxy": "http://one:3128/"}, ("one", 3128)),
        ({"ALL_PROXY": "http://all:1"}, ("all", 1)),
        ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://one:3128"}, ("one", 3128)),
        ({"HTTP_PROXY": "http://plain:1"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://one"}, ("one", 80)),
        ({"HTTPS_PROXY": "one:3128"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://[2001:db8::7]:3128"}, ("2001:db8::7", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "api.example:80"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other, .example:443"}, None),
        ({"HTTPS_PROXY": "http://one:3128", "no_proxy": "*"}, None),
        ({"ALL_PROXY": "http://all:1", "NO_PROXY": "example"}, None),
    ],
)
def test_which_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], proxy: tuple[str, int] | None
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = thopters.find_proxy("api.example", 443)
    assert (found and (found.host, found.port)) == proxy
    assert not found or found.headers == {}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_this_machine_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one:3128")
    assert thopters.find_proxy(host, 443) is None


def test_the_systems_own_exceptions_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one:3128")
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: host == "api.example")
    assert thopters.find_proxy("api.example", 443) is None
    assert thopters.find_proxy("other.example", 443) is not None


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("user:word", b"user:word"),
        ("user", b"user:"),
        ("us%40er:w%3Ao%2Frd", b"us@er:w:o/rd"),
        ("%C3%A9:%C3%A9", "é:é".encode()),
        (":word", b":word"),
        ("%FF:%ff\udcff", b"\xff:\xff\xff"),
    ],
)
def test_a_proxys_credentials_are_in_its_header_alone(userinfo: str, pair: bytes) -> None:
    proxy = thopters.Proxy(f"http://{userinfo}@one:3128")
    assert (proxy.host, proxy.port) == ("one", 3128)
    assert list(proxy.headers) == ["Proxy-Authorization"]
    kind, _, encoded = proxy.headers["Proxy-Authorization"].partition(" ")
    assert (kind, base64.b64decode(encoded, validate=True)) == ("Basic", pair)


@pytest.mark.parametrize(
    "url", ["https://u:c4n@one", "socks5://u:c4n@one:1", "http://", "http://:1"]
)
def test_a_proxy_of_another_kind_is_an_error_for_good(url: str) -> None:
    with pytest.raises(thopters.NotSentError) as caught:
        thopters.Proxy(url)
    assert caught.value.final
    assert "HTTPS_PROXY" in str(caught.value.hint)
    assert "c4n" not in f"{caught.value}{caught.value.hint}"


# connections


def test_a_family_that_the_system_lacks_keeps_none_from_being_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        lacking = (10_000, socket.SOCK_STREAM, 0, "", ("::1", 1, 0, 0))
        found = [lacking, (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)]
        with thopters.Deadline(10.0, thopters.Clock()) as deadline:
            sock, used = thopters.connect_tcp(found, deadline)
            with sock:
                assert sock.getpeername() == address == used[4]
            found.pop()
            with pytest.raises(OSError, match="not supported"):
                thopters.connect_tcp(found, deadline)


# deadlines


def test_what_is_left_of_a_deadline_goes_by_the_clock_and_stays_above_nothing() -> None:
    clock = FakeClock()
    deadline = thopters.Deadline(10.0, clock)
    left = []
    for seconds in (0.0, 4.0, 5.995, 1.0, 1e9):
        clock.now += seconds
        left.append(deadline.remaining())
    assert left == pytest.approx([10.0, 6.0, 0.01, 0.01, 0.01])
    assert not deadline.passed  # there was no connection to cut


def test_a_passed_deadline_ends_every_wait_on_its_connection() -> None:
    clock = FakeClock()
    ours, theirs = socket.socketpair()
    with ours, theirs, thopters.Deadline(10.0, clock) as deadline:
        clock.now += 10.0
        ours.settimeout(10.0)
        deadline.watch(ours)
        assert ours.recv(1) == b""  # nothing was sent, and nobody but the deadline closes it
        assert deadline.passed
        assert theirs.recv(1) == b""


def test_a_released_deadline_leaves_the_connection_alone() -> None:
    ours, theirs = socket.socketpair()
    other, end = socket.socketpair()
    with ours, theirs, other, end:
        with thopters.Deadline(3600.0, FakeClock()) as deadline:
            deadline.watch(ours)
            timer = deadline._timer
            deadline.watch(other)  # a second try's connection takes the first one's place
            assert timer is not None and timer.finished.is_set()
            second = deadline._timer
            assert second is not None and second is not timer
        assert second.finished.is_set()
        for one, two in ((ours, theirs), (other, end)):
            one.sendall(b"x")
            assert two.recv(1) == b"x"
        assert not deadline.passed
        deadline._expire()  # a timer that was already under way
        ours.sendall(b"y")
        assert theirs.recv(1) == b"y"


# odd settings


@pytest.mark.parametrize(
    "url",
    [
        "http://user:se/cret@proxy:80",
        "http://proxy:99999",
        "http://proxy:abc",
        "http://[::1",
        "http://user:secret@pro xy:80",
        "http://user:secret@.proxy:80",
        "http://user:secret@" + "a" * 64 + ".proxy:80",
        "http://user:secret@пример:80",
    ],
)
def test_a_malformed_proxy_is_said_without_its_password(url: str) -> None:
    with pytest.raises(thopters.NotSentError) as caught:
        thopters.Proxy(url)
    assert caught.value.final
    assert "se" + "cret" not in caught.value.message + str(caught.value.hint)
    assert caught.value.message == "the proxy settings do not hold a URL"


@pytest.mark.parametrize(("port", "match"), [(443, True), (444, False)])
def test_an_ipv6_address_with_a_port_needs_no_proxy(port: int, match: bool) -> None:
    assert thopters.no_proxy_matches("2001:db8::1", port, "[2001:db8::1]:443") is match


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        ('"http://u:c4n@one:3128"', "has quotes around it"),
        ("'http://one:3128'", "has quotes around it"),
        ('"one:3128"', "has quotes around it"),
        ("${PROXY}", "holds a reference to a variable or command"),
        ("$PROXY", "holds a reference to a variable or command"),
        ("http://${USER}:c4n@one:3128", "holds a reference to a variable or command"),
        ("http://one:$(cat port)", "holds a reference to a variable or command"),
    ],
)
def test_n11_a_proxy_that_no_shell_has_read_is_named_with_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, flaw: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(thopters.NotSentError) as caught:
        thopters.find_proxy("api.example", 443)
    assert caught.value.final
    assert caught.value.message.startswith(f"{name} {flaw}")
    assert f"write the value of {name} " in str(caught.value.hint)
    assert "c4n" not in f"{caught.value}{caught.value.hint}"
    assert thopters.find_proxy("127.0.0.1", 443) is None


@pytest.mark.parametrize("value", ['"api.example"', "'*'", "${NO_PROXY}"])
def test_n11_exceptions_that_no_shell_has_read_are_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NO_PROXY", value)
    assert thopters.find_proxy("api.example", 443) is None  # there is no proxy
    monkeypatch.setenv("HTTPS_PROXY", "http://one:3128")
    with pytest.raises(thopters.NotSentError, match=r"\ANO_PROXY h"):
        thopters.find_proxy("api.example", 443)


@pytest.mark.parametrize("password", ["pa$$word", "%22quoted%22", "a'b", "$NAME"])
def test_n11_a_password_may_look_odd(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{password}@one:3128")
    assert thopters.find_proxy("api.example", 443) is not None


def test_n11_a_proxy_without_a_host_is_not_called_one_of_another_kind() -> None:
    with pytest.raises(thopters.NotSentError, match="do not hold a URL"):
        thopters.Proxy('"http://one:3128')
