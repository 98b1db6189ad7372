"""The engine behaves as measured: every probe of ``hvemu doctor`` is a test."""

import pytest

from hvemu.engine.probes import PROBES


@pytest.mark.parametrize("probe", PROBES, ids=[probe.name.replace(" ", "-") for probe in PROBES])
def test_the_engine_behaves_as_measured(probe):
    """The experiment gives what hvemu builds on."""
    assert None is probe.run()


def test_probe_names_are_unique():
    """Doctor's lines can be told apart."""
    assert len(PROBES) == len({probe.name for probe in PROBES})
