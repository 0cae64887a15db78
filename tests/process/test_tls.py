"""Own authorities and client certificates against a real TLS server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from itel_cabinet.io.http import CallError, Connection, ConnectionSettings, TlsFiles
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import RefusedError
from tests.support.faulty_server import Act, FaultyServer, answer

_PASSPHRASE = b"open sesame"


@dataclass
class Authority:
    """A certificate authority that signs what it is asked to, in a folder of its own."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, *, address: str = "127.0.0.1", passphrase: bytes | None = None) -> tuple[Path, Path]:
        """The files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
        certificate = self._sign(name, key, alternative)
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files[1].write_bytes(key.private_bytes(encoding, form, protection))
        return files

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self.key, hashes.SHA256())
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def tls_server(certificate: tuple[Path, Path], clients_of: Authority | None = None) -> ssl.SSLContext:
    """A server's side of TLS, which demands a certificate of that authority if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients_of.file)
    return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "our authority")


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(tls: ssl.SSLContext, act: Act | None = None) -> FaultyServer:
        servers.append(FaultyServer(act or answer(200, b"[1]"), tls=tls).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def connect(url: str, **files: Path) -> Connection:
    tls = TlsFiles(**{name: str(path) for name, path in files.items()})
    return Connection(ConnectionSettings("claimx", url, max_retries=0, tls=tls))


def test_a_certificate_of_an_own_authority_is_trusted_if_it_is_named(authority: Authority, serve: Any) -> None:
    server = serve(tls_server(authority.issue("server")))
    with pytest.raises(CallError, match="unable to get local issuer certificate") as caught:
        connect(server.url).call("GET", "/x")
    assert caught.value.kind == "unreachable"
    commented = authority.file.with_name("commented.pem")
    commented.write_text(f"# Unsere Behörde\n{authority.file.read_text()}", encoding="utf-8")
    for file in (authority.file, commented):
        assert connect(server.url, ca=file).call("GET", "/x").body == b"[1]"


def test_an_own_authority_is_trusted_beside_the_usual_ones(
    authority: Authority, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Authority(tmp_path / "usual", "usual authority")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(usual.file))
    for issuer in (usual, authority):
        server = serve(tls_server(issuer.issue("server")))
        assert connect(server.url, ca=authority.file).call("GET", "/x").body == b"[1]"


def test_an_authority_of_the_system_is_trusted(
    authority: Authority, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))  # where OpenSSL looks for the system's
    server = serve(tls_server(authority.issue("server")))
    assert connect(server.url).call("GET", "/x").body == b"[1]"
    elsewhere = serve(tls_server(authority.issue("server", address="127.0.0.9")))
    with pytest.raises(CallError, match="IP address mismatch"):
        connect(elsewhere.url).call("GET", "/x")


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_bundle_that_cannot_be_read_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "gone.pem"))
    settings = ConnectionSettings("claimx", "https://claimx.example")
    for attempt in (settings.check, lambda: Connection(settings)):
        with pytest.raises(RefusedError, match=rf"^{name} names .*gone\.pem, which is no file that can be read"):
            attempt()
    ConnectionSettings("claimx", "http://claimx.example").check()


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "ftp"])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_of_another_kind_is_refused(name: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, f"{scheme}://user:s3cr3t@proxy.example:1080")
    with pytest.raises(RefusedError) as caught:
        ConnectionSettings("claimx", "https://claimx.example").check()
    assert str(caught.value) == f"{name}: {scheme}://proxy.example is no http:// or https:// proxy"
    monkeypatch.setenv("NO_PROXY", "claimx.example")
    ConnectionSettings("claimx", "https://claimx.example").check()


def test_the_host_s_name_is_checked_all_the_same(authority: Authority, serve: Any) -> None:
    server = serve(tls_server(authority.issue("server", address="127.0.0.9")))
    with pytest.raises(CallError, match="IP address mismatch"):
        connect(server.url, ca=authority.file).call("GET", "/x")
    assert server.requests == []


def test_a_server_that_demands_a_client_certificate_gets_it(authority: Authority, serve: Any, tmp_path: Path) -> None:
    shown: list[str] = []

    def see(handler: Any) -> None:
        shown.append(handler.connection.getpeercert()["subject"][0][0][1])
        answer(200, b"[2]")(handler)

    server = serve(tls_server(authority.issue("server"), clients_of=authority), see)
    certificate, key = authority.issue("cabinet job")
    assert connect(server.url, ca=authority.file, client_cert=certificate, client_key=key).call("GET", "/x").ok
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert connect(server.url, ca=authority.file, client_cert=both).call("GET", "/x").ok
    assert shown == ["cabinet job"] * 2


def test_no_client_certificate_or_a_foreign_one_is_a_failure(authority: Authority, serve: Any, tmp_path: Path) -> None:
    server = serve(tls_server(authority.issue("server"), clients_of=authority))
    certificate, key = Authority(tmp_path / "foreign", "foreign authority").issue("cabinet job")
    for files in ({}, {"client_cert": certificate, "client_key": key}):
        with pytest.raises(CallError) as caught:
            connect(server.url, ca=authority.file, **files).call("GET", "/x")
        assert caught.value.kind in ("unreachable", "reset")
    assert server.requests == []


def test_a_renewed_client_certificate_needs_no_restart(authority: Authority, serve: Any) -> None:
    shown: list[str] = []

    def see(handler: Any) -> None:
        shown.append(handler.connection.getpeercert()["serialNumber"])
        answer(200)(handler)

    server = serve(tls_server(authority.issue("server"), clients_of=authority), see)
    certificate, key = authority.issue("cabinet job")
    link = connect(server.url, ca=authority.file, client_cert=certificate, client_key=key)
    link.call("GET", "/x")
    authority.issue("cabinet job")
    link.close()
    link.call("GET", "/x")
    assert len(set(shown)) == 2
    certificate.unlink()
    link.close()
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "unreachable"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca": "none.pem"}, "ca: '{0}/none.pem' cannot be read: No such file or directory"),
        ({"ca": "."}, "ca: '{0}' cannot be read: Is a directory"),
        ({"ca": "junk.pem"}, "ca: {0}/junk.pem holds no certificate in PEM form"),
        ({"ca": "empty.pem"}, "ca: {0}/empty.pem holds no certificate in PEM form"),
        ({"ca": "huge.pem"}, "ca: {0}/huge.pem is larger than 4194304 bytes"),
        ({"client_cert": "none.pem"}, "client_cert: '{0}/none.pem' cannot be read"),
        ({"client_cert": "job.crt"}, "client_cert: {0}/job.crt and the key in it are no certificate"),
        ({"client_cert": "job.crt", "client_key": "none.pem"}, "client_key: '{0}/none.pem' cannot be read"),
        ({"client_cert": "job.crt", "client_key": "other.key"}, "client_cert: {0}/job.crt and {0}/other.key"),
        ({"client_cert": "job.crt", "client_key": "locked.key"}, "client_key: {0}/locked.key needs a passphr"),
    ],
)
def test_unusable_files_are_refused_by_their_field(
    files: dict[str, str], message: str, authority: Authority, tmp_path: Path
) -> None:
    authority.issue("job")
    authority.issue("other")
    authority.issue("locked", passphrase=_PASSPHRASE)
    (tmp_path / "junk.pem").write_bytes(b"\xff-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty.pem").touch()
    (tmp_path / "huge.pem").write_bytes(b"x" * 5_000_000)
    tls = TlsFiles(**{name: str(tmp_path / file) for name, file in files.items()})
    settings = ConnectionSettings("claimx", "https://claimx.example", tls=tls)
    for use in (settings.check, lambda: Connection(settings)):
        with pytest.raises(UnresolvedSecretError) as caught:
            use()
        assert f"{caught.value.field}: {caught.value}".startswith(message.format(tmp_path))


def test_a_token_endpoint_is_reached_over_the_same_tls(
    authority: Authority, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT", "job")
    monkeypatch.setenv("KEY", "s3cret")
    certificate, key = authority.issue("cabinet job")
    endpoint = serve(
        tls_server(authority.issue("endpoint"), clients_of=authority), answer(200, b'{"access_token": "t0ken"}')
    )
    server = serve(tls_server(authority.issue("server"), clients_of=authority))
    link = Connection(
        ConnectionSettings(
            "itel",
            server.url,
            f"oauth2:{endpoint.url}/token?p=job:env:CLIENT:env:KEY",
            tls=TlsFiles(str(authority.file), str(certificate), str(key)),
        )
    )
    assert link.call("GET", "/x").body == b"[1]"
    assert endpoint.requests[0].path == "/token?p=job"
    assert server.requests[0].headers["authorization"] == "Bearer t0ken"
