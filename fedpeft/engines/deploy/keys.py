"""Keys: a device proves with its private key who it is; the server's certificates are re-exported from beside."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.core.errors import ConfigError, printable
from fedpeft.engines.deploy.certificates import Certificates, check_peer_certificate, ensure_certificates
from fedpeft.engines.deploy.folder import read_file, write_file

__all__ = [
    "Certificates",
    "DeviceKey",
    "check_name",
    "check_peer_certificate",
    "ensure_certificates",
    "fingerprint",
    "key_from_pem",
    "key_to_pem",
    "make_device_key",
    "public_key_text",
    "read_device_key",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MARK = "# fedpeft device "
_HEADER = re.compile(re.escape(_MARK) + r"(?P<name>\S+), client (?P<client_id>0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, kw_only=True)
class DeviceKey:
    """What a device's key file says of the device.

    Attributes:
        name: the device's name on the server, or None where the key was made elsewhere (``ssh-keygen``).
        client_id: its client id, or None likewise.
        public_key: OpenSSH text without a comment, ``ecdsa-sha2-nistp384 ...``.
    """

    name: str | None
    client_id: int | None
    public_key: str


def check_name(name: str) -> str:
    """Return the name of a device if it is one.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a device's name must be 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit, got "
            f"{printable(name, 80)!r} (such as kitchen-pi4)"
        )
    return name


def make_device_key(path: Path, *, name: str, client_id: int) -> str:
    """Make a private key (EC P-384, OpenSSH format, mode 0600) and return its public key.

    The first line of the file says whose it is; what reads OpenSSH keys, Flower's SuperNode among it, skips that line.

    Args:
        path: the file to write.
        name: the device's name.
        client_id: its client id, >= 0.

    Returns:
        The public key as OpenSSH text without a comment.

    Raises:
        ConfigError: the name is none, the file is there already, or it cannot be written.
    """
    header = f"{_MARK}{check_name(name)}, client {client_id}\n"
    if path.exists():
        raise ConfigError(f"{path} is there already (delete it if no device uses it, or choose another name)")
    key = ec.generate_private_key(ec.SECP384R1())
    body = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_file(path, header.encode() + body, private=True)
    return _openssh(key.public_key())


def read_device_key(path: Path) -> DeviceKey:
    """Read a device's private key file.

    Raises:
        ConfigError: the file is not there, its group or others can read it, it is damaged, encrypted, no P-384 key, or
            its first line is not what ``make_device_key`` writes.
    """
    data = read_file(path, private=True)
    again = "copy it from the server again, or make a new one: fedpeft server add-device"
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(f"{path} has a passphrase, which nobody could type (ssh-keygen -p -f {path})") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is damaged or no private key in OpenSSH format ({again})") from error
    public = _check_curve(key.public_key(), str(path))
    first = data.splitlines()[0].decode(errors="replace")
    header = _HEADER.fullmatch(first)
    if header is None and first.startswith("#"):
        raise ConfigError(f"{path} begins with {printable(first, 80)!r}, not '{_MARK}NAME, client ID' ({again})")
    return DeviceKey(
        name=check_name(header["name"]) if header else None,
        client_id=int(header["client_id"]) if header else None,
        public_key=_openssh(public),
    )


def public_key_text(text: str, *, what: str = "the public key") -> str:
    """Return an OpenSSH public key in the one form that the registry compares: kind and key, no comment.

    Args:
        text: a line as ``ssh-keygen`` writes it to ``.pub`` files.
        what: how to call it in messages.

    Raises:
        ConfigError: it is damaged or no EC P-384 key.
    """
    try:
        key = serialization.load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{what} is damaged or no public key in OpenSSH format (make one: ssh-keygen -t ecdsa -b 384)"
        ) from error
    return _openssh(_check_curve(key, what))


def fingerprint(public_key: str) -> str:
    """Return a public key's fingerprint as ``ssh-keygen -l`` shows it, ``SHA256:...``."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def key_to_pem(public_key: str) -> bytes:
    """Return an OpenSSH public key as Flower sends and stores it: PEM, SubjectPublicKeyInfo."""
    key = serialization.load_ssh_public_key(public_key.encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_from_pem(pem: bytes) -> str | None:
    """Return Flower's form of a public key as OpenSSH text, or None where it is no key of an elliptic curve."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return _openssh(key) if isinstance(key, ec.EllipticCurvePublicKey) else None


def _check_curve(key: object, what: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        got = (
            key.curve.name
            if isinstance(key, ec.EllipticCurvePublicKey)
            else type(key).__name__.removesuffix("PublicKey")
        )
        raise ConfigError(f"{what} must be an EC key on the curve P-384, got {got} (ssh-keygen -t ecdsa -b 384)")
    return key


def _openssh(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
