"""Direct execution: what happens to guest code that runs on the engine's CPU where it lies.

Ports, MMIO, exceptions and interrupts, and the instructions that hvemu does in place of the CPU. What an exception
means is the mode's affair.
"""

from abc import abstractmethod
from typing import Final

from hvemu.cpu.decoder import MAXIMUM_LENGTH, Detailed, decode, decode_operands
from hvemu.cpu.delivery import (
    DEBUG,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    OVERFLOW,
    PAGE_FAULT,
    WITH_ERROR_CODE,
    Escalated,
    Event,
    TripleFault,
    Unsupported,
)
from hvemu.cpu.io_permission import io_permitted
from hvemu.cpu.msr import CSTAR, LSTAR, SFMASK, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, TSC_AUX
from hvemu.cpu.privileged import HYPERCALLS
from hvemu.cpu.state import CS, EAX, EBX, ECX, EDX, ESP, FLAG_IF, FLAG_RF, FLAG_VM, R11, SS, Segment
from hvemu.engine import layout
from hvemu.engine.block_clock import BUDGET, SIZE
from hvemu.modes.interception import Interception
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.stretches import Services
from hvemu.trace.events import Assisted, Exited
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind, ExitKind, Io, Mmio
from hvemu.vocabulary.outcomes import Outcome, Retire, Stop
from hvemu.vocabulary.paging import CR0_PE, CR4_TSD, EFER_LMA, EFER_SCE, ERROR_FETCH, LINEAR_MASK
from hvemu.vocabulary.vectors import vector_name

_FLAT_32: Final = 0x00CF0000
_FLAT_64: Final = 0x00AF0000
_ENDLESS: Final = 1 << 16
"""After so many exceptions in a row, without an instruction between them, the guest is taken to be lost."""


class DirectExecution(Interception):
    """Guest instructions run on the engine; exits go to the dispatcher, events through the guest's IDT."""

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        super().__init__(services, cpu)
        vcpu = services.vcpu
        self._cpuid = services.cpuid
        self._exits = {kind.value: services.ledger.counter(kind) for kind in ExitKind}
        self._is_amd = services.cpuid.is_amd()
        self._io_in = services.dispatcher.entry(ExitKind.IO_IN)
        self._io_out = services.dispatcher.entry(ExitKind.IO_OUT)
        self._mmio_read = services.dispatcher.entry(ExitKind.MMIO_READ)
        self._mmio_write = services.dispatcher.entry(ExitKind.MMIO_WRITE)
        self._exceptions = self._assists[AssistKind.EXCEPTION]
        self._software_interrupts = self._assists[AssistKind.SOFTWARE_INTERRUPT]
        self._triple_faults = services.ledger.counter(ExitKind.TRIPLE_FAULT)
        self._delivered, self._delivered_at = 0, Position(-1)
        vcpu.on_interrupt(self._on_interrupt)
        vcpu.on_invalid_instruction(self._on_invalid)
        vcpu.on_port_in(self._on_in)
        vcpu.on_port_out(self._on_out)
        vcpu.on_instruction("CPUID", self._on_cpuid)
        vcpu.on_rdtsc(self._on_rdtsc, services.tsc_scale)
        vcpu.on_instruction("RDTSCP", self._on_rdtscp)
        vcpu.on_instruction("SYSENTER", self._on_sysenter)
        vcpu.on_instruction("SYSCALL", self._on_syscall)

    # ------------------------------------------------------------------ ports and MMIO

    def _forbidden(self, port: int, size: int) -> bool:
        """IOPL and the I/O bitmap; a forbidden access is abandoned with #GP."""
        cpl = self.cpu.cpl()
        if cpl == 0:
            return False
        flags = self.cpu.eflags()
        if cpl <= (flags >> 12) & 3 and not flags & FLAG_VM:
            return False
        if io_permitted(self.cpu, self.memory, port, size):
            return False
        self._abandon(self.vcpu.eip(), Event(GENERAL_PROTECTION, 0))
        return True

    def _on_in(self, port: int, size: int) -> int:
        if self._abandoned is not None:
            return 0
        if self._words[layout.WORD_HFLAGS] & 3 and self._forbidden(port, size):
            return 0
        outcome = self._io_in(Io(port, size))
        value = outcome.value if type(outcome) is Retire else self._other(outcome)
        if self._attention:
            self._after_access(value, size)
        return value

    def _on_out(self, port: int, size: int, value: int) -> None:
        if self._abandoned is not None:
            return
        if self._words[layout.WORD_HFLAGS] & 3 and self._forbidden(port, size):
            return
        outcome = self._io_out(Io(port, size, value))
        if type(outcome) is not Retire:
            self._other(outcome)
        if self._attention:
            self._after_access(None, size)

    def _on_mmio_read(self, address: int, size: int) -> int:
        if self._abandoned is not None:
            return 0
        outcome = self._mmio_read(Mmio(address, size))
        value = outcome.value if type(outcome) is Retire else self._other(outcome)
        if self._attention:
            self._stop_at_block_end()
        return value

    def _on_mmio_write(self, address: int, size: int, value: int) -> None:
        if self._abandoned is not None:
            return
        outcome = self._mmio_write(Mmio(address, size, value))
        if type(outcome) is not Retire:
            self._other(outcome)
        if self._attention:
            self._after_access(None, size)

    def _other(self, outcome: Outcome) -> int:
        if isinstance(outcome, Stop):
            self.stop_soon(outcome)
        return 0

    def _after_access(self, value: int | None, size: int) -> None:
        """A device wants attention: stop right after this instruction if anything can happen there."""
        urgent = self._urgent or self._end is not None or self._clock.remaining() < 0
        if self._poker is not None and not (self._pin.level and self.can_interrupt()):
            self.vcpu.stop()
            return
        if not urgent and not self._pin.level:
            self._attention = False
            return
        if not urgent and not self.can_interrupt():
            self._attention = False
            self._open_window()
            return
        eip = self.vcpu.eip()
        instruction = decode(self._code(self.vcpu.linear_eip(), MAXIMUM_LENGTH), self._bits())
        if instruction is None or instruction.mnemonic not in ("mov", "in", "out"):
            self._stop_at_block_end()  # the rest of the instruction is the engine's; stop at the end of the block
            return
        accumulator = None
        if value is not None:
            mask = (1 << (8 * size)) - 1
            before = self.vcpu.long_gpr(EAX) if size < 4 else 0
            accumulator = (before & ~mask) | (value & mask)
        after = eip + len(instruction.code) & (LINEAR_MASK if self.vcpu.is_64_bit() else 0xFFFF_FFFF)
        self._abandon(after, accumulator=accumulator)

    # ------------------------------------------------------------------ exceptions and interrupts

    def _on_interrupt(self, vector: int) -> None:
        vcpu = self.vcpu
        if self._abandoned is not None:
            vcpu.stop()
            return
        if vcpu.is_software_interrupt():
            self._settle_software_interrupt(vector)
            self._disturbed = True
            if self._slack:
                self._take_back_slack()
            eip = vcpu.eip()
            length = 1 if vector in (3, 4) and self._code(vcpu.linear_eip() - 1, 1) in (b"\xcc", b"\xce") else 2
            event = Event(vector, None, True, False, None, eip - length & LINEAR_MASK)
            if self._deliver(AssistKind.SOFTWARE_INTERRUPT, event):
                self._clock.refund(length)
            return
        code = vcpu.error_code() if vector in WITH_ERROR_CODE else None
        fetching = vector == PAGE_FAULT and bool(vcpu.error_code() & ERROR_FETCH)
        self._settle_block(complete=fetching or vector == DEBUG)
        if vector == DEBUG:
            if self._stepped():
                return
        elif self._poker is None and (
            self.position() >= self._until or (fetching and self._pin.level and self.can_interrupt())
        ):
            # A fault at the boundary where the run ends, because its block does not count its instruction: next time.
            # An interrupt comes before the next instruction is fetched (SDM vol. 3A, table 6-2).
            vcpu.forget_exception()
            if self._counter:
                self._counter.take_back()
            self._stop_now()
            return
        self._exception(Event(vector, code, address=self._fault_address() if vector == PAGE_FAULT else None))

    def _settle_software_interrupt(self, vector: int) -> None:
        """INT n ends its block, with nothing to refund; INTO does not."""
        if vector == OVERFLOW and (tail := self._tail()):
            self._clock.refund(tail)

    def _on_invalid(self) -> bool:
        if self._abandoned is not None:
            self.vcpu.stop()
            return True
        self._settle_block()
        if self._poker is None and self.position() >= self._until:  # as for exceptions: next time
            self.vcpu.forget_exception()
            if self._counter:
                self._counter.take_back()
            self._stop_now()
            return True
        self._exception(Event(INVALID_OPCODE))
        return self._end is None

    def _fault_address(self) -> int:
        """Linear address of the page fault that the CPU has just raised."""
        return self.vcpu.cr2()

    def _stepped(self) -> bool:
        """The trap flag made the CPU stop after an instruction; returns whether the guest is not to know."""
        self._debug.single_stepped()
        return False

    def _exception(self, event: Event) -> None:
        """The CPU raised an exception."""
        if self._counter and event.vector != DEBUG:
            self._counter.take_back()
        self._deliver(AssistKind.EXCEPTION, event)

    @abstractmethod
    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        """Take the guest to its handler."""

    def _settle_block(self, *, complete: bool = False) -> None:
        """Refund what the current block will not execute, and take back the slack of a shortened block.

        It is ``complete`` when a fetch faults, before the next one is charged, and after a single step, even if EIP has
        not moved on because the step was one iteration of a repeated instruction. Afterwards there is no current block.
        """
        clock = self._clock
        if not complete and (tail := self._tail()):
            clock.refund(tail)
        self._take_back_slack()
        self._cells[SIZE] = 0

    def _take_back_slack(self) -> None:
        self._disturbed = True
        if self._slack:
            self._clock.shorten(self._slack)
            self._slack = 0

    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        """Deliver through the IDT; a failure ends the guest with a sentence. Returns whether it escalated."""
        vcpu = self.vcpu
        self._record(kind, event)
        eip = vcpu.eip()
        if kind is AssistKind.EXCEPTION and self._goes_round(event):
            return True
        problem = self._deliver_event(event)
        vcpu.clear_exception()
        if problem is None or isinstance(problem, Escalated):
            if self._running:
                self._look_at_entry()
            if self._pin.level and self._running and self.cpu.interrupts_enabled():
                self._open_window()
            return problem is not None
        where = eip if event.start is None else event.start
        before = where, vcpu.linear_of(where)
        if isinstance(problem, TripleFault):
            self._triple_faults[0] += 1
            faults = ", then ".join(_describe(fault) for fault in problem.events)
            if self.cpu.idt().limit < 8 and self.cpu.paging().cr0 & CR0_PE:
                faults += "; no IDT was loaded"
            self._end = Stop(ExitStatus.TRIPLE_FAULT, self.sentence(f"triple fault: {faults}", before))
        else:
            self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence(problem.reason, before))
        if self._running:
            vcpu.stop()
        return True

    def _goes_round(self, event: Event) -> bool:
        """Whether exception follows exception and no instruction ever retires; that ends the guest.

        A CPU would go on for ever, but here no time passes either, so that nothing could come from outside.
        """
        self._delivered += 1
        if self._delivered % _ENDLESS:
            return False
        here = self.position()
        if here != self._delivered_at:
            self._delivered_at = here
            return False
        what = f"{_describe(event)} again and again: the handler faults before it has executed one instruction"
        self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence(what))
        if self._running:
            self.vcpu.stop()
        return True

    def _exit(self, kind: ExitKind, detail: int) -> None:
        """Count and trace an exit that nobody dispatches."""
        self._exits[kind._value_][detail] += 1  # hashing an Enum is slow
        if self._tracer.active:
            self._tracer.publish(Exited(self.position(), kind, self.vcpu.eip(), detail, 0, 0))

    def _record(self, kind: AssistKind, event: Event) -> None:
        """Count and trace what is about to be delivered."""
        if kind is AssistKind.SOFTWARE_INTERRUPT:  # hashing an Enum is slow
            self._software_interrupts[event[0]] += 1
        elif kind is AssistKind.EXCEPTION:
            self._exceptions[event[0]] += 1
        else:
            self._assists[kind][event[0]] += 1
        if self._tracer.active:
            self._tracer.publish(Assisted(self.position(), kind, self._eip(), event.vector, event.error_code))

    def _open_window(self) -> None:
        """An interrupt waits: be there when the guest next enables interrupts."""
        if self._clock_knows_if():
            self._clock.open_window()
        elif self.can_interrupt():
            self._stop_now()

    # ------------------------------------------------------------------ instructions done in place of the CPU

    def _detailed(self) -> Detailed | None:
        return decode_operands(self._code(self.vcpu.linear_eip(), MAXIMUM_LENGTH), self._bits())

    def _hypercall(self) -> Detailed | None:
        """The instruction at EIP, which raised #UD, if it calls a hypervisor that the machine shows."""
        if self._services.hypercall is None:
            return None
        instruction = self._detailed()
        return instruction if instruction is not None and instruction.mnemonic in HYPERCALLS else None

    def _charge(self, length: int) -> None:
        if self._running:
            self._cells[BUDGET] -= length
        else:
            self._retired += length

    def _retired_by_us(self, length: int, *, stepping: bool) -> None:
        """An instruction has been done in place of the CPU: account for it, and look whether an interrupt may come."""
        self._charge(length)
        if stepping:
            self._debug.single_stepped()
            DirectExecution._exception(self, Event(DEBUG))
        if self._running and (
            self._attention or self._end is not None or (self._pin.level and self.cpu.interrupts_enabled())
        ):
            self._stop_now()

    def _note(self, kind: AssistKind, detail: int) -> None:
        self._assists[kind][detail] += 1
        if self._tracer.active:
            self._tracer.publish(Assisted(self.position(), kind, self._eip(), detail))

    def _on_cpuid(self) -> None:
        if self._abandoned is not None:
            return
        vcpu = self.vcpu
        leaf = vcpu.gpr(EAX)
        self._note(AssistKind.CPUID, leaf)
        eax, ebx, ecx, edx = self._cpuid.query(leaf, vcpu.gpr(ECX))
        vcpu.set_gpr(EAX, eax)
        vcpu.set_gpr(EBX, ebx)
        vcpu.set_gpr(ECX, ecx)
        vcpu.set_gpr(EDX, edx)

    def _on_rdtsc(self) -> None:
        if self._abandoned is not None:
            return
        vcpu = self.vcpu
        if self.cpu.paging().cr4 & CR4_TSD and self.cpu.cpl():
            self._abandon(vcpu.eip(), Event(GENERAL_PROTECTION, 0))
            return
        self._note(AssistKind.RDTSC, 0)
        tsc = self._msrs.tsc()
        vcpu.set_gpr(EAX, tsc)
        vcpu.set_gpr(EDX, tsc >> 32)

    def _on_rdtscp(self) -> None:
        self._on_rdtsc()
        if self._abandoned is None:
            self.vcpu.set_gpr(ECX, self._msrs.values[TSC_AUX])

    def _on_sysenter(self) -> None:
        """SDM vol. 2B, SYSENTER. The engine adds the instruction's two bytes afterwards."""
        if self._abandoned is not None:
            return
        cpu, values = self.cpu, self._msrs.values
        selector = values[SYSENTER_CS] & 0xFFFC
        long_mode = cpu.paging().efer & EFER_LMA
        if long_mode and self._is_amd:
            self._refuse_entry(Event(INVALID_OPCODE), 2)
            return
        self._note(AssistKind.SYSENTER, 0)
        if not selector:
            self._refuse_entry(Event(GENERAL_PROTECTION, 0), 2)
            return
        cpu.set_eflags(cpu.eflags() & ~(FLAG_VM | FLAG_IF | FLAG_RF))
        if long_mode:
            self._enter_kernel(selector, selector + 8)
            cpu.set_long_gpr(ESP, values[SYSENTER_ESP])
            cpu.set_eip(values[SYSENTER_EIP] - 2)
            return
        cpu.set_segment(SS, Segment(selector + 8, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9300))
        cpu.set_segment(CS, Segment(selector, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9B00))
        cpu.set_gpr(ESP, values[SYSENTER_ESP])
        cpu.set_eip(values[SYSENTER_EIP] - 2)
        cpu.set_interrupt_shadow(False)

    def _refuse_entry(self, event: Event, length: int) -> None:
        """SYSENTER or SYSCALL is an exception; the engine adds the instruction's length afterwards."""
        self._deliver(AssistKind.EXCEPTION, event)
        self.cpu.set_eip(self.cpu.eip() - length)

    def _enter_kernel(self, code: int, stack: int) -> None:
        """Flat 64-bit code and stack of ring 0."""
        self.cpu.set_code_and_stack(
            Segment(code, 0, 0xFFFF_FFFF, _FLAT_64 | 0x9B00), Segment(stack, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9300)
        )
        self.cpu.set_interrupt_shadow(False)

    def _on_syscall(self) -> None:
        if self._abandoned is None:
            address, size = self._clock.block()
            length = address + size - self.vcpu.linear_eip()  # it ends its block
            self._system_call(length if 2 <= length <= MAXIMUM_LENGTH else 2)

    def _system_call(self, length: int) -> None:
        """SDM vol. 2B and APM vol. 3, SYSCALL. The engine adds the instruction's length afterwards."""
        cpu, values = self.cpu, self._msrs.values
        efer, wide = cpu.paging().efer, cpu.is_64_bit()
        if not efer & EFER_SCE or not (wide or self._is_amd):
            self._refuse_entry(Event(INVALID_OPCODE), length)
            return
        self._note(AssistKind.SYSCALL, 0)
        star, after = values[STAR], cpu.eip() + length
        selector = star >> 32 & 0xFFFC
        if efer & EFER_LMA:
            flags = cpu.eflags() & ~(FLAG_RF | FLAG_VM)
            cpu.set_long_gpr(ECX, after)
            cpu.set_long_gpr(R11, flags)
            cpu.set_eflags(flags & ~values[SFMASK])
            self._enter_kernel(selector, selector + 8)
            cpu.set_eip(values[LSTAR if wide else CSTAR] - length)
            return
        cpu.set_gpr(ECX, after)
        cpu.set_eflags(cpu.eflags() & ~(FLAG_VM | FLAG_IF | FLAG_RF))
        cpu.set_segment(SS, Segment(selector + 8, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9300))
        cpu.set_segment(CS, Segment(selector, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9B00))
        cpu.set_eip((star & 0xFFFF_FFFF) - length)
        cpu.set_interrupt_shadow(False)


def _describe(event: Event) -> str:
    """An event for a sentence."""
    name = f"interrupt {event.vector:#04x}" if event.external else vector_name(event.vector)
    code = "" if event.error_code is None else f" (error code {event.error_code:#x})"
    return name + code + ("" if event.address is None else f" at address {event.address:#010x}")
