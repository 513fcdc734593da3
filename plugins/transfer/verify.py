"""Asks the image verifiers before a pull."""

from __future__ import annotations

from collections.abc import Mapping

from moored.kernel.errors import MooredError, PermissionDenied
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.transfer import ImageVerifier


async def verified(verifiers: Mapping[str, ImageVerifier], name: str, target: Descriptor) -> None:
    """Raise PermissionDenied unless all verifiers let the image be pulled."""
    for id_, verifier in sorted(verifiers.items()):
        what = f"pull of {name} with digest {target.digest}"
        try:
            judgement = await verifier.verify(name, target)
        except MooredError as error:
            text = f"blocking {what}: image verifier {id_} returned error: {error.text}"
            raise PermissionDenied(text) from error
        if not judgement.ok:
            raise PermissionDenied(f"image verifier {id_} blocked {what} for reason: {judgement.reason}")
