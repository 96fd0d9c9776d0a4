"""Certificates for tests, made by the openssl program: authorities, and servers' of all kinds."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

OPENSSL = shutil.which("openssl")

CONFIG = """\
[req]
distinguished_name = subject
prompt = no
[subject]
CN = {title}
[ca]
default_ca = files
[files]
database = {folder}/index
rand_serial = yes
new_certs_dir = {folder}
default_md = sha256
policy = anything
unique_subject = no
[anything]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = {key_identifier}
[server]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
subjectKeyIdentifier = {key_identifier}
authorityKeyIdentifier = {authority_identifier}
"""

LOCAL = "DNS:localhost, IP:127.0.0.1, DNS:api.test, IP:203.0.113.7"


class Authority:
    """An authority of one's own; without `identifiers` as many companies have them."""

    def __init__(self, folder: Path, *, identifiers: bool = True) -> None:
        folder.mkdir()
        self.folder = folder
        self.identifiers = identifiers
        self.certificate = folder / "authority.pem"
        self.key = folder / "authority.key"
        (folder / "index").touch()
        self._make("authority", self.certificate, self.key, "-selfsign", "-extensions", "authority")

    def issue(
        self, title: str, names: str = LOCAL, *, self_signed: bool = False, days_ago: int = 0
    ) -> Path:
        """Return a file with a server's key and certificate.

        It ended `days_ago`, if that is above 0, and begins so many days ahead, if it is below.
        """
        key, path = self.folder / f"{title}.key", self.folder / f"{title}.pem"
        signer = ["-selfsign"] if self_signed else []
        if days_ago:
            edge = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days_ago)
            span = datetime.timedelta(30)
            begins, ends = (edge - span, edge) if days_ago > 0 else (edge, edge + span)
            signer += ["-startdate", f"{begins:%y%m%d%H%M%SZ}", "-enddate", f"{ends:%y%m%d%H%M%SZ}"]
        self._make(title, path, key, *signer, "-extensions", "server", names=names)
        path.write_bytes(key.read_bytes() + path.read_bytes())
        return path

    def _make(self, title: str, path: Path, key: Path, *how: str, names: str = LOCAL) -> None:
        config, request = self.folder / f"{title}.cnf", self.folder / f"{title}.csr"
        own, others = ("hash", "keyid:always") if self.identifiers else ("none", "none")
        if "-selfsign" in how and "server" in how:
            others = "none"
        text = CONFIG.format(
            title=title,
            folder=self.folder,
            names=names,
            key_identifier=own,
            authority_identifier=others,
        )
        if openssl("version").startswith("OpenSSL 1") or "LibreSSL" in openssl("version"):
            lines = text.splitlines(keepends=True)  # these know no word for leaving one out
            text = "".join(line for line in lines if not line.endswith("Identifier = none\n"))
        config.write_text(text)
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        openssl("req", "-new", "-config", str(config), "-key", str(key), "-out", str(request))
        signer = ["-keyfile", str(key)] if "-selfsign" in how else ["-keyfile", str(self.key)]
        if "-selfsign" not in how:
            signer += ["-cert", str(self.certificate)]
        usual = ["-batch", "-notext", "-config", str(config), "-in", str(request)]
        if "-enddate" not in how:
            signer += ["-days", "30"]
        openssl("ca", *usual, "-out", str(path), *signer, *how)


def openssl(*words: str) -> str:
    if OPENSSL is None:
        raise FileNotFoundError("openssl")
    done = subprocess.run([OPENSSL, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"openssl {' '.join(words)}: {done.stderr}"
    return done.stdout


def describe(certificate: Path) -> str:
    return openssl("x509", "-in", str(certificate), "-noout", "-text")
