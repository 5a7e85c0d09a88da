"""Certificates made for a test: an authority, and servers that it vouches for, or not."""

import ssl
import warnings
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority of its own; its certificate is `ca_file`."""

    def __init__(self, folder: Path) -> None:
        """Make it; files go to the folder."""
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("Test authority")
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), -1, 30)
            .add_extension(constraints, critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def server(
        self, *names: str, expired: bool = False, self_signed: bool = False, only_tls_1_1: bool = False
    ) -> ssl.SSLContext:
        """What a server of these names (default 127.0.0.1 and localhost) needs to speak TLS."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("Test server")
        known = [_general(one) for one in names or ("127.0.0.1", "localhost")]
        issuer = name if self_signed else self._name
        signer = key if self_signed else self._key
        begin, end = (-30, -1) if expired else (-1, 30)
        certificate = (
            _builder(name, issuer, key.public_key(), begin, end)
            .add_extension(x509.SubjectAlternativeName(known), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        path = self.folder / f"server-{certificate.serial_number:x}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if only_tls_1_1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return context


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: int, end: int
) -> x509.CertificateBuilder:
    """A certificate that is valid from day `begin` to day `end`, counted from today."""
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now + timedelta(days=begin),
        not_valid_after=now + timedelta(days=end),
    )
