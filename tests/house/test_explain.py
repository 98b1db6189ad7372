"""``hvemu explain`` covers everything that the ledger can name."""

import re
from pathlib import Path

import pytest

from hvemu.cli.explain import EXPLANATIONS
from hvemu.cli.explained_hypercalls import HYPERCALLS
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, ParavirtualEvent, TranslationEvent
from hvemu.vocabulary.xen import Hypercall

ROOT = Path(__file__).resolve().parents[2]


def test_every_kind_of_the_ledger_is_explained():
    """Nothing is missing and nothing is left over."""
    assert {*ExitKind, *AssistKind, *PagingEvent, *TranslationEvent, *ParavirtualEvent} == set(EXPLANATIONS)


@pytest.mark.parametrize("kind", EXPLANATIONS)
def test_the_files_named_exist(kind):
    """Where it is handled can be opened."""
    for name in re.findall(r"(?:hvemu|docs)/[\w/]+\.\w+", EXPLANATIONS[kind].where + EXPLANATIONS[kind].source):
        assert (ROOT / name).is_file(), name


def test_every_hypercall_is_explained():
    """By its own name, and the ledger's kinds are none of these names."""
    assert {call.name.lower() for call in Hypercall} == set(HYPERCALLS)
    assert not set(HYPERCALLS) & set(EXPLANATIONS)


def test_the_interface_of_mode_pv_is_documented():
    """Each hypercall with its number, in docs/paravirtual.md."""
    text = (ROOT / "docs" / "paravirtual.md").read_text(encoding="utf-8")
    rows = {}
    for numbers, names in re.findall(r"^\| ([\d, ]+) \| ([\w, ]+) \|", text, re.MULTILINE):
        rows.update(zip(names.split(", "), map(int, numbers.split(", ")), strict=True))
    assert {call.name.lower(): int(call) for call in Hypercall} == rows
