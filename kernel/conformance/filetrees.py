"""Trees of files for the suite of snapshotters: how to look at one, and changes to try on one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final


def tree(top: Path) -> dict[str, object]:
    """Give all that is in a folder by path, as its users see it, but for times; hard links by their first path."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for name in sorted((*folders, *files)):
            path = Path(folder) / name
            relative = str(path.relative_to(top))
            if relative == "lost+found":
                continue  # a file system of its own has one
            found[relative] = _entry(path, relative, first)
    return dict(sorted(found.items()))


def _entry(path: Path, relative: str, first: dict[int, str]) -> object:
    status = path.lstat()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if name.startswith(("user.", "security.capability"))
    }
    link = first.setdefault(status.st_ino, relative) if status.st_nlink > 1 and not path.is_dir() else ""
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif not stat.S_ISDIR(status.st_mode):
        content = status.st_rdev
    return oct(status.st_mode), status.st_uid, status.st_gid, attributes, link, content


def file(path: Path, content: str = "x", mode: int = 0o644) -> Path:
    """Write a file with a mode, and the folders above it; give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder with a mode."""
    path.mkdir(parents=True)
    path.chmod(mode)


def move(source: Path, target: Path) -> None:
    """Rename, and where layers refuse to rename a folder, copy as a program would."""
    shutil.move(source, target)


def _update_files(at: int, top: Path) -> None:
    if at == 0:
        file(top / "etc/hosts", "mydomain 10.0.0.1")
        file(top / "etc/profile", "PATH=/usr/bin")
    else:
        file(top / "etc/hosts", f"mydomain 10.0.1.{at}")
        file(top / "etc/profile", "PATH=/usr/bin", 0o666)
        file(top / f"root/.bashrc{at}", "PATH=/usr/sbin:/usr/bin")


def _replace_folder(at: int, top: Path) -> None:
    if at == 0:
        file(top / "lib/hidden", "")
        file(top / "lib/deep/hidden", "")
    elif at == 1:
        shutil.rmtree(top / "lib")
        file(top / "lib/not-hidden", "")
    else:
        file(top / "lib/new", "")


def _change_owners(at: int, top: Path) -> None:
    if at == 0:
        file(top / "opt/a/b/file", "hello")
        file(top / "opt/a/set", "", 0o4755)
    else:
        for path in (top / "opt", top / "opt/a", top / "opt/a/b", top / "opt/a/b/file", top / "opt/a/set"):
            os.chown(path, at, at)
        (top / "opt/a/set").chmod(0o6711)


def _change_modes(at: int, top: Path) -> None:
    if at == 0:
        for name in ("one", "two", "three"):
            folder(top / name)
            file(top / name / "f", "...", 0o600)
        os.chown(top / "one", 1, 1)
    elif at == 1:
        (top / "one").chmod(0o1777)
        (top / "two/f").chmod(0o444)
        shutil.rmtree(top / "three")
    else:
        folder(top / "three", 0o755)
        os.chown(top / "one", 0, 0)


def _delete(at: int, top: Path) -> None:
    if at == 0:
        for name in ("foo", "foobar", "sub/a", "sub/b"):
            file(top / name, name, 0o777)
    elif at == 1:
        (top / "foobar").unlink()
        (top / "sub/a").unlink()
    else:
        file(top / "sub/a", "back")


def _move(at: int, top: Path) -> None:
    if at == 0:
        file(top / "dir1/f1", "hello")
        file(top / "dir2/f2", "...")
    elif at == 1:
        folder(top / "dir3")
        move(top / "dir1/f1", top / "dir3/f1")
        (top / "dir1").rmdir()
        os.link(top / "dir2/f2", top / "dir3/f2")
        (top / "dir2/f2").unlink()
    else:
        move(top / "dir3", top / "dir4")


def _rename(at: int, top: Path) -> None:
    if at == 0:
        folder(top / "dir1")
        file(top / "some/f1", "was here first")
        file(top / "some/f2", "nothing interesting")
    else:
        move(top / f"dir{at}", top / f"dir{at + 1}")
        file(top / "some/over", f"new content {at}")
        move(top / "some/over", top / "some/f1")
        move(top / f"some/f{at + 1}", top / f"some/f{at + 2}")


def _change_kinds(at: int, top: Path) -> None:
    if at == 0:
        file(top / "a")
        file(top / "b/inside")
        (top / "c").symlink_to("a")
    elif at == 1:
        (top / "a").unlink()
        file(top / "a/inside")
        shutil.rmtree(top / "b")
        (top / "b").symlink_to("/etc")
        (top / "c").unlink()
        os.mkfifo(top / "c", 0o640)
    else:
        (top / "b").unlink()
        file(top / "b")
        shutil.rmtree(top / "a")


def _special(at: int, top: Path) -> None:
    if at == 0:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.mknod(top / "socket", stat.S_IFSOCK | 0o755)
        os.mkfifo(top / "pipe")
        (top / "dangling").symlink_to("../../nowhere")
        os.lchown(top / "dangling", 7, 8)
        file(top / "attributed")
        os.setxattr(top / "attributed", "user.note", b"\0\1kept")
        folder(top / "attributed folder")
        os.setxattr(top / "attributed folder", "user.note", b"kept too")
        file(top / "able")
        os.setxattr(top / "able", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
        with (top / "sparse").open("wb") as sparse:
            sparse.seek(1 << 20)
            sparse.write(b"end")
    elif at == 1:
        (top / "pipe").unlink()
        os.setxattr(top / "attributed", "user.note", b"changed")
        with (top / "sparse").open("r+b") as sparse:
            sparse.write(b"begin")
    else:
        (top / "null").unlink()
        os.removexattr(top / "attributed", "user.note")


def _odd_names(at: int, top: Path) -> None:
    for name in ("-rf", "a\nb", "*", "\\", " ", ".wh", "x" * 255, "\udcff\udcfe", "a,b:c=d"):
        path = top / f"{name[: 255 - 2]}{at}"
        file(path, name.encode("utf-8", "surrogateescape").hex())
    if at:
        (top / f"*{at - 1}").unlink()


LAYERS: Final[Mapping[str, Callable[[int, Path], None]]] = MappingProxyType(
    {
        "files are updated": _update_files,
        "a folder is replaced": _replace_folder,
        "owners change": _change_owners,
        "modes change": _change_modes,
        "files are deleted": _delete,
        "files move": _move,
        "names change": _rename,
        "kinds change": _change_kinds,
        "special files": _special,
        "odd names": _odd_names,
    }
)
"""Changes in three steps; each step is a layer."""
