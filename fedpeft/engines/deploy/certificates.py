"""The server's own certificate authority and TLS certificate.

Devices get ``ca.crt`` and trust nothing else, so that neither a public authority nor a change of the machine's
trust store can put another server in this one's place.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.folder import locked, read_file, write_file
from fedpeft.engines.deploy.signing import (
    Key,
    certificate_pem,
    hosts_of,
    key_pem,
    new_key,
    parse_hosts,
    sign_authority,
    sign_server,
)

RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Where the certificates of a server lie.

    Attributes:
        ca: the authority's certificate, which every device needs.
        certificate: the server's certificate.
        key: the server's private key.
    """

    ca: Path
    certificate: Path
    key: Path


def ensure_certificates(folder: Path, hosts: Sequence[str] = (), *, now: datetime | None = None) -> Certificates:
    """Make what is missing of the authority and the server's certificate, and return where all of it lies.

    The server's certificate is made anew when it lacks one of the hosts, ends within 30 days or does not belong to
    the authority or to its key. A new one names the hosts of the old one too: devices may still use them.

    Args:
        folder: the server's state folder; gets ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key``.
        hosts: names and IP addresses by which devices reach the server; the loopback's and the machine's own are
            always among them, and ``0.0.0.0`` or ``::``, which nobody can reach, are left out.
        now: the present, with a time zone; None asks the clock.

    Raises:
        ConfigError: a host is neither a name nor an address, the authority is unreadable, expired or not yet valid,
            or the folder cannot be written.
    """
    now = now or datetime.now(UTC)
    wanted = parse_hosts([*hosts, "localhost", "127.0.0.1", "::1", *_own_name()])
    found = Certificates(ca=folder / "ca.crt", certificate=folder / "server.crt", key=folder / "server.key")
    with locked(folder, "certificates"):
        authority, authority_key = _authority(folder, now)
        current = _current(found, authority)
        named = [] if current is None else hosts_of(current)
        if current is None or not set(wanted) <= set(named) or not _lasts(current, now):
            key, hosts_now = new_key(), list(dict.fromkeys([*wanted, *named]))
            write_file(found.key, key_pem(key), private=True)
            write_file(found.certificate, certificate_pem(sign_server(key, hosts_now, authority, authority_key, now)))
    return found


def check_peer_certificate(pem: bytes, *, what: str = "the certificate", now: datetime | None = None) -> None:
    """Check that the first certificate of a PEM text holds at this moment.

    Args:
        pem: the text.
        what: how to call it in messages, e.g. ``ca.crt``.
        now: the present, with a time zone; None asks the clock.

    Raises:
        ConfigError: it is no certificate, has expired, or does not hold yet, which mostly says that a clock is wrong.
    """
    now = now or datetime.now(UTC)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{what} is damaged or no certificate (copy ca.crt from the server again)") from error
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        raise ConfigError(
            f"{what} expired at {_moment(last)}, and the clock says {_moment(now)} "
            "(set the clock if it is wrong, else have the server's certificates made anew)"
        )
    if now < first:
        raise ConfigError(
            f"{what} holds from {_moment(first)} only, and the clock says {_moment(now)} "
            "(set the clock, it may be wrong: timedatectl set-ntp true)"
        )


def _authority(folder: Path, now: datetime) -> tuple[x509.Certificate, Key]:
    """Return the authority, made if there is none."""
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    if not certificate_file.exists():
        # A crash on first use may have left the key alone. Signed again, it is the same authority to every device.
        key = _read_key(key_file) if key_file.exists() else new_key()
        write_file(key_file, key_pem(key), private=True)
        write_file(certificate_file, certificate_pem(sign_authority(key, now)))
    pem = read_file(certificate_file)
    check_peer_certificate(pem, what=str(certificate_file), now=now)
    certificate, key = x509.load_pem_x509_certificate(pem), _read_key(key_file)
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{certificate_file} and {key_file} do not belong together (restore both from one backup)")
    return certificate, key


def _read_key(path: Path, cure: str = "restore it from a backup") -> Key:
    pem = read_file(path, private=True)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is damaged or no private key ({cure})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is no elliptic-curve key ({cure})")
    return key


def _current(files: Certificates, authority: x509.Certificate) -> x509.Certificate | None:
    """Return the server's certificate if it can be used: whole, signed by the authority, and of the key beside it."""
    if not files.certificate.exists() or not files.key.exists():
        return None
    pem, key = read_file(files.certificate), _read_key(files.key, "delete it: the server makes a new one")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return None
    return certificate if certificate.public_key() == key.public_key() else None


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - RENEW_BEFORE


def _own_name() -> list[str]:
    """Return the machine's name, if a certificate can carry it."""
    try:
        name = socket.gethostname()
        parse_hosts([name])
    except ConfigError:
        return []
    return [name]


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
