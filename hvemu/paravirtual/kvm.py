"""KVM's interface: a clock and an end of interrupt in guest memory, and hypercalls by VMCALL or VMMCALL.

The clock is a page that the hypervisor fills when the guest names it, and again when the guest moves its time-stamp
counter; between, the guest works out the time by itself. Not offered: what needs another processor, steal time,
asynchronous page faults, clock pairing.
Documents: Linux, Documentation/virt/kvm/x86, msr.rst and hypercalls.rst; where these are silent, what
arch/x86/kvm/x86.c and lapic.c do.
"""

import struct
from collections.abc import Callable
from typing import Final

from hvemu.cpu.msr import TSC, MsrError, SyntheticRegisters
from hvemu.cpu.state import EAX, EBX, ECX, EDX, ESI, CpuPort
from hvemu.devices.contract import Clock
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.paravirtual import pvclock
from hvemu.vocabulary import kvm
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.exits import VmCall
from hvemu.vocabulary.outcomes import Outcome, Retire

_WALL_CLOCK: Final = struct.Struct("<III")  # version, seconds, nanoseconds
_NAMES: Final = {kvm.MSR_WALL_CLOCK_OLD: kvm.MSR_WALL_CLOCK, kvm.MSR_SYSTEM_TIME_OLD: kvm.MSR_SYSTEM_TIME}
_U32: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1
_TSC: Final = 0x10


class Kvm(SyntheticRegisters):
    """The MSRs and the hypercalls. ``boot_time``: seconds since 1970 UTC when ``clock`` was zero."""

    numbers = frozenset(
        {
            kvm.MSR_WALL_CLOCK_OLD,
            kvm.MSR_SYSTEM_TIME_OLD,
            kvm.MSR_WALL_CLOCK,
            kvm.MSR_SYSTEM_TIME,
            kvm.MSR_PV_EOI,
        }
    )

    def __init__(
        self, memory: GuestPhysicalMemory, clock: Clock, boot_time: int, set_eoi_flag: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._memory, self._clock, self._boot_time = memory, clock, boot_time
        self._set_eoi_flag = set_eoi_flag
        self.enter: Callable[[VmCall], Outcome] = self.answer
        """The way of an exit to ``answer``."""

    # ------------------------------------------------------------------ hypercalls

    def call(self, cpu: CpuPort) -> Outcome:
        """VMCALL or VMMCALL: number in EAX, arguments in EBX, ECX, EDX and ESI; the result is for EAX."""
        arguments = cpu.gpr(EBX), cpu.gpr(ECX), cpu.gpr(EDX), cpu.gpr(ESI)
        return self.enter(VmCall(cpu.gpr(EAX), cpu.cpl(), arguments))

    def answer(self, call: VmCall) -> Outcome:
        """There is one processor: nothing to poll for, and whoever is kicked is awake."""
        if call.ring:
            return Retire(-kvm.EPERM & _U32)
        offered = call.number in (kvm.KvmCall.VAPIC_POLL_IRQ, kvm.KvmCall.KICK_CPU)
        return Retire(0 if offered else -kvm.ENOSYS & _U32)

    # ------------------------------------------------------------------ model-specific registers

    def reset_values(self) -> dict[int, int]:
        """All disabled."""
        return {kvm.MSR_WALL_CLOCK: 0, kvm.MSR_SYSTEM_TIME: 0, kvm.MSR_PV_EOI: 0}

    def read(self, index: int) -> int:
        """What was written last; the old numbers are other names of the new."""
        return self.values[_NAMES.get(index, index)]

    def write(self, index: int, value: int) -> None:
        """Where the guest wants what. An address of a clock that is no RAM is not written to, as by KVM."""
        index = _NAMES.get(index, index)
        if index == kvm.MSR_PV_EOI:
            address = value & ~kvm.ENABLED
            if address & 3 or (value & kvm.ENABLED and not self._is_ram(address, 1)):
                raise MsrError
            self._set_eoi_flag(value)
        self.values[index] = value
        if index == kvm.MSR_WALL_CLOCK:
            self._fill_wall_clock(value)
        elif index == kvm.MSR_SYSTEM_TIME:
            self._fill_system_time()

    def counter_written(self) -> None:
        """The counter has been moved: what the page says of it is not true any more."""
        self._fill_system_time()

    def _is_ram(self, address: int, size: int) -> bool:
        return address + size <= self._memory.size

    def _version(self, address: int) -> int:
        """The next even one: an odd version says that the rest is being written, which no guest sees here."""
        return (self._memory.read_u32(address) + 1 | 1) + 1 & _U32

    def _fill_wall_clock(self, address: int) -> None:
        """When the system time was zero."""
        if address and self._is_ram(address, _WALL_CLOCK.size):
            self._memory.write(address, _WALL_CLOCK.pack(self._version(address), self._boot_time & _U32, 0))

    def _fill_system_time(self) -> None:
        """A counter, the time then, and how many nanoseconds a tick has."""
        control, size = self.values[kvm.MSR_SYSTEM_TIME], pvclock.SIZE
        address = control & ~kvm.ENABLED
        if not control & kvm.ENABLED or not self._is_ram(address, size) or address % PAGE_SIZE + size > PAGE_SIZE:
            return
        now = self._clock.now()
        counter = (now + self.values[TSC]) & _U64
        self._memory.write(address, pvclock.time_info(self._version(address), counter, now))
