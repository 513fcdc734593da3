"""TLS of the TCP listener from PEM files, checked before they are used."""

from __future__ import annotations

import ssl
from pathlib import Path

from moored.kernel.errors import InvalidArgument


def server_tls(cert: str, key: str, ca: str) -> ssl.SSLContext | None:
    """TLS from the paths of PEM files, None if there are no paths; with a ca, clients must show a certificate.

    Raises InvalidArgument naming the file that is missing, unreadable, no PEM, or does not fit.
    """
    if not cert and not key:
        if ca:
            raise InvalidArgument("tls_ca is set and needs tls_cert and tls_key")
        return None
    if not cert or not key:
        given, wanted = ("tls_cert", "tls_key") if cert else ("tls_key", "tls_cert")
        raise InvalidArgument(f"{given} is set and needs {wanted}")
    for name, path in (("tls_cert", cert), ("tls_key", key), ("tls_ca", ca)):
        if path:
            _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or "not in PEM form"
        raise InvalidArgument(f"tls_cert {cert!r} and tls_key {key!r} are no usable pair: {reason.lower()}") from error
    if ca:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise InvalidArgument(f"tls_ca {ca!r} holds no certificates in PEM form") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidArgument(f"{name} {path!r} cannot be read: {(error.strerror or str(error)).lower()}") from error
