"""The ledger as people read it."""

import pytest

from hvemu.cli.report import ledger_lines
from hvemu.trace.ledger import Ledger
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent
from hvemu.vocabulary.paging import error_words


def lines(*counted: tuple[ExitKind | AssistKind | PagingEvent, int, int]) -> list[str]:
    """The report on a ledger with these kinds, details and counts; runs of spaces are one."""
    ledger = Ledger()
    for kind, detail, count in counted:
        ledger.counter(kind)[detail] += count
    return [" ".join(line.split()) for line in ledger_lines(ledger.as_dict())]


def test_an_empty_ledger() -> None:
    """Nothing happened, which is said; paging is not mentioned where there is none."""
    assert ["exits: none", "hardware assists: none"] == lines()


def test_the_groups_and_the_most_frequent_first() -> None:
    """Exits, assists, paging; kinds and details by their counts."""
    assert [
        "exits:",
        "io_out 7 0xf4: 6, 0x3f8: 1",
        "hlt 1 0x0: 1",
        "hardware assists:",
        "cpuid 1 0x1: 1",
        "paging:",
        "shadow_fill 5",
        "shadow_flush 2",
    ] == lines(
        (PagingEvent.FLUSH, 0, 2),
        (ExitKind.HLT, 0, 1),
        (ExitKind.IO_OUT, 0x3F8, 1),
        (ExitKind.IO_OUT, 0xF4, 6),
        (AssistKind.CPUID, 1, 1),
        (PagingEvent.FILL, 0, 5),
    )


def test_details_that_do_not_fit_are_counted() -> None:
    """Six are shown."""
    assert lines(*((ExitKind.IO_IN, port, 1) for port in range(8)))[1].endswith("0x5: 1, and 2 more")


def test_details_in_words() -> None:
    """Error codes, exceptions and frames; interrupts keep their numbers."""
    report = lines(
        (ExitKind.HIDDEN_FAULT, 0x6, 5),
        (ExitKind.HIDDEN_FAULT, 0x10, 3),
        (ExitKind.TRUE_FAULT, 0x7, 1),
        (ExitKind.TRACED_WRITE, 0x108, 1),
        (ExitKind.PRIVILEGED, 0, 1),
        (ExitKind.REFLECTED_EXCEPTION, 13, 1),
        (ExitKind.REFLECTED_INTERRUPT, 0x80, 1),
    )
    for line in (
        "hidden_fault 8 write, user: 5; fetch: 3",
        "true_fault 1 write, user, protection: 1",
        "traced_write 1 frame 0x108: 1",
        "privileged 1 cli: 1",
        "reflected_exception 1 #GP: 1",
        "reflected_interrupt 1 128: 1",
    ):
        assert line in report


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x00, "read"),
        (0x02, "write"),
        (0x05, "read, user, protection"),
        (0x09, "read, protection, reserved bit"),
        (0x14, "fetch, user"),
        (0x1F, "fetch, user, protection, reserved bit"),
    ],
)
def test_the_words_of_an_error_code(code: int, words: str) -> None:
    """The access first; without "protection" no page was present (SDM vol. 3A, 4.7)."""
    assert words == error_words(code)
