"""``--translation-log``: every unit of mode ``bt`` as text, in the order of its translation, while the guest runs."""

import contextlib
from collections.abc import Iterator
from typing import IO

from hvemu.loader.symbols import Symbols
from hvemu.modes.translation_cache import Unit
from hvemu.modes.translation_text import nameless, translation_lines
from hvemu.vocabulary.errors import UserError


class TranslationLog:
    """Writes units to a stream, each at once, so that a run that is killed leaves what happened so far.

    A stream that fails is left alone from then on, which ``failures`` says; the guest does not notice.
    """

    def __init__(self, stream: IO[str], name: str, failures: list[str], symbols: Symbols | None = None) -> None:
        self._stream, self._name, self._failures = stream, name, failures
        self._place = symbols.place if symbols else nameless
        self._count = 0
        self._failed = False

    def __call__(self, unit: Unit) -> None:
        """Write a unit that has just been translated."""
        if self._failed:
            return
        self._count += 1
        try:
            lines = translation_lines(unit.translation, f"unit {self._count}", self._place)
            self._stream.write("\n".join(lines) + "\n\n")
            self._stream.flush()
        except Exception as error:  # we are inside the engine's callback: nothing may come out
            self.fail((error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}")

    def fail(self, reason: str) -> None:
        """Give up; the first reason is the one that is told."""
        if not self._failed:
            self._failures.append(f"the translation log {self._name} is not complete: {reason}")
        self._failed = True


@contextlib.contextmanager
def open_translation_log(path: str, failures: list[str], symbols: Symbols) -> Iterator[TranslationLog]:
    """A log into a file, with the names that a kernel without paging has; raises UserError if it cannot be opened."""
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below, where a full disk is found out
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}", "Give --translation-log another file.") from None
    log = TranslationLog(file, path, failures, symbols)
    try:
        yield log
    finally:
        try:
            file.close()
        except OSError as error:
            log.fail(str(error.strerror))
