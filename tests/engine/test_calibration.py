"""An engine that hvemu does not know is refused with a sentence that says what to install."""

import pytest

from hvemu.engine import binding, layout
from hvemu.engine.vcpu import Vcpu


def test_another_version_is_refused_by_name(monkeypatch):
    """The sentence names both versions and the command that helps."""
    monkeypatch.setattr(binding, "version", lambda: "2.2.0")
    with pytest.raises(layout.UnknownEngineError, match=r"Unicorn 2\.2\.0 .* pip install unicorn==2\.1\.4"):
        Vcpu()


@pytest.mark.parametrize("name", ["RIP", "CR2", "CR3"])
def test_a_register_in_another_place_is_noticed(monkeypatch, name):
    """Each known value is looked for where the layout says."""
    constant = {"RIP": "QUAD_EIP", "CR2": "QUAD_CR", "CR3": "QUAD_CR"}[name]
    monkeypatch.setattr(layout, constant, getattr(layout, constant) + 1)
    with pytest.raises(layout.UnknownEngineError, match=r"pip install unicorn==2\.1\.4"):
        Vcpu()


def test_cpu_state_that_is_nowhere_is_refused(monkeypatch):
    """A pattern that is not found ends with the advice, not with a crash."""
    monkeypatch.setattr(layout, "_SCAN", 16)
    with pytest.raises(layout.UnknownEngineError, match="not found in memory"):
        Vcpu()


def test_unreadable_addresses_are_probed_without_harm():
    """The memory probe stops at what is not mapped."""
    with layout._MemoryProbe() as probe:
        assert b"" == probe.read(0x1000, 64)
