"""TLS credentials of the TCP listener from PEM files, checked before they are used."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from moored.kernel.errors import InvalidArgument


def server_credentials(cert: str, key: str, ca: str) -> grpc.ServerCredentials | None:
    """Credentials from the paths of PEM files, None if there are no paths; with a ca, clients must show a certificate.

    Raises InvalidArgument naming the file that is missing, unreadable, no PEM, or does not fit.
    """
    if not cert and not key:
        if ca:
            raise InvalidArgument("tls_ca is set and needs tls_cert and tls_key")
        return None
    if not cert or not key:
        given, wanted = ("tls_cert", "tls_key") if cert else ("tls_key", "tls_cert")
        raise InvalidArgument(f"{given} is set and needs {wanted}")
    chain = _read("tls_cert", cert)
    private = _read("tls_key", key)
    _check_pair(cert, key)
    if not ca:
        return grpc.ssl_server_credentials([(private, chain)])
    authorities = _read("tls_ca", ca)
    _check_authorities(ca)
    return grpc.ssl_server_credentials([(private, chain)], authorities, require_client_auth=True)


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{name} {path!r} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _check_pair(cert: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or "not in PEM form"
        raise InvalidArgument(f"tls_cert {cert!r} and tls_key {key!r} are no usable pair: {reason.lower()}") from error


def _check_authorities(ca: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise InvalidArgument(f"tls_ca {ca!r} holds no certificates in PEM form") from error
