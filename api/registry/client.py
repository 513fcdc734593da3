"""A registry client: resolve a name, fetch and push what it names, from the hosts that are configured for it.

    async with Registry(reference, hosts, settings) as registry:
        target = await registry.resolve()
        async for piece in registry.fetch(target):
            ...

Source: OCI distribution specification; contracts/semantics.md 7.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import quote, urlencode

import aiohttp

from moored.api.registry.bodies import bounded, encoding_of, media_type_of, pieces, refuse
from moored.api.registry.hosts import PULL, PUSH, RESOLVE, Host
from moored.api.registry.network import read_address
from moored.api.registry.requests import Requester, Upload
from moored.api.registry.settings import Settings
from moored.api.registry.uploads import body_of, in_chunks, no_bytes, progress
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
)
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.references import Reference, is_digest

log = logging.getLogger("moored.registry")

ACCEPT: Final = f"{media.DOCKER_MANIFEST}, {media.DOCKER_LIST}, {media.OCI_MANIFEST}, {media.OCI_INDEX}, */*"
OCTETS: Final = "application/octet-stream"
CHUNK: Final = 16 << 20
"""Bytes of a chunk of an upload to a registry that does not take it in one request."""
Source = Upload
_TRIES: Final = 3
"""How often a chunk is sent without the registry having more of it afterwards."""
_STALLS: Final = 3
"""How often a body may break off without having brought anything."""
_PAUSE: Final = 0.1
_MAX_URLS: Final = 16
_SIZE: Final = re.compile(r"[0-9]{1,18}")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


class TooLarge(Unknown):
    """A registry does not take a body of that size."""


class Registry:
    """One repository of one registry, asked through its hosts in order.

    Errors: NotFound, PermissionDenied (401, 403), Unavailable, DeadlineExceeded, FailedPrecondition for content that is
    not what its descriptor says, InvalidArgument for what cannot be an image, Unknown for other statuses. When hosts
    disagree the error of the one that got furthest is told.
    Concurrency: any calls may overlap.
    """

    def __init__(self, reference: Reference, hosts: Sequence[Host], settings: Settings) -> None:
        self.reference = reference
        self._hosts = hosts
        self._requests = Requester(settings)
        self._limits = settings.limits
        self._chunk = settings.upload_chunk

    async def __aenter__(self) -> Self:
        """Open connections as they are needed from here on."""
        await self._requests.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        await self._requests.__aexit__()

    # --- reading --------------------------------------------------------------------------------------------------

    async def resolve(self) -> Entry:
        """Find what the reference names: media type, digest, size."""
        wanted = self.reference.object
        hosts = self._with({PULL} if self.reference.digest else {PULL, RESOLVE}, "resolve")
        errors: list[MooredError] = []
        # Blobs are looked for after any error: some registries fail at what is no manifest.
        for kind in ("manifests", "blobs") if self.reference.digest else ("manifests",):
            for host in hosts:
                try:
                    return await self._resolve_at(host, kind, wanted, last=host is hosts[-1])
                except MooredError as error:
                    errors.append(error)
        raise _furthest(errors)

    async def _resolve_at(self, host: Host, kind: str, wanted: str, *, last: bool) -> Entry:
        path = self._path(kind, wanted)
        async with self._requests.request(
            "HEAD", host, path, scopes=self._scopes(), headers={"Accept": ACCEPT}, last=last
        ) as response:
            status = response.status
            if status == HTTPStatus.OK:
                digest = response.headers.get("Docker-Content-Digest", "")
                size = response.headers.get("Content-Length", "")
                if is_digest(digest) and _SIZE.fullmatch(size):
                    return self._resolved(kind, media_type_of(response), digest, int(size))
            elif status not in {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.FORBIDDEN}:
                raise await self._refused(response)
        if status == HTTPStatus.OK and kind == "blobs":
            raise NotFound(f"{self.reference}: its registry does not tell the size of the blob")
        return await self._resolve_by_get(host, path, last=last)

    async def _resolve_by_get(self, host: Host, path: str, *, last: bool) -> Entry:
        async with self._requests.request(
            "GET",
            host,
            path,
            scopes=self._scopes(),
            headers={"Accept": ACCEPT, "Accept-Encoding": "identity"},
            last=last,
        ) as response:
            if response.status != HTTPStatus.OK:
                raise await self._refused(response)
            media_type = media_type_of(response)
            if media_type in media.SCHEMA1:
                raise Unimplemented(f"media type {media_type!r} is no longer supported, the image must be built anew")
            data = await bounded(response, MAX_DOCUMENT, self._limits)
            algorithm = self.reference.digest.partition(":")[0] or "sha256"
            return self._resolved(
                "manifests", media_type, f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}", len(data)
            )

    def _resolved(self, kind: str, media_type: str, digest: str, size: int) -> Entry:
        if self.reference.digest and digest != self.reference.digest:
            raise FailedPrecondition(f"{self.reference}: its registry answers with {digest}")
        if media_type in media.SCHEMA1 or media_type == "text/plain":
            raise InvalidArgument("schema 1 image manifests are no longer supported")
        if kind == "manifests" and media_type == "text/html":
            raise InvalidArgument(f"{self.reference}: its registry answers with a web page, wanted is a manifest")
        if kind == "manifests" and size > MAX_DOCUMENT:
            raise NotFound(f"rejecting {size} byte manifest for {self.reference}, at most {MAX_DOCUMENT} are read")
        return Entry(media_type=media_type, digest=digest, size=size)

    async def document(self, entry: Entry) -> bytes:
        """Fetch a manifest, index or config whole."""
        if entry.size > MAX_DOCUMENT:
            raise InvalidArgument(f"document {entry.digest} has {entry.size} bytes, at most {MAX_DOCUMENT} are read")
        async with aclosing(self.fetch(entry)) as body:
            return b"".join([piece async for piece in body])

    async def takes_ranges(self, entry: Entry) -> bool:
        """Whether parts of an object can be had, which it takes a request for the first byte to know."""
        hosts = self._with({PULL}, "pull")
        headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
        try:
            async with self._asked(entry, hosts[0], headers, last=False) as response:
                _check(response, entry, 0)
                return response.status == HTTPStatus.PARTIAL_CONTENT
        except MooredError:
            return False

    async def fetch(self, entry: Entry, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Give the bytes of an object from `start` to `end` (excluded; None for all), going on where a body broke off.

        Exactly as many bytes as the descriptor says are given; a server that sends more or fewer is an error
        (FailedPrecondition), told once the last good byte is given. The digest is the reader's to check.
        """
        stop = entry.size if end is None else min(end, entry.size)
        sources = self._sources(entry)
        strikes = [0] * len(sources)
        at, stalls = start, 0
        while at < stop:
            before, which = at, -1
            try:
                # who has let us down comes last from then on
                order = sorted(range(len(sources)), key=strikes.__getitem__)
                async with (
                    self._opened(entry, at, stop, [(which, sources[which]) for which in order]) as (which, response),
                    aclosing(self._part(response, entry, at, stop)) as body,
                ):
                    async for piece in body:
                        at += len(piece)
                        yield piece
                broken: MooredError = FailedPrecondition(f"{entry.digest}: short read, {at} of {entry.size} bytes came")
            except (Unavailable, DeadlineExceeded, Unknown) as error:
                broken = error
            if at >= stop:
                return
            if at - before >= min(self._limits.least, stop - before):
                stalls = 0
                continue
            stalls += 1
            if stalls >= _STALLS or (which < 0 and before == start):
                raise broken
            if which < 0:
                await asyncio.sleep(_PAUSE * 2**stalls)
            else:
                strikes[which] += 1

    def _sources(self, entry: Entry) -> Sequence[Host | str]:
        """Where to look for an object, in order: for layers the addresses that their descriptor has come first."""
        urls = (entry.urls or [])[:_MAX_URLS] if media.is_layer(entry.media_type) else []
        return [*urls, *self._with({PULL}, "pull")]

    @asynccontextmanager
    async def _opened(
        self, entry: Entry, start: int, stop: int, sources: Sequence[tuple[int, Host | str]]
    ) -> AsyncGenerator[tuple[int, aiohttp.ClientResponse]]:
        """Give the first answer that is what was asked for, with the number of its source."""
        headers = {"Accept": f"{entry.media_type}, */*" if entry.media_type else "*/*", "Accept-Encoding": "identity"}
        if start or stop < entry.size:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        errors: list[MooredError] = []
        for number, source in sources:
            async with AsyncExitStack() as stack:
                try:
                    asked = self._asked(entry, source, headers, last=number == sources[-1][0])
                    response = await stack.enter_async_context(asked)
                    if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                        raise await refuse(response, f"content at {entry.digest}: not found", self._limits)
                    _check(response, entry, start)
                except MooredError as error:
                    errors.append(error)
                    continue
                yield number, response
                return
        raise _furthest(errors)

    def _asked(
        self, entry: Entry, source: Host | str, headers: Mapping[str, str], *, last: bool
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if isinstance(source, str):
            return self._requests.foreign(source, headers)
        path = self._path(_kind(entry), entry.digest)
        return self._requests.request("GET", source, path, scopes=self._scopes(), headers=headers, last=last)

    async def _part(
        self, response: aiohttp.ClientResponse, entry: Entry, start: int, stop: int
    ) -> AsyncGenerator[bytes]:
        """Give a body from the asked offset on, also of a server that ignores ranges.

        Raises FailedPrecondition, after the last good byte, when there is more than was asked for.
        """
        whole = response.status == HTTPStatus.OK
        skip, left = (start if whole else 0), stop - start
        async for raw in pieces(response, self._limits):
            piece = raw[skip:] if skip else raw
            skip -= len(raw) - len(piece)
            if piece[:left]:
                yield piece[:left]
            if len(piece) > left:
                if whole and stop < entry.size:
                    return
                raise FailedPrecondition(f"{entry.digest}: its registry sends more than {entry.size} bytes")
            left -= len(piece)

    # --- writing --------------------------------------------------------------------------------------------------

    async def exists(self, entry: Entry, tag: str = "") -> bool:
        """Whether the registry has an object, and under the tag if one is given."""
        path = self._path(_kind(entry), tag or entry.digest)
        headers = {"Accept": f"{entry.media_type}, */*"}
        async with self._requests.request(
            "HEAD", self._push_host(), path, scopes=self._scopes(PULL, PUSH), headers=headers
        ) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                return False
            if response.status != HTTPStatus.OK:
                raise await self._refused(response)
            return not tag or response.headers.get("Docker-Content-Digest", "") == entry.digest

    async def push_blob(self, entry: Entry, source: Source, *, mount_from: str = "") -> bool:
        """Upload a blob, unless it can be mounted from another repository of the host; whether bytes were sent.

        The bytes may have to go to another host, which the registry names: without credentials.
        """
        place = None
        if mount_from:
            scopes = (*self._scopes(PULL, PUSH), f"repository:{mount_from}:pull")
            try:
                place = await self._upload_place(scopes, mount=entry.digest, **{"from": mount_from})
            except PermissionDenied as error:
                # it may be private: then the blob is uploaded
                log.info("blob %s cannot be mounted from %s: %s", entry.digest, mount_from, error.text)
                place = None
            else:
                if not place:
                    return False
        place = place or await self._upload_place(self._scopes(PULL, PUSH))
        if not place:
            return False
        if not self._chunk or entry.size <= self._chunk:
            try:
                await self._put(_with_query(place, digest=entry.digest), OCTETS, entry, source)
            except TooLarge:
                # Some registries, or what stands before them, take only so much in one request.
                log.info("blob %s is too large for one request, it is sent in chunks", entry.digest)
                place = await self._upload_place(self._scopes(PULL, PUSH))
            else:
                return True
        if place:
            await self._push_chunks(place, entry, source)
        return True

    async def _push_chunks(self, place: str, entry: Entry, source: Source) -> None:
        """Upload a blob chunk by chunk; each is in memory while it is sent."""
        at = 0
        async with aclosing(in_chunks(_measured(source, entry)(), self._chunk or CHUNK)) as found:
            async for chunk in found:
                place = await self._sent(place, at, chunk)
                at += len(chunk)
        await self._put(_with_query(place, digest=entry.digest), OCTETS, Entry("", entry.digest, 0), no_bytes)

    async def _sent(self, place: str, at: int, chunk: bytes) -> str:
        """Send a chunk, what is missing of it again where that breaks off; gives where to go on."""
        have, tries = at, 0
        while have < at + len(chunk):
            before = have
            try:
                place, have = await self._patch(place, have, chunk[have - at :])
            except (Unavailable, DeadlineExceeded):
                if tries >= _TRIES:
                    raise
                place, have = await self._upload_state(place)
            if not at <= have <= at + len(chunk):
                raise Unknown(f"registry has {have} bytes of an upload, wanted are {at} to {at + len(chunk)}")
            tries = 0 if have > before else tries + 1
            if tries > _TRIES:
                raise Unknown(f"registry takes no more than {have} bytes of an upload")
        return place

    async def _patch(self, place: str, at: int, data: bytes) -> tuple[str, int]:
        """Send bytes from an offset on; gives where to go on, and how many bytes the registry has."""
        headers = {
            "Content-Type": OCTETS,
            "Content-Length": str(len(data)),
            "Content-Range": f"{at}-{at + len(data) - 1}",
        }
        async with self._requests.request(
            "PATCH", self._push_host(), place, scopes=self._scopes(PULL, PUSH), headers=headers, body=body_of(data)
        ) as response:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return await self._upload_state(place)
            if response.status not in {HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.CREATED}:
                raise await self._refused(response)
            return progress(response, place, at + len(data))

    async def _upload_state(self, place: str) -> tuple[str, int]:
        """Ask how many bytes of an upload the registry has; gives where to go on too."""
        async with self._requests.request("GET", self._push_host(), place, scopes=self._scopes(PULL, PUSH)) as response:
            if response.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.OK, HTTPStatus.ACCEPTED}:
                raise await self._refused(response)
            return progress(response, place, 0)

    async def _upload_place(self, scopes: tuple[str, ...], **query: str) -> str:
        """Start an upload and give where to go on with it; empty where the registry needs no bytes any more."""
        host = self._push_host()
        path = f"/{self.reference.path}/blobs/uploads/" + (f"?{urlencode(query)}" if query else "")
        async with self._requests.request("POST", host, path, scopes=scopes, body=b"") as response:
            if response.status == HTTPStatus.CREATED:
                return ""
            if response.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT}:
                raise await self._refused(response)
            location = response.headers.get("Location", "")
            if not location:
                raise Unknown(f"{host.address} names no place to upload to")
            return str(read_address(location, response.url))

    async def push_manifest(self, entry: Entry, document: bytes, tag: str = "") -> None:
        """Store a manifest or index under its digest, and under the tag if one is given."""

        async def source() -> AsyncGenerator[bytes]:
            yield document

        await self._put(self._path("manifests", tag or entry.digest), entry.media_type, entry, source)

    async def _put(self, path: str, media_type: str, entry: Entry, source: Source) -> None:
        headers = {"Content-Type": media_type, "Content-Length": str(entry.size)}
        body = _measured(source, entry)
        async with self._requests.request(
            "PUT", self._push_host(), path, scopes=self._scopes(PULL, PUSH), headers=headers, body=body
        ) as response:
            if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise TooLarge((await self._refused(response)).text)
            if response.status not in {HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
                raise await self._refused(response)

    async def _refused(self, response: aiohttp.ClientResponse) -> MooredError:
        return await refuse(response, f"{self.reference}: not found", self._limits)

    # --- names ----------------------------------------------------------------------------------------------------

    def _push_host(self) -> Host:
        return self._with({PUSH}, "push")[0]

    def _with(self, needed: set[str], what: str) -> Sequence[Host]:
        found = [host for host in self._hosts if needed <= host.capabilities]
        if not found:
            raise NotFound(f"no {what} hosts for {self.reference.repository}")
        return found

    def _path(self, kind: str, name: str) -> str:
        return f"/{self.reference.path}/{kind}/{quote(name, safe=':')}"

    def _scopes(self, *actions: str) -> tuple[str, ...]:
        return (f"repository:{self.reference.path}:{','.join(actions or (PULL,))}",)


def _kind(entry: Entry) -> str:
    return "manifests" if media.is_branch(entry.media_type) else "blobs"


def _check(response: aiohttp.ClientResponse, entry: Entry, start: int) -> None:
    """Refuse an answer that is not the part that was asked for. Raises Unknown, FailedPrecondition."""
    encoded = encoding_of(response)
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        told = response.headers.get("Content-Range", "")
        match = _RANGE.fullmatch(told)
        if match is None or int(match[1]) != start or encoded:
            raise Unknown(f"registry answers a range from {start} with {told[:100]!r}")
        if match[2] != "*" and int(match[2]) != entry.size:
            raise FailedPrecondition(f"{entry.digest} has {match[2]} bytes in its registry, wanted are {entry.size}")
    elif not encoded and (response.content_length or 0) > entry.size:
        size = response.content_length
        raise FailedPrecondition(f"{entry.digest} has {size} bytes in its registry, wanted are {entry.size}")


def _measured(source: Source, entry: Entry) -> Source:
    """Give the same bytes, and an error where they are not as many as the server is told to expect."""

    async def measured() -> AsyncGenerator[bytes]:
        sent = 0
        body = source()
        try:
            async for piece in body:
                sent += len(piece)
                if sent > entry.size:
                    break
                yield piece
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()
        if sent != entry.size:
            raise FailedPrecondition(f"{entry.digest} has other than the {entry.size} bytes that its descriptor says")

    return measured


def _with_query(url: str, **more: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(more)}"


def _furthest(errors: Sequence[MooredError]) -> MooredError:
    """The error that says most: of a host that answered rather than of one that was not reached."""
    order = [Unavailable, DeadlineExceeded, NotFound]
    return max(errors, key=lambda error: order.index(type(error)) if type(error) in order else len(order))
