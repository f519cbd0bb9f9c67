"""Certificates that Python's TLS accepts, and device keys that Flower loads; what is wrong with one takes one line."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy import keys
from fedpeft.engines.deploy.signing import hosts_of

NOW = datetime.now(UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def shake_hands(server: keys.Certificates, ca: Path, host: str) -> None:
    """Connect to a TLS server with these certificates over a socket pair, as strictly as OpenSSL can."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)

    def serve() -> None:
        with theirs:
            try:
                context.wrap_socket(theirs, server_side=True).close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with ours, client.wrap_socket(ours, server_hostname=host):
            pass
    finally:
        thread.join()


def complaint(code: object, *words: str) -> None:
    """Check that an error is one line with these words."""
    text = str(code)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", socket.gethostname(), "fl.example.org", "10.0.0.7"])
def test_tls_accepts_the_certificates_for_every_host(tmp_path: Path, host: str) -> None:
    shake_hands(made := keys.ensure_certificates(tmp_path, ["fl.example.org", "10.0.0.7"]), made.ca, host)


def test_tls_refuses_another_authority_and_another_host(tmp_path: Path) -> None:
    ours, others = keys.ensure_certificates(tmp_path / "a"), keys.ensure_certificates(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(ours, others.ca, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
        shake_hands(ours, ours.ca, "fl.example.org")


def test_keys_are_private_and_certificates_are_not(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        keys.ensure_certificates(tmp_path / "state")
        keys.make_device_key(tmp_path / "state" / "pi.key", name="pi", client_id=0)
    finally:
        os.umask(before)
    found = {path.name: mode(path) for path in (tmp_path / "state").iterdir() if not path.name.startswith(".")}
    assert found == {"ca.crt": 0o644, "ca.key": 0o600, "pi.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    assert mode(tmp_path / "state") == 0o700


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path, ["fl.example.org"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert keys.ensure_certificates(tmp_path, ["FL.example.org", "0.0.0.0", "[::]", "localhost"]) == made
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_host_makes_the_servers_certificate_anew_and_keeps_the_old_hosts(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path, ["one.example.org"])
    authority, first = made.ca.read_bytes(), load(made.certificate)
    keys.ensure_certificates(tmp_path, ["10.1.2.3"])
    second = load(made.certificate)
    assert made.ca.read_bytes() == authority
    assert first.serial_number != second.serial_number
    assert len(set(hosts_of(second)) - set(hosts_of(first))) == 1 and set(hosts_of(first)) < set(hosts_of(second))
    for host in ("one.example.org", "10.1.2.3"):
        shake_hands(made, made.ca, host)


@pytest.mark.parametrize(("days", "anew"), [(334, False), (336, True), (400, True)])
def test_the_servers_certificate_is_renewed_in_its_last_month(tmp_path: Path, days: int, anew: bool) -> None:
    made = keys.ensure_certificates(tmp_path, now=NOW)
    before = made.certificate.read_bytes()
    keys.ensure_certificates(tmp_path, now=NOW + timedelta(days=days))
    assert (made.certificate.read_bytes() != before) is anew


def test_a_servers_certificate_of_another_authority_or_key_is_made_anew(tmp_path: Path) -> None:
    ours, others = keys.ensure_certificates(tmp_path / "a"), keys.ensure_certificates(tmp_path / "b")
    ours.certificate.write_bytes(others.certificate.read_bytes())
    keys.ensure_certificates(tmp_path / "a")
    shake_hands(ours, ours.ca, "localhost")
    ours.key.write_bytes(others.key.read_bytes())
    keys.ensure_certificates(tmp_path / "a")
    shake_hands(ours, ours.ca, "localhost")
    for mine, theirs in ((ours.certificate, others.certificate), (ours.key, others.key)):
        mine.write_bytes(theirs.read_bytes())
    keys.ensure_certificates(tmp_path / "a")
    shake_hands(ours, ours.ca, "localhost")


def test_a_servers_certificate_that_a_fast_clock_made_is_made_anew(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path)
    keys.ensure_certificates(tmp_path, ["fl.example.org"], now=NOW + timedelta(days=20))
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake_hands(made, made.ca, "localhost")
    keys.ensure_certificates(tmp_path)
    shake_hands(made, made.ca, "fl.example.org")


def test_an_authority_whose_certificate_was_lost_stays_the_same_to_devices(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path)
    devices = tmp_path / "on_a_device.crt"
    devices.write_bytes(made.ca.read_bytes())
    made.ca.unlink()
    made.certificate.unlink()
    shake_hands(keys.ensure_certificates(tmp_path), devices, "localhost")


def test_an_expired_certificate_is_refused_by_tls_and_named(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path, now=NOW - timedelta(days=366))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(made, made.ca, "localhost")
    with pytest.raises(ConfigError) as caught:
        keys.check_peer_certificate(made.certificate.read_bytes(), what="server.crt")
    complaint(caught.value, "server.crt expired at", "clock")
    keys.ensure_certificates(tmp_path)
    shake_hands(made, made.ca, "localhost")


def test_an_expired_authority_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    keys.ensure_certificates(tmp_path, now=NOW - timedelta(days=3651))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as caught:
        keys.ensure_certificates(tmp_path)
    complaint(caught.value, str(tmp_path / "ca.crt"), "expired")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_certificate_of_tomorrow_says_that_the_clock_may_be_wrong(tmp_path: Path) -> None:
    made = keys.ensure_certificates(tmp_path)
    pem = made.ca.read_bytes()
    keys.check_peer_certificate(pem)
    # Not before the moment when this module was imported: that may be long ago.
    keys.check_peer_certificate(pem, now=datetime.now(UTC) - timedelta(minutes=50))
    with pytest.raises(ConfigError) as caught:
        keys.check_peer_certificate(pem, what="ca.crt", now=datetime(1970, 1, 1, tzinfo=UTC))
    complaint(caught.value, "ca.crt holds from", "1970-01-01", "clock", "may be wrong")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ca.crt", b"nonsense", ["ca.crt", "damaged"]),
        ("ca.key", b"nonsense", ["ca.key", "damaged", "backup"]),
        ("ca.key", None, ["ca.key", "cannot be read"]),
        ("server.key", b"nonsense", ["server.key", "damaged", "delete it"]),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, content: bytes | None, words: list[str]) -> None:
    keys.ensure_certificates(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        keys.ensure_certificates(tmp_path)
    complaint(caught.value, *words)


def test_an_authoritys_certificate_and_key_must_belong_together(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        keys.ensure_certificates(tmp_path / folder)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="belong together"):
        keys.ensure_certificates(tmp_path / "a")


@pytest.mark.parametrize("host", ["host:8000", "", "b\u00fccher.example", "a" * 64, "a b"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="host must be"):
        keys.ensure_certificates(tmp_path, [host])


def test_flower_loads_a_device_key_with_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "devices" / "pi-4.key"
    public_key = keys.make_device_key(path, name="pi-4", client_id=3)
    assert path.read_text().splitlines()[0] == "# fedpeft device pi-4, client 3"
    # What flower-supernode does with --auth-supernode-private-key.
    loaded = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey) and isinstance(loaded.curve, ec.SECP384R1)
    assert keys.read_device_key(path) == keys.DeviceKey(name="pi-4", client_id=3, public_key=public_key)
    assert keys.key_from_pem(keys.key_to_pem(public_key)) == public_key


def test_a_device_key_is_never_written_over(tmp_path: Path) -> None:
    keys.make_device_key(tmp_path / "pi.key", name="pi", client_id=0)
    before = (tmp_path / "pi.key").read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        keys.make_device_key(tmp_path / "pi.key", name="pi", client_id=0)
    assert (tmp_path / "pi.key").read_bytes() == before


def openssh(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def locked_up(pem: bytes) -> bytes:
    """Return the key as if it had a passphrase: the names of cipher and derivation stand in front of everything."""
    lines = pem.splitlines()
    plain = b"".join(len(word).to_bytes(4, "big") + word for word in (b"none", b"none", b""))
    words = (b"aes256-ctr", b"bcrypt", b"\0\0\0\4salt\0\0\0\x10")
    named = b"".join(len(word).to_bytes(4, "big") + word for word in words)
    body = base64.b64decode(b"".join(lines[1:-1])).replace(plain, named, 1)
    return b"\n".join([lines[0], base64.b64encode(body), lines[-1], b""])


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    keys.make_device_key(path := tmp_path / "pi.key", name="pi", client_id=0)
    path.chmod(bits)
    with pytest.raises(ConfigError) as caught:
        keys.read_device_key(path)
    complaint(caught.value, f"{bits:03o}", f"chmod 600 {path}")


def test_a_key_that_ssh_keygen_made_says_nothing_of_its_device(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    path.write_bytes(openssh(ec.generate_private_key(ec.SECP384R1())))
    path.chmod(0o600)
    found = keys.read_device_key(path)
    assert (found.name, found.client_id) == (None, None)


def wrong_keys() -> dict[str, tuple[bytes, str]]:
    good = ec.generate_private_key(ec.SECP384R1())
    return {
        "P-256": (openssh(ec.generate_private_key(ec.SECP256R1())), "P-384, got secp256r1"),
        "RSA": (openssh(rsa.generate_private_key(65537, 2048)), "P-384, got RSA"),
        "passphrase": (locked_up(openssh(good)), "passphrase"),
        "cut": (openssh(good)[:300], "damaged"),
        "empty": (b"", "damaged"),
        "changed": (openssh(good).replace(b"AAAA", b"AAAB", 1), "damaged"),
        "header": (b"# fedpeft device pi, client x\n" + openssh(good), "begins with"),
        "name": (b"# fedpeft device Pi!, client 1\n" + openssh(good), "a device's name"),
    }


@pytest.mark.parametrize("which", ["P-256", "RSA", "passphrase", "cut", "empty", "changed", "header", "name"])
def test_a_wrong_or_damaged_key_is_one_line(tmp_path: Path, which: str) -> None:
    content, word = wrong_keys()[which]
    path = tmp_path / "pi.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        keys.read_device_key(path)
    complaint(caught.value, word)


def test_a_missing_key_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        keys.read_device_key(tmp_path / "pi.key")


def test_fingerprints_are_those_of_ssh_keygen() -> None:
    """``ssh-keygen -lf`` of this key printed the right side."""
    key = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBISvlfOPhOGlCD02zegiFkQ/Fxchs6W1SsyhqroDjQ+DGvmZfi2n+jbGD0norBdDfL8ha/0uNd26kQKgz9snTNzf1ifqn39Knq2MKYE47bUeunZ0UuPELQPP68Ea5cw1fg=="  # noqa: E501
    assert keys.fingerprint(key) == "SHA256:dpjbWRFwGuqb1XCMxDYrLMiuTQ33Zhflgk7q/wS8PdM"
    assert keys.public_key_text(key + " me@there\n") == key
