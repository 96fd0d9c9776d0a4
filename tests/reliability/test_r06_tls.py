"""R06 and R07: certificates that are not to be trusted, and the proxies of companies.

A relay speaks TLS in front of the emulator. Behind a proxy the API is https://api.test, a name
that only the proxy can resolve; a loopback name would never go through it.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from emulation import Emulator
from support.certificates import OPENSSL, Authority, describe
from support.configs import write
from support.program import MODULE, Result, Thopters
from support.pythons import compiled_by, find_python
from support.runs import run_here
from support.servers import ConnectProxy, Server, TlsRelay, allow_old_tls
from support.units import FakeClock, make_console

import thopters as program

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
BUNDLES = ("SSL_CERT_FILE", "THOPTERS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


@pytest.fixture(scope="module")
def bare_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("certificates") / "bare"
    return Authority(folder, identifiers=False)


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def secured(
    servers: ExitStack,
    emulator: Emulator,
    certificate: Path,
    *,
    newest: ssl.TLSVersion | None = None,
    meddle: Callable[[bytes, socket.socket], bytes] = lambda head, client: head,
) -> TlsRelay:
    """Return a relay that speaks TLS in front of an emulator."""
    port = int(emulator.url.rpartition(":")[2])
    relay = TlsRelay(port, certificate, meddle=meddle, newest=newest)
    servers.enter_context(relay)
    return relay


IMPATIENT = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
thopters.RetryPolicy.BACKOFF_S = 0.01
thopters.leave(thopters.main())
"""


def on_every_python(
    thopters: Thopters, *words: str, env: dict[str, str], patient: bool = True
) -> dict[str, Result]:
    """Run the program on all Pythons of this machine at once."""
    before, argv, running = thopters.env, thopters.argv, {}
    thopters.env = before | env
    for version in VERSIONS:
        python = find_python(version)
        if python:
            compiled = str(compiled_by(python))
            hurried = ["-c", IMPATIENT, str(MODULE.parent)]
            thopters.argv = [python, *([compiled] if patient else hurried)]
            running[version] = thopters.start(*words)
    thopters.env, thopters.argv = before, argv
    results = {}
    for version, process in running.items():
        out, err = process.communicate(timeout=60)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        results[version] = Result(done)
    assert results
    return results


# R06


def test_r06_three_pythons_are_there() -> None:
    """With fewer, the tests of every Python pass, but say less than they should."""
    there = [version for version in VERSIONS[:3] if find_python(version)]
    if len(there) < 3:
        pytest.skip(f"only {len(there)} of Python {', '.join(VERSIONS[:3])} are tried here")


@pytest.mark.parametrize("kind", ["self-signed", "wrong name", "expired", "unknown authority"])
def test_r06_certificates_that_are_not_to_be_trusted(
    thopters: Thopters,
    emulator: Emulator,
    servers: ExitStack,
    authority: Authority,
    tmp_path: Path,
    kind: str,
) -> None:
    """Naming an authority, which relaxes the strict profile, does not relax any of this."""
    if kind == "unknown authority":
        certificate = Authority(tmp_path / "other").issue("server")  # of the very same name
    else:
        names = "DNS:localhost.evil.test, DNS:api.test" if kind == "wrong name" else "DNS:localhost"
        certificate = authority.issue(
            kind.replace(" ", "-"),
            names,
            self_signed=kind == "self-signed",
            days_ago=1 if kind == "expired" else 0,
        )
    relay = secured(servers, emulator, certificate)
    words = {"expired": "has expired", "wrong name": "mismatch"}.get(kind, "")
    hint = {"expired": "clock", "wrong name": "address"}.get(kind, "THOPTERS_CA_BUNDLE")
    runs = 0
    for variable in BUNDLES[:2]:
        env = {"SPRITES_API_URL": relay.url, variable: str(authority.certificate)}
        for done in on_every_python(thopters, "list", env=env).values():
            check_untrusted(done, words, hint)
            runs += 1
    assert relay.accepted == runs  # none is tried again
    assert relay.handshakes == len(emulator.journal) == 0


def check_untrusted(done: Result, words: str = "", hint: str = "THOPTERS_CA_BUNDLE") -> None:
    assert (done.code, done.out) == (1, ""), done
    lines = done.err.splitlines()
    assert lines[0].startswith("thopters: error: the certificate of localhost is not trusted: ")
    assert words in lines[0], done
    assert len(lines) == 2 and hint in lines[1], done
    assert hint == "THOPTERS_CA_BUNDLE" or "THOPTERS_CA_BUNDLE" not in lines[1], done


def test_r06_an_authority_that_nobody_names_is_not_trusted(
    thopters: Thopters, emulator: Emulator, servers: ExitStack, authority: Authority
) -> None:
    relay = secured(servers, emulator, authority.issue("server"))
    for done in on_every_python(thopters, "list", env={"SPRITES_API_URL": relay.url}).values():
        check_untrusted(done)
    assert relay.handshakes == len(emulator.journal) == 0 < relay.accepted


@pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="OpenSSL here can't speak TLS 1.1")
def test_r06_tls_1_1_is_refused(
    thopters: Thopters, emulator: Emulator, servers: ExitStack, authority: Authority
) -> None:
    certificate = authority.issue("old-server")
    relay = secured(servers, emulator, certificate, newest=ssl.TLSVersion.TLSv1_1)
    env = {"SPRITES_API_URL": relay.url, "SSL_CERT_FILE": str(authority.certificate)}
    for version, done in on_every_python(thopters, "list", env=env, patient=False).items():
        assert (done.code, done.out) == (1, ""), (version, done)
        assert done.err.startswith("thopters: error: cannot reach localhost: "), (version, done)
        # the second are an older OpenSSL's words, which looks at the signature first
        assert re.search("PROTOCOL|legacy sigalg", done.err), (version, done)
        assert len(done.err.splitlines()) == 2, (version, done)
    assert relay.handshakes == 0 < relay.accepted
    assert len(emulator.journal) == 0


@pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="OpenSSL here can't speak TLS 1.1")
def test_r06_the_old_server_does_speak_tls_1_1(
    emulator: Emulator, servers: ExitStack, authority: Authority
) -> None:
    """So that the refusal is the program's doing, and not the server's."""
    relay = secured(servers, emulator, authority.issue("old-server"), newest=ssl.TLSVersion.TLSv1_1)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    allow_old_tls(context)
    sock = socket.create_connection(("127.0.0.1", relay.port), 30)
    with context.wrap_socket(sock, server_hostname="localhost") as secure:
        assert secure.version() == "TLSv1.1"


@pytest.mark.parametrize("identifiers", [True, False], ids=["with identifiers", "without"])
def test_r06_the_right_authority_is_accepted(
    thopters: Thopters,
    emulator: Emulator,
    servers: ExitStack,
    authority: Authority,
    bare_authority: Authority,
    identifiers: bool,
) -> None:
    emulator.add_sprite("dev", status="running")
    used = authority if identifiers else bare_authority
    certificate = used.issue("server")
    assert ("Authority Key Identifier" in describe(certificate)) == identifiers
    relay = secured(servers, emulator, certificate)
    for variable in BUNDLES:
        env = {"SPRITES_API_URL": relay.url, variable: str(used.certificate)}
        for version, done in on_every_python(thopters, "list", env=env).items():
            assert (done.code, done.out[:12]) == (0, "dev\trunning\t"), (variable, version, done)
    done = thopters("exec", "dev", "--", "echo", "over TLS", env=env)
    assert (done.code, done.out, done.err) == (0, "over TLS\n", ""), done
    assert relay.accepted == relay.handshakes == len(emulator.journal)


def test_r06_an_authority_without_identifiers_is_one_that_python_refuses(
    emulator: Emulator, servers: ExitStack, bare_authority: Authority
) -> None:
    """Python 3.13's own profile; without that the test above would prove less."""
    python = find_python("3.13") or find_python("3.14")
    if python is None:
        pytest.skip("no Python 3.13 here")
    relay = secured(servers, emulator, bare_authority.issue("server"))
    code = (
        "import ssl, sys, urllib.request as u\n"
        "c = ssl.create_default_context(cafile=sys.argv[1])\n"
        "u.urlopen(sys.argv[2], context=c)\n"
    )
    argv = [python, "-c", code, str(bare_authority.certificate), relay.url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "Missing Authority Key Identifier" in done.stderr, done


def test_r06_a_folder_of_authorities_and_one_that_is_not_there(
    thopters: Thopters,
    emulator: Emulator,
    servers: ExitStack,
    authority: Authority,
    tmp_path: Path,
) -> None:
    relay = secured(servers, emulator, authority.issue("server"))
    digest = subprocess.run(
        [str(OPENSSL), "x509", "-in", str(authority.certificate), "-noout", "-hash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{digest}.0").symlink_to(authority.certificate)
    env = {"SPRITES_API_URL": relay.url}
    done = thopters("list", env=env | {"THOPTERS_CA_BUNDLE": str(tmp_path / "folder")})
    assert done.code == 0, done
    for name in BUNDLES[1:]:
        done = thopters("list", env=env | {name: str(tmp_path / "none")})
        assert (done.code, done.out) == (1, "")
        where = f"cannot use the certificates of {name}: {tmp_path / 'none'}"
        hint = f"mend {name}, or unset it"
        why = "No such file or directory"
        assert done.err == f"thopters: error: {where}: {why}\nhint: {hint}\n"
    assert len(emulator.journal) == 1


class Unusable:
    """Files and folders that hold no certificate which OpenSSL could take from there."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        text = certificate.read_bytes()
        der = ["-in", str(certificate), "-outform", "der", "-out", str(folder / "der")]
        subprocess.run([str(OPENSSL), "x509", *der], check=True)
        for name, data in (("empty", b""), ("text", b"no\n"), ("cut", text[: len(text) // 2])):
            (folder / name).write_bytes(data)
        (folder / "bare").mkdir()
        (folder / "named").mkdir()
        (folder / "named" / "authority.pem").write_bytes(text)
        self.whys = {
            "none": "No such file or directory",
            "empty": "it is empty",
            "text": "no certificate in PEM form can be read from it",
            "cut": "no certificate in PEM form can be read from it",
            "der": "it is in DER form, not in PEM form",
            "bare": "it is empty",
            "named": "no file in it has a hash for its name",
        }
        self.remedies = {"der": "openssl x509 -inform der", "named": "openssl rehash"}


@pytest.mark.parametrize("variable", BUNDLES[1:])
def test_n9_what_is_wrong_with_named_certificates_is_said_with_its_path(
    thopters: Thopters,
    emulator: Emulator,
    servers: ExitStack,
    authority: Authority,
    tmp_path: Path,
    variable: str,
) -> None:
    relay = secured(servers, emulator, authority.issue("server"))
    unusable = Unusable(tmp_path, authority.certificate)
    env = thopters.env | {"SPRITES_API_URL": relay.url}
    for name, why in unusable.whys.items():
        path = str(tmp_path / name)
        done = run_here(["list"], env | {variable: path})
        assert (done.code, done.out) == (1, ""), (name, done)
        error, hint = done.err.splitlines()
        assert error == f"thopters: error: cannot use the certificates of {variable}: {path}: {why}"
        assert unusable.remedies.get(name, f"mend {variable}") in hint
    assert relay.accepted == 0


def test_n9_a_setting_that_openssl_passes_over_is_named(
    thopters: Thopters,
    emulator: Emulator,
    servers: ExitStack,
    authority: Authority,
    tmp_path: Path,
) -> None:
    """Where the certificate is trusted all the same, nobody needs to know."""
    relay = secured(servers, emulator, authority.issue("server"))
    unusable = Unusable(tmp_path, authority.certificate)
    env = {"SPRITES_API_URL": relay.url}
    for name, why in [*unusable.whys.items(), ("", "")]:
        is_folder = (tmp_path / name).is_dir() and name
        path = str(tmp_path / name) if name else ""
        for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if variable == "SSL_CERT_DIR" and not is_folder and name not in ("", "none"):
                continue  # OpenSSL 3 can take a file in its place
            done = thopters("list", env=env | {variable: path})
            check_untrusted(done, "", variable)
            said = f"{variable} names {path}, which is of no use: "
            assert (said if name else f"{variable} is empty") in done.err, done
            is_file_wanted = variable == "SSL_CERT_FILE" and is_folder
            assert ("it is a folder" if is_file_wanted else why) in done.err, done
    good = {"THOPTERS_CA_BUNDLE": str(authority.certificate)}
    done = thopters("list", env=env | good | {"SSL_CERT_FILE": str(tmp_path / "none")})
    assert (done.code, "SSL_CERT_FILE" in done.err) == (0, False), done
    (tmp_path / "hashed").mkdir()
    (tmp_path / "hashed" / "01234567.0").touch()
    both_folders = os.pathsep.join((str(tmp_path / "none"), str(tmp_path / "hashed")))
    check_untrusted(thopters("list", env=env | {"SSL_CERT_DIR": both_folders}))


@pytest.mark.parametrize("days_ago", [1, -1], ids=["expired", "not yet valid"])
@pytest.mark.parametrize("whose", ["the server's", "behind a proxy"])
def test_n9_a_certificate_out_of_its_time_has_the_clock_looked_at(
    company: Company, authority: Authority, days_ago: int, whose: str
) -> None:
    company.certificate = authority.issue(f"time{days_ago}", days_ago=days_ago)
    relay = company.open()
    host = "api.test"
    if whose == "the server's":
        company.thopters.env["SPRITES_API_URL"], host = relay.url, "localhost"
    done = company.run("list")
    assert (done.code, done.out) == (1, "")
    error, hint = done.err.removeprefix(TOKEN_GOES).splitlines()
    why = "certificate has expired" if days_ago > 0 else "certificate is not yet valid"
    assert error == f"thopters: error: the certificate of {host} is not trusted: {why}"
    assert re.match(r"hint: this machine's clock says 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ: ", hint)
    assert "THOPTERS_CA_BUNDLE" not in hint


def test_r06_a_key_log_that_can_not_be_written_is_said(
    thopters: Thopters, emulator: Emulator, servers: ExitStack, authority: Authority
) -> None:
    relay = secured(servers, emulator, authority.issue("server"))
    env = {"SPRITES_API_URL": relay.url, "THOPTERS_CA_BUNDLE": str(authority.certificate)}
    for path, why in (("/nonexistent/x", "No such file or directory"), ("/", "Is a directory")):
        done = thopters("list", env=env | {"SSLKEYLOGFILE": path})
        assert (done.code, done.out) == (1, "")
        said = f"thopters: error: cannot write the file that SSLKEYLOGFILE names: {why}\nhint: "
        assert done.err.startswith(said), done
    assert relay.accepted == 0


# R07

TOKEN_GOES = "SPRITE_TOKEN goes to api.test, which SPRITES_API_URL names\n"
USER, PASSWORD = "us@er", "pass:wörd/%41 ottoman"
PROXY_AUTHORIZATION = b"Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode())


class Company:
    """A network in which the way out is a proxy, and names are the proxy's business."""

    def __init__(
        self, servers: ExitStack, thopters: Thopters, emulator: Emulator, authority: Authority
    ) -> None:
        self.servers = servers
        self.thopters = thopters
        self.emulator = emulator
        self.certificate = authority.issue("server")
        self.proxy: ConnectProxy
        thopters.env |= {
            "SPRITES_API_URL": "https://api.test",
            "THOPTERS_CA_BUNDLE": str(authority.certificate),
        }

    def open(
        self,
        refusal: bytes = b"",
        meddle: Callable[[bytes, socket.socket], bytes] = lambda head, client: head,
    ) -> TlsRelay:
        self.relay = secured(self.servers, self.emulator, self.certificate, meddle=meddle)
        self.proxy = ConnectProxy(self.relay.port, refusal)
        self.servers.enter_context(self.proxy)
        self.use(f"http://127.0.0.1:{self.proxy.port}")
        return self.relay

    def use(self, url: str) -> None:
        user = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
        self.thopters.env["HTTPS_PROXY"] = url.replace("//", "//" + user)

    def run(self, *words: str, stdin: bytes | None = None) -> Result:
        """Run a command, and look what the proxy and the user get to see."""
        done = self.thopters(*words, stdin=stdin)
        self.check_words(done.out + done.err)
        if hasattr(self, "proxy"):
            assert b"bearer" not in self.proxy.seen.lower()
            assert self.emulator.token.encode() not in self.proxy.seen
            for head in self.proxy.heads:
                lines = head.split(b"\r\n")
                assert lines[0].split()[:2] == [b"CONNECT", b"api.test:443"]
                assert b"Proxy-Authorization: " + PROXY_AUTHORIZATION in lines
                assert b"Host: api.test:443" in lines or lines[0].endswith(b" HTTP/1.0")
                assert head.count(b"uthorization") == 1
        for request in self.emulator.journal:
            assert "Proxy-Authorization" not in request.headers
        return done

    def check_words(self, text: str) -> None:
        """Assert that the token and the proxy's password, however encoded, are not in a text."""
        pair = PROXY_AUTHORIZATION.split()[1].decode()
        for secret in ("wörd", "ottoman", "us@er", quote(PASSWORD, safe=""), pair[:12], pair[-9:]):
            assert secret not in text
        assert self.emulator.token not in text


@pytest.fixture
def company(
    servers: ExitStack, thopters: Thopters, emulator: Emulator, authority: Authority
) -> Company:
    emulator.add_sprite("dev", status="running")
    return Company(servers, thopters, emulator, authority)


def test_r07_requests_and_websockets_go_through_the_proxy(company: Company) -> None:
    relay = company.open()
    done = company.run("--debug", "list")
    assert (done.code, done.out[:4]) == (0, "dev\t"), done
    done = company.run("--debug", "exec", "dev", "-i", "--", "sh", "-c", "cat; exit 7", stdin=b"in")
    assert (done.code, done.out) == (7, "in"), done
    assert [request.method for request in company.emulator.journal] == ["GET", "WS"]
    hosts = [request.headers.get_all("Host") for request in company.emulator.journal]
    assert hosts == [["api.test"]] * 2
    assert company.proxy.accepted == relay.handshakes == len(company.proxy.heads) == 2
    assert len(company.proxy.seen) > 2000  # it did go through here


def test_r07_megabytes_go_through_the_proxy(company: Company) -> None:
    company.open()
    data = os.urandom(3 << 20)
    done = company.run("exec", "dev", "-i", "--", "wc", "-c", stdin=data)
    assert (done.code, done.out.strip()) == (0, str(len(data))), done
    done = company.run("exec", "dev", "--", "head", "-c", "3000000", "/dev/zero")
    assert (done.code, done.out_bytes == bytes(3_000_000)) == (0, True)


REFUSALS = {
    "407": (
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
        b"Content-Length: 0\r\n\r\n"
    ),
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno\x1b[m",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_r07_a_refusal_by_the_proxy_is_final(company: Company, status: str) -> None:
    relay = company.open(REFUSALS[status])
    for words in (["list"], ["exec", "dev", "--", "true"], ["create", "new"]):
        before = company.proxy.accepted
        done = company.run("--debug", *words)
        assert (done.code, done.out) == (255 if words[0] == "exec" else 1, "")
        errors = [line for line in done.err.splitlines() if line.startswith("thopters: error: ")]
        where = f"cannot reach api.test through the proxy 127.0.0.1:{company.proxy.port}: "
        assert len(errors) == 1 and where in errors[0] and status in errors[0], done
        assert company.proxy.accepted == before + 1
    assert relay.accepted == len(company.emulator.journal) == 0


def test_r07_a_proxys_own_words_are_cut_and_hold_no_password(company: Company) -> None:
    for said in (f"bad login bob:{PASSWORD}", f"bad login {quote(PASSWORD, safe='')}"):
        with ExitStack() as company.servers:
            company.open(f"HTTP/1.1 407 {said} {'z' * 60_000}\r\n\r\n".encode("latin-1"))
            done = company.run("--debug", "list")
        assert (done.code, done.out) == (1, "")
        assert "Tunnel connection failed: 407 bad login " in done.err and "****" in done.err
        assert "zzzz" in done.err and len(done.err) < 600
        assert company.proxy.accepted == 1


@pytest.mark.parametrize("host", ["pro xy", "пример", ".proxy", "a" * 64 + ".proxy"])
def test_r07_a_proxy_whose_host_can_be_none_is_refused(company: Company, host: str) -> None:
    company.use(f"http://{host}:1")
    for words, code in ((["list"], 1), (["exec", "dev", "--", "true"], 255)):
        done = company.thopters(*words)
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith(
            f"{TOKEN_GOES}thopters: error: the proxy settings do not hold a URL\nhint: "
        )
        company.check_words(done.err)


def test_r07_a_dead_proxy(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the waits between the tries need no time."""
    relay = company.open()
    with Server() as gone:
        port = gone.port
    company.use(f"http://127.0.0.1:{port}")
    clock = FakeClock()
    monkeypatch.setattr(program, "Clock", lambda: clock)
    monkeypatch.setenv("HTTPS_PROXY", company.thopters.env["HTTPS_PROXY"])
    done = run_here(["--debug", "list"], company.thopters.env)
    assert (done.code, done.out) == (1, "")
    where = f"cannot reach api.test through the proxy 127.0.0.1:{port}: Connection refused"
    assert f"thopters: error: {where}\nhint: " in done.err
    company.check_words(done.out + done.err)
    assert clock.slept == [0.25, 0.5, 1.0]
    assert relay.accepted == company.proxy.accepted == 0


def test_r07_a_proxy_of_another_kind_is_refused(company: Company) -> None:
    company.open()
    commands = (["list"], ["exec", "dev", "--", "true"])
    for scheme, words in itertools.product(("https", "socks5", "socks4"), commands):
        company.use(f"{scheme}://127.0.0.1:{company.proxy.port}")
        done = company.run("--debug", *words)
        assert done.code in (1, 255) and done.out == ""
        assert f"a proxy of a kind that is not supported ({scheme})" in done.err
    assert company.proxy.accepted == company.relay.accepted == 0  # nothing is said to it in clear


def test_r07_a_certificate_behind_a_proxy_is_still_verified(
    company: Company, tmp_path: Path
) -> None:
    company.certificate = Authority(tmp_path / "other").issue("server")
    company.open()
    for words in (["list"], ["exec", "dev", "--", "true"]):
        done = company.run(*words)
        assert done.code in (1, 255)
        assert "the certificate of api.test is not trusted: " in done.err
    assert len(company.emulator.journal) == 0 < company.proxy.accepted


def test_r07_this_machine_is_never_asked_for_through_a_proxy(company: Company) -> None:
    company.open()
    for host in ("localhost", "127.0.0.1"):
        company.thopters.env["SPRITES_API_URL"] = f"https://{host}:{company.relay.port}"
        assert company.run("list").code == 0
    assert company.proxy.accepted == 0


ADDRESS = "203.0.113.7"  # of nobody, for documents
NO_PROXY: list[tuple[str, str, bool]] = [
    ("", "api.test", True),
    ("*", "api.test", False),
    ("api.test", "api.test", False),
    ("API.TEST", "api.test", False),
    ("test", "api.test", False),
    (".test", "api.test", False),
    ("*.test", "api.test", False),
    ("api.test:443", "api.test", False),
    ("api.test:8443", "api.test", True),
    ("other.test, .test", "api.test", False),
    ("other.test api.test", "api.test", False),
    ("pi.test", "api.test", True),
    ("sub.api.test", "api.test", True),
    ("127.0.0.0/8", "api.test", True),  # rules are for the name as it is given
    (ADDRESS, ADDRESS, False),
    ("203.0.113.0/24", ADDRESS, False),
    ("203.0.112.0/24", ADDRESS, True),
    ("[2001:db8::1], 203.0.113.7:443", ADDRESS, False),
]


def test_r07_exceptions_from_the_proxy(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, so that the direct way has somewhere to lead to."""
    relay = company.open()

    def resolve(name: str, port: int, deadline: program.Deadline) -> list[tuple[object, ...]]:
        if name == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (name, port))]
        assert (name, port) == (host, 443)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", relay.port))]

    monkeypatch.setattr(program, "resolve", resolve)
    monkeypatch.setenv("HTTPS_PROXY", company.thopters.env["HTTPS_PROXY"])
    for (rules, host, proxied), variable in itertools.product(NO_PROXY, ("NO_PROXY", "no_proxy")):
        monkeypatch.setenv(variable, rules)
        relay.handshakes = company.proxy.accepted = 0
        transport = program.Transport(
            f"https://{host}",
            program.Credential(program.Secret(company.emulator.token), "a test"),
            console=make_console(),
            clock=FakeClock(),
            environ=company.thopters.env,
        )
        assert transport.fetch("GET", "/v1/sprites").status == 200
        assert (relay.handshakes, company.proxy.accepted) == (1, int(proxied)), rules
        websocket = program.open_websocket(transport, "/v1/sprites/dev/exec?cmd=true", 30)
        assert isinstance(websocket, program.WebSocket)
        websocket.close()
        assert (relay.handshakes, company.proxy.accepted) == (1, int(proxied)), rules
        monkeypatch.delenv(variable)


CREDENTIALS = {
    "user:word@": b"user:word",
    "user@": b"user:",
    "us%40er:w%3Ao%2Frd%20x@": b"us@er:w:o/rd x",
    "%C3%A9:%C3%A9@": "é:é".encode(),
    ":word@": b":word",
    "us%FFer:w\udcffrd@": b"us\xffer:w\xffrd",  # no UTF-8
    "": b"",
}


def test_r07_credentials_arrive_decoded(company: Company) -> None:
    company.open()
    for userinfo, pair in CREDENTIALS.items():
        company.thopters.env["HTTPS_PROXY"] = f"http://{userinfo}127.0.0.1:{company.proxy.port}"
        assert company.thopters("list").code == 0
        lines = company.proxy.heads[-1].split(b"\r\n")
        sent = [line for line in lines if line.lower().startswith(b"proxy-auth")]
        line = b"Proxy-Authorization: Basic " + base64.b64encode(pair)
        assert sent == ([line] if pair else []), userinfo
    assert b"bearer" not in company.proxy.seen.lower()
    assert company.emulator.token.encode() not in company.proxy.seen


# what looks into TLS, and knows no WebSockets


def refuse_with(answer: bytes) -> Callable[[bytes, socket.socket], bytes]:
    def meddle(head: bytes, client: socket.socket) -> bytes:
        if b"\r\nupgrade: websocket" not in head.lower():
            return head
        client.sendall(answer)
        return b""

    return meddle


def strip_upgrade(head: bytes, client: socket.socket) -> bytes:
    lines = head.split(b"\r\n")
    names = (b"upgrade:", b"connection:", b"sec-websocket")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(names))


def refusal(status: int, *headers: str) -> bytes:
    body = b"<html>The filter says no."
    named = ["Content-Type: text/html", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([f"HTTP/1.1 {status} No", *named, "", ""]).encode() + body


BROKEN_UPGRADE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
)
MIDDLEBOXES = {
    **{
        str(status): (refuse_with(refusal(status)), f"answered {status} to")
        for status in (400, 403, 405, 501)
    },
    "426": (refuse_with(refusal(426, "Upgrade: h2c")), "answered 426 to"),
    "stripped": (strip_upgrade, "answered 200 to"),
    "broken": (refuse_with(BROKEN_UPGRADE), "broke"),
}


@pytest.mark.parametrize("kind", MIDDLEBOXES)
def test_r07_without_websockets_commands_go_by_post(company: Company, kind: str) -> None:
    meddle, why = MIDDLEBOXES[kind]
    company.open(meddle=meddle)
    home = company.emulator.sprite("dev").home
    script = "cat; printf '\\1\\2\\3\\0'; echo err >&2; echo once >> runs; exit 7"
    done = company.run("exec", "-v", "dev", "-i", "--", "sh", "-c", script, stdin=b"\1in\3")
    assert (done.code, done.out_bytes) == (7, b"\1in\3\1\2\3\0"), done
    says = f"API {why} the WebSocket upgrade; commands are sent by POST instead"
    assert says in done.err, done
    assert done.err.endswith("err\n")
    assert (home / "runs").read_text() == "once\n"
    assert [way for _, _, way in company.emulator.journal.executed] == ["post"]


def test_r07_without_websockets_init_and_create_work_too(company: Company) -> None:
    company.open(meddle=refuse_with(refusal(403)))
    config = company.thopters.home / ".sprite-thopters" / "config.json"
    write(config, {"secrets": {"ANTHROPIC_API_KEY": "sk-'1"}, "git": {"user": "A", "email": "a@b"}})
    says = "answered 403 to the WebSocket upgrade; commands are sent by POST instead"
    for words in (["init", "dev"], ["create", "new"]):
        company.emulator.journal.clear()
        done = company.run(*words, "-v")
        assert done.code == 0, done
        assert done.err.count(says) == 1, done  # the way is known from then on
        assert {way for _, _, way in company.emulator.journal.executed} == {"post"}
        env = company.emulator.sprite(words[1]).home / ".thopters" / "env"
        assert "ANTHROPIC_API_KEY" in env.read_text()
    done = company.run("exec", "new", "--", "bash", "-c", 'printf %s "$ANTHROPIC_API_KEY"')
    assert (done.code, done.out, done.err) == (0, "sk-'1", TOKEN_GOES), done


def test_r07_what_needs_websockets_says_so(company: Company) -> None:
    company.open(meddle=refuse_with(refusal(403)))
    for words in (["shell", "dev", "--native"], ["proxy", "dev", "-W", "localhost:1"]):
        done = company.run(*words)
        assert (done.code, done.out) == (255 if words[0] == "shell" else 1, "")
        why = "something between here and the API answered 403 to the WebSocket upgrade"
        assert f"error: {why}\nhint: exec -T, init, create and cp do without" in done.err, done


def test_r07_an_answer_of_the_api_itself_is_no_refused_upgrade(company: Company) -> None:
    """The API's own 403 has its own words, which are passed on; nothing runs by POST."""
    body = b'{"error": "forbidden", "message": "not this sprite"}'
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    company.open(meddle=refuse_with(head % len(body) + body))
    done = company.run("exec", "-v", "dev", "--", "true")
    assert (done.code, done.out) == (255, "")
    assert "not this sprite" in done.err and "by POST" not in done.err
    assert company.emulator.journal.executed == []
