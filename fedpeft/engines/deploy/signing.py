"""What stands in the certificates: X.509 building blocks that OpenSSL accepts under its strict rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpeft.core.errors import ConfigError

CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
BACKDATED = timedelta(hours=1)
"""How far a certificate's first moment lies back: a device's clock may be a little slow."""

Host = x509.DNSName | x509.IPAddress
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    """Return a new private key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def sign_authority(key: Key, now: datetime) -> x509.Certificate:
    """Return the certificate of an authority that signs itself, valid for ten years from ``now``."""
    builder = _builder("fedpeft CA", key, now, now + CA_LIFE)
    return (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpeft CA")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(_issued_by(key), critical=False)
        .sign(key, hashes.SHA384())
    )


def sign_server(
    key: Key, hosts: Sequence[Host], authority: x509.Certificate, authority_key: Key, now: datetime
) -> x509.Certificate:
    """Return a server's certificate, valid for a year from ``now`` and no longer than its authority."""
    return (
        _builder("fedpeft server", key, now, min(now + SERVER_LIFE, authority.not_valid_after_utc))
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(_issued_by(authority_key), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def key_pem(key: Key) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def parse_hosts(names: Sequence[str]) -> list[Host]:
    """Return names and IP addresses as they stand in a certificate, each once, without those that nobody can reach.

    Raises:
        ConfigError: one is neither a name nor an address.
    """
    found: dict[Host, None] = {}
    for name in names:
        text = name.strip().removeprefix("[").removesuffix("]").lower()
        try:
            address: IPv4Address | IPv6Address = ip_address(text)
        except ValueError:
            found[_dns(name, text)] = None
            continue
        if not address.is_unspecified:
            found[x509.IPAddress(address)] = None
    return list(found)


def hosts_of(certificate: x509.Certificate) -> list[Host]:
    """Return the hosts that a certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name for name in names if isinstance(name, Host)]


def _dns(name: str, text: str) -> x509.DNSName:
    words = text.removesuffix(".").split(".")
    if not all(
        word.isascii() and word.replace("-", "").replace("_", "").isalnum() and len(word) < 64 for word in words
    ):
        raise ConfigError(f"host must be a name or an IP address without a port, got {name!r} (such as fl.example.org)")
    return x509.DNSName(text.removesuffix("."))


def _builder(name: str, key: Key, now: datetime, last: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*uses: str) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{use: use in uses for use in every})


def _issued_by(key: Key) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
