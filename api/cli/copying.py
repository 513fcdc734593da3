"""Copies trees of files between two roots, folder by folder and name by name, each reached by its folder's descriptor.

Links are copied as links. Devices, FIFOs and sockets are left out. Without `keep` what is made belongs to whoever makes
it, and is not setuid: a container does not get to leave such a file on the host.
"""

from __future__ import annotations

import os
import secrets
import stat
import tarfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Final

from moored.api.cli.filetree import FOLDER, Root, fault, is_folder, names, split
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound

PIECE: Final = 1 << 20
DEPTH: Final = 512
"""Folders in folders that are followed; deeper ones are refused rather than run out of stack."""


@dataclass(slots=True)
class Copier:
    """How to copy, and what was: keep owners and setuid bits; left_out: paths of what is no file, folder or link."""

    keep: bool = False
    files: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)

    # --- from one root to the other -----------------------------------------------------------------------------------

    def copy(self, source: Root, path: str, target: Root, place: str, *, follow: bool = False) -> None:
        """Copy what `path` names to `place`: into it if that is a folder, else as it. Raises the errors of both."""
        into_contents = path.rstrip("/").endswith("/.") or path == "."
        mode = source.kind(path, follow=follow or path.endswith("/"))
        if not mode:
            raise NotFound(f"{source.what}{path}: no such file or folder")
        with _opened(source, path, is_folder(mode)) as (parent, name):
            folder, last = self._target(target, place, split(path)[1], folder=is_folder(mode), contents=into_contents)
            try:
                if last and follow and stat.S_ISREG(mode):
                    self._followed(source, path, folder, last)
                elif last:
                    self._entry(parent, name, folder, last, where=f"{source.what}{path}", depth=0)
                else:
                    self._contents(parent, folder, f"{source.what}{path}", 0)
            except OSError as error:
                raise fault(error, f"{target.what}{place}") from error
            finally:
                os.close(folder)

    def _followed(self, source: Root, path: str, folder: int, last: str) -> None:
        with os.fdopen(source.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise FailedPrecondition(f"{source.what}{path} is no file any more")
            self._write(file, folder, last, about)

    def _target(self, target: Root, place: str, name: str, *, folder: bool, contents: bool) -> tuple[int, str]:
        """The folder to write in and the name there, empty for the folder itself."""
        mode = target.kind(place)
        if is_folder(mode):
            return target.folder(place), "" if contents and folder else name
        if mode and folder:
            raise InvalidArgument(f"{target.what}{place} is no folder, a folder cannot be copied to it")
        if place.endswith("/") and not folder:
            raise NotFound(f"{target.what}{place}: no such folder")
        parent, last = split(place)
        if not last:
            raise NotFound(f"{target.what}{place}: no such file or folder")
        return target.folder(parent), last

    def _entry(self, parent: int, name: str, folder: int, last: str, *, where: str, depth: int) -> None:
        about = os.stat(name, dir_fd=parent, follow_symlinks=False) if name else os.fstat(parent)
        if stat.S_ISDIR(about.st_mode):
            inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent) if name else os.dup(parent)
            try:
                made = self._folder(folder, last, about)
                try:
                    self._contents(inner, made, where, depth)
                finally:
                    self._times(made, about)
                    os.close(made)
            finally:
                os.close(inner)
        elif stat.S_ISREG(about.st_mode):
            self._file(parent, name, folder, last)
        elif stat.S_ISLNK(about.st_mode):
            self._link(os.readlink(name, dir_fd=parent), folder, last, about)
        else:
            self.left_out.append(where)

    def _contents(self, inner: int, made: int, where: str, depth: int) -> None:
        if depth > DEPTH:
            raise FailedPrecondition(f"{where} is deeper than {DEPTH} folders")
        for name in names(inner):
            self._entry(inner, name, made, name, where=f"{where.rstrip('/')}/{name}", depth=depth + 1)

    def _folder(self, folder: int, name: str, about: os.stat_result) -> int:
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
            fresh = True
        except FileExistsError:
            fresh = False
        made = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        if fresh or self.keep:
            self._owner(made, about)
        return made

    def _file(self, parent: int, name: str, folder: int, last: str) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with os.fdopen(source, "rb") as file:
            about = os.fstat(source)
            if not stat.S_ISREG(about.st_mode):  # swapped since it was looked at
                self.left_out.append(name)
                return
            self._write(file, folder, last, about)

    def _write(self, file: IO[bytes], folder: int, last: str, about: os.stat_result | tarfile.TarInfo) -> None:
        """Write under a new name and rename: nobody sees half of it, no link or device is written through."""
        new = f".moorctl-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(new, flags, 0o600, dir_fd=folder)
        try:
            while piece := file.read(PIECE):
                view = memoryview(piece)
                while view:
                    view = view[os.write(made, view) :]
                self.size += len(piece)
            self._owner(made, about)
            self._times(made, about)
            self._put(new, folder, last, made)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=folder)
            raise
        finally:
            os.close(made)
        self.files += 1

    def _put(self, new: str, folder: int, last: str, made: int) -> None:
        try:
            os.rename(new, last, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            # A file that is mounted on, such as /etc/hosts, can only be written to where it is.
            existing = os.open(last, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                if not stat.S_ISREG(os.fstat(existing).st_mode):
                    raise
                os.ftruncate(existing, 0)
                with os.fdopen(os.open(new, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as again:
                    while piece := again.read(PIECE):
                        os.write(existing, piece)
            finally:
                os.close(existing)
            os.unlink(new, dir_fd=folder)

    def _link(self, text: str, folder: int, last: str, about: os.stat_result | tarfile.TarInfo) -> None:
        new = f".moorctl-{secrets.token_hex(8)}"
        os.symlink(text, new, dir_fd=folder)
        try:
            if self.keep:
                os.chown(new, *_owner_of(about), dir_fd=folder, follow_symlinks=False)
            os.rename(new, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(new, dir_fd=folder)
            raise
        self.files += 1

    def _owner(self, made: int, about: os.stat_result | tarfile.TarInfo) -> None:
        mode = stat.S_IMODE(about.st_mode if isinstance(about, os.stat_result) else about.mode)
        if self.keep:
            os.fchown(made, *_owner_of(about))
        os.fchmod(made, mode if self.keep else mode & 0o1777)

    def _times(self, made: int, about: os.stat_result | tarfile.TarInfo) -> None:
        if isinstance(about, os.stat_result):
            os.utime(made, ns=(about.st_atime_ns, about.st_mtime_ns))
        else:
            os.utime(made, (about.mtime, about.mtime))

    # --- tar streams --------------------------------------------------------------------------------------------------

    def to_tar(self, source: Root, path: str, stream: IO[bytes], *, follow: bool = False) -> None:
        """Write what a path names as a tar, its own name first in all paths."""
        mode = source.kind(path, follow=follow or path.endswith("/"))
        if not mode:
            raise NotFound(f"{source.what}{path}: no such file or folder")
        name = split(path)[1] or "."
        with (
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
            _opened(source, path, is_folder(mode)) as (parent, own),
        ):
            self._tar_entry(archive, parent, own, name, 0)

    def _tar_entry(self, archive: tarfile.TarFile, parent: int, name: str, path: str, depth: int) -> None:
        about = os.stat(name, dir_fd=parent, follow_symlinks=False) if name else os.fstat(parent)
        info = tarfile.TarInfo(path)
        info.mode, info.uid, info.gid = stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid
        info.mtime = int(about.st_mtime)
        if stat.S_ISDIR(about.st_mode):
            if depth > DEPTH:
                raise FailedPrecondition(f"{path} is deeper than {DEPTH} folders")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent) if name else os.dup(parent)
            try:
                for entry in names(inner):
                    self._tar_entry(archive, inner, entry, f"{path}/{entry}", depth + 1)
            finally:
                os.close(inner)
        elif stat.S_ISLNK(about.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
            archive.addfile(info)
        elif stat.S_ISREG(about.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            with os.fdopen(fd, "rb") as file:
                info.size = os.fstat(fd).st_size
                archive.addfile(info, file)
        else:
            self.left_out.append(path)

    def from_tar(self, stream: IO[bytes], target: Root, place: str) -> None:
        """Unpack a tar into a folder; no entry leaves it, whatever it is called and whatever links there are."""
        top = target.folder(place)
        inside = Root(top, f"{target.what}{place}: ")
        try:
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                for member in archive:
                    self._member(archive, member, inside)
        except tarfile.TarError as error:
            raise InvalidArgument(f"standard input is no tar archive: {error}") from error
        except OSError as error:
            raise fault(error, f"{target.what}{place}") from error
        finally:
            os.close(top)

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, inside: Root) -> None:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidArgument(f"archive entry {member.name!r} must not have '..' in its path")
        if not parts:
            return
        folder = self._parents(inside, parts[:-1])
        try:
            if member.isdir():
                made = self._member_folder(folder, parts[-1], member)
                os.close(made)
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                self._write(content, folder, parts[-1], member)
            elif member.issym():
                self._link(member.linkname, folder, parts[-1], member)
            else:
                self.left_out.append(member.name)
        finally:
            os.close(folder)

    def _member_folder(self, folder: int, name: str, member: tarfile.TarInfo) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
        made = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        self._owner(made, member)
        return made

    def _parents(self, inside: Root, parts: list[str]) -> int:
        """Open the folder that an entry is in, made where it is missing; links on the way are followed inside only."""
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if not inside.kind(path):
                above = inside.folder("/".join(parts[: depth - 1]) or ".")
                try:
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=above)
                finally:
                    os.close(above)
        return inside.folder("/".join(parts) or ".")


def _owner_of(about: os.stat_result | tarfile.TarInfo) -> tuple[int, int]:
    return (about.st_uid, about.st_gid) if isinstance(about, os.stat_result) else (about.uid, about.gid)


@contextmanager
def _opened(source: Root, path: str, folder: bool) -> Generator[tuple[int, str]]:
    """The folder itself with no name, or the folder that a file is in with its name."""
    if folder:
        fd, name = source.folder(path), ""
    else:
        parent, name = split(path)
        if not source.kind(path, follow=False):
            raise NotFound(f"{source.what}{path}: no such file or folder")
        fd = source.folder(parent)
    try:
        yield fd, name
    finally:
        os.close(fd)
