"""Hyper-V's interface, as little of it as its name allows: who the guest is, the hypercall page, one counter.

The hypercall page is written into the guest's own page, as KVM does, not laid over it. No hypercall is offered.
Document: Hypervisor Top-Level Functional Specification ("TLFS"), "Hypercall interface", "Timers".
"""

from collections.abc import Callable
from typing import Final

from hvemu.cpu.delivery import INVALID_OPCODE
from hvemu.cpu.msr import MsrError, SyntheticRegisters
from hvemu.cpu.state import EAX, EBX, ECX, EDI, EDX, ESI, CpuPort
from hvemu.devices.contract import Clock
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary import hyperv
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE
from hvemu.vocabulary.exits import VmCall
from hvemu.vocabulary.outcomes import Inject, Outcome, Retire
from hvemu.vocabulary.paging import CR0_PE

_HYPERCALL_PAGE: Final = b"\x0f\x01\xc1\xc3"  # vmcall; ret
_REFERENCE_PERIOD: Final = 100
"""Nanoseconds."""


class HyperV(SyntheticRegisters):
    """The synthetic MSRs and the hypercall page."""

    numbers = frozenset({hyperv.MSR_GUEST_OS_ID, hyperv.MSR_HYPERCALL, hyperv.MSR_VP_INDEX, hyperv.MSR_TIME_REF_COUNT})

    def __init__(self, memory: GuestPhysicalMemory, clock: Clock) -> None:
        super().__init__()
        self._memory, self._clock = memory, clock
        self.enter: Callable[[VmCall], Outcome] = self.answer
        """The way of an exit to ``answer``."""

    # ------------------------------------------------------------------ hypercalls

    def call(self, cpu: CpuPort) -> Outcome:
        """VMCALL, as the hypercall page has it: input value in EDX:EAX, addresses in EBX:ECX and EDI:ESI.

        The result is for EDX:EAX. #UD outside of the kernel's protected mode, and before the page is enabled.
        """
        enabled = self.values[hyperv.MSR_HYPERCALL] & hyperv.HYPERCALL_ENABLED
        if cpu.cpl() or not cpu.paging().cr0 & CR0_PE or not enabled:
            return Inject(INVALID_OPCODE)
        value, given, wanted = (
            cpu.gpr(high) << 32 | cpu.gpr(low) for high, low in ((EDX, EAX), (EBX, ECX), (EDI, ESI))
        )
        outcome = self.enter(VmCall(value & 0xFFFF, 0, (value, given, wanted)))
        cpu.set_gpr(EDX, 0)  # no repetitions done
        return outcome

    def answer(self, call: VmCall) -> Outcome:
        """No code is known."""
        return Retire(hyperv.STATUS_INVALID_HYPERCALL_CODE)

    # ------------------------------------------------------------------ model-specific registers

    def reset_values(self) -> dict[int, int]:
        """No guest has named itself, no page is enabled."""
        return {hyperv.MSR_GUEST_OS_ID: 0, hyperv.MSR_HYPERCALL: 0}

    def read(self, index: int) -> int:
        """What was written last; the one processor's index; time since power-on."""
        if index == hyperv.MSR_VP_INDEX:
            return 0
        if index == hyperv.MSR_TIME_REF_COUNT:
            return self._clock.now() // _REFERENCE_PERIOD
        return self.values[index]

    def write(self, index: int, value: int) -> None:
        """Without a guest's identity there is no hypercall page; a locked one stays until the next reset."""
        if index == hyperv.MSR_GUEST_OS_ID:
            self.values[index] = value
            if not value:
                self.values[hyperv.MSR_HYPERCALL] &= ~hyperv.HYPERCALL_ENABLED
        elif index == hyperv.MSR_HYPERCALL:
            if self.values[hyperv.MSR_GUEST_OS_ID] and not self.values[index] & hyperv.HYPERCALL_LOCKED:
                self._enable_page(value)
                self.values[index] = value
        else:
            raise MsrError

    def _enable_page(self, value: int) -> None:
        """Raises MsrError where there is no memory."""
        if value & hyperv.HYPERCALL_ENABLED:
            address = value >> PAGE_SHIFT << PAGE_SHIFT
            if address + PAGE_SIZE > self._memory.size:
                raise MsrError
            self._memory.write(address, _HYPERCALL_PAGE)
