"""A file in memory that remembers what was not synchronised, and says what a power cut might have left of it."""

import errno


class CrashFile:
    """An ``ImageFile``. What was changed since the last barrier arrives in parts, any of which may be missing."""

    def __init__(self, name="crash.vhd", content=b""):
        self.name = name
        self.content = bytearray(content)
        self.durable = bytes(content)
        self.pending = []
        self.time = 1_000_000_000.0
        self.fuse = None

    def size(self):
        return len(self.content)

    def read(self, offset, length):
        if offset < 0 or offset + length > len(self.content):
            raise OSError(errno.EIO, "too short")
        return bytes(self.content[offset : offset + length])

    def write(self, offset, data):
        data = bytes(data)
        while data:
            part = data[: 512 - offset % 512]
            self._change("write", offset, part)
            offset += len(part)
            data = data[len(part) :]

    def punch(self, offset, length):
        assert offset + length <= len(self.content)
        while length:
            part = min(length, 512 - offset % 512)
            self._change("write", offset, bytes(part))
            offset += part
            length -= part

    def truncate(self, size):
        self._change("truncate", size, b"")

    def sync(self):
        self._burn()
        self.durable = bytes(self.content)
        self.pending.clear()

    def extent(self, offset):
        return len(self.content) - offset, any(self.content[offset:])

    def stored(self):
        return len(self.content)

    def modified(self):
        return self.time

    def restore_modified(self, when):
        self.time = when

    def same(self, other):
        return self is other

    def close(self):
        pass

    def after_power_cut(self, arrives):
        """The file when only those pending changes arrived for which ``arrives`` says so, in order."""
        content = bytearray(self.durable)
        for change in self.pending:
            if arrives():
                apply(content, *change)
        return CrashFile(self.name, bytes(content))

    def _change(self, *change):
        self._burn()
        self.pending.append(change)
        apply(self.content, *change)

    def _burn(self):
        if self.fuse is not None:
            if self.fuse == 0:
                raise PowerCut
            self.fuse -= 1


class PowerCut(BaseException):
    """No handler in the code under test may run after it, as none would."""


def apply(content, kind, offset, data):
    """One change to a file's content."""
    if kind == "truncate":
        content[:] = content[:offset].ljust(offset, b"\0")
    else:
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
