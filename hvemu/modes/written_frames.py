"""Which frames have been written, found by comparing with a copy: for techniques that cannot protect them."""

from hvemu.vocabulary.addresses import PAGE_SIZE


class WrittenFrames:
    """Frames of ``view``, which is guest RAM."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._before: bytes | None = None

    def since_last_time(self) -> set[int]:
        """Numbers of the frames that differ from what they held at the last call; all at the first."""
        before, self._before = self._before, bytes(self._view)
        frames, now = range(len(self._view) // PAGE_SIZE), self._before
        if before is None:
            return set(frames)
        return {
            frame
            for frame in frames
            if now[frame * PAGE_SIZE : (frame + 1) * PAGE_SIZE] != before[frame * PAGE_SIZE : (frame + 1) * PAGE_SIZE]
        }
