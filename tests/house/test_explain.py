"""``hvemu explain`` covers everything that the ledger can name."""

import re
from pathlib import Path

import pytest

from hvemu.cli.explain import EXPLANATIONS
from hvemu.vocabulary.exits import AssistKind, ExitKind, PagingEvent, TranslationEvent

ROOT = Path(__file__).resolve().parents[2]


def test_every_kind_of_the_ledger_is_explained():
    """Nothing is missing and nothing is left over."""
    assert {*ExitKind, *AssistKind, *PagingEvent, *TranslationEvent} == set(EXPLANATIONS)


@pytest.mark.parametrize("kind", EXPLANATIONS)
def test_the_files_named_exist(kind):
    """Where it is handled can be opened."""
    for name in re.findall(r"(?:hvemu|docs)/[\w/]+\.\w+", EXPLANATIONS[kind].where + EXPLANATIONS[kind].source):
        assert (ROOT / name).is_file(), name
