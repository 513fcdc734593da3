"""System calls that Python has no name for: openat2, fchmodat2, syncfs, prctl and a clone that Python does not do.

Numbers are those of the table that all architectures share since Linux 5, that of clone but for x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat

_OPENAT2, _FCHMODAT2 = 437, 452
_AT_SYMLINK_NOFOLLOW = 0x100
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_SYNC_FILE_RANGE_WRITE = 2
_CLONE = 56 if os.uname().machine == "x86_64" else 220
_CLONE_PARENT = 0x8000

RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Syscalls:
    """The calls, with what this kernel has of them; OSError as from `os`.

    has_openat2, has_fchmodat2   whether to use these; False once the kernel said that it lacks them, or a test
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = self._libc.syscall
        self._syscall.restype = ctypes.c_long
        self.has_openat2 = True
        self.has_fchmodat2 = True

    def open_in_root(self, root: int, path: bytes, flags: int) -> int:
        """Open a path that cannot leave the folder `root`: its links and `..` are resolved as if that were `/`.

        Raises NotImplementedError where there is no openat2 (Linux before 5.6, some seccomp filters).
        """
        if not self.has_openat2:
            raise NotImplementedError
        how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        while True:
            found: int = self._syscall(
                ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, ctypes.byref(how), ctypes.c_size_t(24)
            )
            if found >= 0:
                return found
            code = ctypes.get_errno()
            if code in {errno.ENOSYS, errno.EPERM}:
                self.has_openat2 = False
                raise NotImplementedError
            # EAGAIN: something was renamed meanwhile
            if code not in {errno.EINTR, errno.EAGAIN}:
                raise OSError(code, os.strerror(code))

    def chmod(self, folder: int, name: bytes, mode: int) -> None:
        """Change the mode of what has that name in a folder, nothing if it is a symbolic link."""
        if self.has_fchmodat2:
            done = self._syscall(
                ctypes.c_long(_FCHMODAT2),
                ctypes.c_int(folder),
                name,
                ctypes.c_uint(mode),
                ctypes.c_int(_AT_SYMLINK_NOFOLLOW),
            )
            code = ctypes.get_errno() if done else 0
            if code not in {errno.ENOSYS, errno.EPERM}:
                if code not in {0, errno.EOPNOTSUPP}:
                    raise OSError(code, os.strerror(code))
                return
            self.has_fchmodat2 = False
        if not stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
            os.chmod(name, mode, dir_fd=folder)

    def sync_file_system(self, fd: int) -> None:
        """Make all of the file system durable that a descriptor is on; reports its write errors."""
        if self._libc.syncfs(ctypes.c_int(fd)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def begin_writing(self, fd: int) -> None:
        """Have the disk begin with what a file has in memory only; what fails is told by whoever waits for it."""
        self._libc.sync_file_range(
            ctypes.c_int(fd), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )

    def forbid_new_privileges(self) -> None:
        """Keep this process and its children from gaining privileges by exec."""
        self._libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0)))

    def end_with_parent(self) -> None:
        """Let this process be killed when the thread that started it ends."""
        self._libc.prctl(_PR_SET_PDEATHSIG, *(ctypes.c_ulong(word) for word in (signal.SIGKILL, 0, 0, 0)))

    def rename(self, name: str) -> None:
        """Give this process another name, of up to 15 characters."""
        self._libc.prctl(_PR_SET_NAME, name.encode(), *(ctypes.c_ulong(0) for _ in range(3)))

    def fork_beside(self) -> int:
        """Fork a child of this process's parent, which alone can wait for it; 0 in the child, else its pid.

        For a process of one thread. Nothing that was registered to run at a fork does.
        """
        # unlike the other calls this one keeps the interpreter's lock: the child goes on with it
        call = ctypes.PyDLL(None, use_errno=True).syscall
        call.restype = ctypes.c_long
        words = (_CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        pid: int = call(ctypes.c_long(_CLONE), *(ctypes.c_ulong(word) for word in words))
        if pid < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return pid
