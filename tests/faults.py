"""A stand-in for `os` in the modules that write: the n-th file operation is killed before, after or halfway, or fails."""

import contextlib
import errno
import os

OPERATIONS = ("open", "write", "fsync", "replace", "ftruncate", "unlink", "pwrite")


class Killed(BaseException):
    """The process is dead: nothing of it runs any more."""


class FaultyOs:
    def __init__(self, at=-1, fault="before"):
        self.at, self.fault, self.count, self.dead, self.descriptors = at, fault, 0, False, set()

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def call(*args, **kwargs):
            return self._operate(name, real, args, kwargs)

        return call

    def _operate(self, name, real, args, kwargs):
        if self.dead:
            raise Killed
        number, self.count = self.count, self.count + 1
        if number != self.at:
            return self._note(name, real(*args, **kwargs))
        if self.fault in ("ENOSPC", "EIO", "EACCES"):
            code = getattr(errno, self.fault)
            if name == "write" and self.fault == "ENOSPC":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])  # a full disk takes what fits
            raise OSError(code, os.strerror(code))
        self.dead = True
        if self.fault == "after":
            self._note(name, real(*args, **kwargs))
        if self.fault == "torn" and name == "write":
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise Killed

    def _note(self, name, result):
        if name == "open":
            self.descriptors.add(result)
        return result

    def bury(self):
        """Close what the dead process had open, as the kernel does; this frees its locks."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = set()
