"""The flag by which a guest ends an interrupt in its own memory, without a write to the local APIC ("PV EOI").

The local APIC sets the flag where clearing it is all that an end of interrupt would do, and looks at it before anybody
can see a difference. The guest tests and clears it in one instruction; where it finds it clear, it writes the register.
Document: Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_EOI_EN.
"""

from typing import Final

from hvemu.devices.contract import GuestMemory
from hvemu.devices.saved import Flag, Number
from hvemu.vocabulary.addresses import GuestPhysical

_FLAG: Final = 1
_ENABLED: Final = 1


class EoiFlag:
    """Bit 0 of a byte of guest memory. ``control``: its address, with bit 0 for enabled."""

    layout = {"control": Number((1 << 64) - 1), "offered": Flag()}

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """Disabled; memory is not touched."""
        self.control = 0
        self.offered = False
        """Whether the flag has been set, and it has not been seen clear since."""

    def offer(self) -> None:
        """Set the flag, if it is enabled."""
        if self.control & _ENABLED:
            self._write(_FLAG)
            self.offered = True

    def withdraw(self) -> None:
        """Clear the flag, if it is offered: the guest has to write the register."""
        if self.offered:
            self._write(0)
            self.offered = False

    def take(self) -> bool:
        """Whether the guest has cleared the flag since it was offered; true once."""
        if self.offered and not self._byte() & _FLAG:
            self.offered = False
            return True
        return False

    def _address(self) -> GuestPhysical:
        return GuestPhysical(self.control & ~_ENABLED)

    def _byte(self) -> int:
        return self._memory.read(self._address(), 1)[0]

    def _write(self, flag: int) -> None:
        self._memory.write(self._address(), bytes([self._byte() & ~_FLAG | flag]))


class NoMemory:
    """Guest memory that is not there."""

    def read(self, address: GuestPhysical, length: int) -> bytes:
        """Ones."""
        return b"\xff" * length

    def write(self, address: GuestPhysical, data: bytes) -> None:
        """Go nowhere."""
