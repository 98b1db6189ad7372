"""Direct execution: guest code on the engine's CPU by stretches, with position, ports, MMIO, events and interception.

What every mode shares that lets guest instructions run where they lie. Position is kept by the engine's block clock.
An exit in the middle of a block can be made the last thing that happens (``_abandon``): the rest of the block runs on
poisoned page tables and its effects are thrown away. ``cpu`` is what the guest believes, ``vcpu`` the engine's
registers; a mode without a hypervisor in between has them the same.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from hvemu.cpu.cpuid import CpuId
from hvemu.cpu.debug_registers import DebugRegisters
from hvemu.cpu.decoder import MAXIMUM_LENGTH, Instruction, boundaries, decode, describe
from hvemu.cpu.delivery import (
    DEBUG,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    PAGE_FAULT,
    WITH_ERROR_CODE,
    Escalated,
    Event,
    TripleFault,
    Unsupported,
)
from hvemu.cpu.io_permission import io_permitted
from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.msr import SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, TSC_AUX, ModelSpecificRegisters
from hvemu.cpu.state import CS, EAX, EBX, ECX, EDX, ESP, FLAG_IF, FLAG_RF, FLAG_VM, SS, Segment, VirtualCpu
from hvemu.dispatch.dispatcher import Dispatcher
from hvemu.engine import layout
from hvemu.engine.block_clock import ADDRESS, BIAS, BUDGET, LOADED, SIZE, InstructionCounter
from hvemu.engine.poker import Poker
from hvemu.engine.vcpu import EngineError, Vcpu
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import walk
from hvemu.modes.live_cpu import LiveCpu
from hvemu.trace.events import Assisted
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE, Position
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind, ExitKind, Io, Mmio, vector_name
from hvemu.vocabulary.outcomes import Halt, Outcome, Retire, Stop
from hvemu.vocabulary.paging import CR0_PE, CR0_PG, CR4_PAE, CR4_TSD, ERROR_FETCH

_POISON_CR3: Final = 0xFFFF_F000
"""Page tables nobody answers for: while abandoned, MMIO reads as zeros, which means not present."""
_QUAD_CS_BASE: Final = (layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * CS + 8) // 8
_FIRST_LOOK: Final = 256
"""Bytes looked at where a run starts."""
_HOST_UNIT: Final = 4e-9
_HOST_STRETCH: Final = 0.02
_HOST_WINDOW: Final = 0.0002
_FLAT_32: Final = 0x00CF0000


class InterruptPending(Protocol):
    """The CPU's INTR pin, as far as a mode looks at it."""

    level: bool


@dataclass(frozen=True)
class Services:
    """What a mode is given: the physical CPU, the guest's memory, and whom to tell."""

    vcpu: Vcpu
    memory: GuestPhysicalMemory
    dispatcher: Dispatcher
    ledger: Ledger
    tracer: Tracer
    cpuid: CpuId
    msrs: ModelSpecificRegisters
    interrupt_pending: InterruptPending
    count_instructions: bool = False
    host_time: Callable[[], int] | None = None
    tsc_scale: int = 1


class DirectExecution(ABC):
    """Runs a guest by stretches of the engine; a mode says what exceptions and intercepted instructions mean."""

    name: str
    _engine_holds_if = True
    """Whether the engine's EFLAGS.IF is the guest's."""
    _suspicious: re.Pattern[bytes]
    """What the bytes of an instruction to intercept look like; a first, quick look."""

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        vcpu, ledger, msrs = services.vcpu, services.ledger, services.msrs
        self.vcpu, self.cpu, self.memory = vcpu, cpu, services.memory
        self._host_time = services.host_time
        self._poker = Poker(vcpu.stop) if services.host_time else None
        self._clock = vcpu.clock
        self._cells = vcpu.clock.cells
        self._words, self._quads = vcpu.words, vcpu.quads
        self._cpuid, self._msrs = services.cpuid, msrs
        self._pin = services.interrupt_pending
        self._tracer = services.tracer
        self._io_in = services.dispatcher.entry(ExitKind.IO_IN)
        self._io_out = services.dispatcher.entry(ExitKind.IO_OUT)
        self._mmio_read = services.dispatcher.entry(ExitKind.MMIO_READ)
        self._mmio_write = services.dispatcher.entry(ExitKind.MMIO_WRITE)
        services.dispatcher.where = self._where
        self._assists = {kind: ledger.counter(kind) for kind in AssistKind}
        self._exceptions = self._assists[AssistKind.EXCEPTION]
        self._software_interrupts = self._assists[AssistKind.SOFTWARE_INTERRUPT]
        self._engine_errors = ledger.counter(ExitKind.ENGINE_ERROR)
        self._triple_faults = ledger.counter(ExitKind.TRIPLE_FAULT)
        self._halts = ledger.counter(ExitKind.HLT)
        self._debug = DebugRegisters()
        self._retired = 0  # position when the clock was loaded
        self._running = False
        self._until = 0
        self._slack = 0  # bytes the running budget was enlarged by, to let a shortened block in
        self._disturbed = False  # whether an exception left the part of a block that was to run
        self._refused: tuple[int, int] | None = None
        self._attention = self._urgent = False
        self._end: Stop | None = None
        self._abandoned: bytearray | None = None
        self._abandoned_at = 0
        self._counted = 0  # instructions, when the block was abandoned
        self._pending_event: Event | None = None
        self._intercept_at: int | None = None
        self._sites: set[int] = set()
        self._retranslate: tuple[int, int] | None = None
        self._no_execute = False
        self._stopped = False  # the engine was stopped on purpose, in the middle of a stretch
        self._halting = False
        self._breakpoints: frozenset[int] = frozenset()
        self._resumed_at = (-1, 0)
        self.at_breakpoint = False
        self._nmi_blocked = False
        self.halted = False
        self.warn: Callable[[str], None] = lambda text: None
        self.memory.forget_code = vcpu.forget_code
        if services.host_time is None:
            vcpu.clock.install()
        self._counter = InstructionCounter(vcpu.handle, vcpu.eflags_address) if services.count_instructions else None
        vcpu.on_interrupt(self._on_interrupt)
        vcpu.on_invalid_instruction(self._on_invalid)
        vcpu.on_port_in(self._on_in)
        vcpu.on_port_out(self._on_out)
        vcpu.on_instruction("CPUID", self._on_cpuid)
        vcpu.on_rdtsc(self._on_rdtsc, services.tsc_scale)
        vcpu.on_instruction("RDTSCP", self._on_rdtscp)
        vcpu.on_instruction("SYSENTER", self._on_sysenter)
        vcpu.on_translation(self._on_translation)

    # ------------------------------------------------------------------ the ExecutionMode contract

    @abstractmethod
    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state."""

    @abstractmethod
    def leave(self) -> VirtualCpu:
        """The guest's state at an instruction boundary."""

    def remark(self) -> str:
        """What the technique has to say when the guest ended badly; nothing unless a mode knows more."""
        return ""

    @abstractmethod
    def dirty_pages(self) -> set[int]:
        """Guest frames written since the last call; all frames at the first."""

    def position(self) -> Position:
        """Guest code bytes retired, the instruction at EIP not included; host time in the same unit without them."""
        if self._host_time is not None:
            return Position(self._host_time())
        if not self._running:
            return Position(self._retired)
        if self._abandoned is not None:
            return Position(self._abandoned_at)
        # The clock's cells and the register file are read directly: devices ask for the time millions of times.
        cells, quads, size = self._cells, self._quads, self._cells[SIZE]
        charged = self._retired + cells[LOADED] - cells[BUDGET] - cells[BIAS]
        tail = cells[ADDRESS] + size - ((quads[_QUAD_CS_BASE] + quads[layout.QUAD_EIP]) & 0xFFFF_FFFF)
        return Position(charged - tail) if 0 < tail <= size else Position(charged)

    def _tail(self) -> int:
        """Bytes of the current block that have been charged but lie at or after EIP."""
        address, size = self._clock.block()
        tail = address + size - self.vcpu.linear_eip()
        return tail if 0 < tail <= size else 0

    def _where(self) -> tuple[int, Position]:
        return self.vcpu.eip(), self.position()

    def instructions(self) -> int | None:
        """Instructions retired, when counted."""
        return self._counter.count() if self._counter else None

    def limit_instructions(self, amount: int) -> None:
        """End the guest before it starts more than ``amount`` further instructions."""
        if self._counter is None:
            raise ValueError("instructions are not counted in this machine")
        self._counter.load(amount)

    def can_interrupt(self) -> bool:
        """IF is set and no STI or MOV SS shadow is over the next instruction."""
        return self.cpu.interrupts_enabled() and not self.cpu.interrupt_shadow()

    def deliver_interrupt(self, vector: int) -> Stop | None:
        """Deliver an external interrupt."""
        self.halted = False
        self._deliver(AssistKind.EXTERNAL_INTERRUPT, Event(vector, external=True))
        return self._take_end()

    def deliver_nmi(self) -> Stop | None:
        """Deliver a non-maskable interrupt."""
        self.halted = False
        self._deliver(AssistKind.NMI, Event(2, external=True))
        return self._take_end()

    def skip(self, amount: int) -> None:
        """Let time pass without executing."""
        if self._host_time is not None:
            time.sleep(min(amount * _HOST_UNIT, _HOST_STRETCH))
        self._retired += amount

    def attend(self, *, urgent: bool = False) -> None:
        """Look up at the next instruction boundary, if an interrupt can be delivered there or it is ``urgent``."""
        self._attention = True
        self._urgent = self._urgent or urgent

    def stop_soon(self, stop: Stop) -> None:
        """End the guest at the next boundary; for devices."""
        self._end = self._end or stop
        self._attention = True

    def shorten(self, until: Position) -> None:
        """An event has become due earlier than the position given to ``run``."""
        if self._host_time is not None:
            self._attention = True
        elif self._running and until < self._until:
            self._clock.shorten(self._until - until)
            self._until = until
            if self._clock.remaining() < 0:
                self._attention = True

    def run(self, until: Position) -> Halt | Stop | None:
        """Run to the first instruction boundary at or after ``until``; see the contract."""
        self._until = until
        if self._poker is not None:
            return self._run_by_host_time(self._poker)
        while True:
            if self._end is not None:
                return self._take_end()
            if self._attention:
                self._attention = self._urgent = False
                return None
            left = self._until - self._retired
            if left <= 0 or self.at_breakpoint or (self._pin.level and self.can_interrupt()):
                return None
            if self._engine_holds_if:
                halted = self._go(left, window=self._pin.level)
            else:  # only the end of a shadow makes interrupts possible unseen: let its one instruction be refused
                halted = self._go(0 if self._pin.level and self.cpu.interrupt_shadow() else left)
            if not halted and self._refused is not None and self._end is None and not self._attention:
                halted = self._approach(*self._refused)
            if halted:
                return self._halt()

    def _run_by_host_time(self, poker: Poker) -> Halt | Stop | None:
        """Run until the host's clock, an interrupt or a device wants the machine to look; inexact by nature.

        While an interrupt waits for IF, the guest is stopped to look at it more and more rarely.
        """
        window = _HOST_WINDOW
        while True:
            if self._end is not None:
                return self._take_end()
            left = self._until - self.position()
            if self._attention or left <= 0 or self.at_breakpoint or (self._pin.level and self.can_interrupt()):
                self._attention = self._urgent = False
                return None
            stretch = window if self._pin.level else _HOST_STRETCH
            window = min(2 * window, _HOST_STRETCH)
            poker.arm(min(left * _HOST_UNIT, stretch))
            if self._go(0) and not poker.fired:
                return self._halt()
            if self._retranslate is not None:
                self._forget_code_at(*self._retranslate)
                self._retranslate = None

    def _stop_now(self) -> None:
        """Stop where the engine stands, from a hook that may; not from IN, OUT or memory callbacks."""
        self._stopped = True
        self.vcpu.stop()

    def _stop_at_block_end(self) -> None:
        """Make the next block boundary the last of this run."""
        if self._poker is not None:
            self.vcpu.stop()
        else:
            self._clock.refuse_next()

    def _halt(self) -> Halt | Stop:
        self._halts[0] += 1
        self.halted = True
        return self._take_end() or Halt()

    def _take_end(self) -> Stop | None:
        end, self._end = self._end, None
        return end

    def _approach(self, address: int, size: int) -> bool:
        """A block was refused: find out why and take the step that the block-wise clock cannot.

        Returns whether the guest halted in that step.
        """
        if self._retranslate is not None:
            self._forget_code_at(*self._retranslate)
            self._retranslate = None
            return False
        left = self._until - self._retired
        if left <= 0:
            return False
        if self.cpu.interrupt_shadow() and self._pin.level:
            return self._go(size)  # a block in the shadow of STI is one instruction
        if left >= size or (self._pin.level and self.can_interrupt()):
            return False
        end = self._boundary(address, size, left)
        return self._go(size) if end == size else self._go_part(address, size, end, end - left)

    def _go_part(self, address: int, size: int, end: int, slack: int) -> bool:
        """Run the first ``end`` bytes of the block at ``address``, an instruction boundary."""
        vcpu = self.vcpu
        self._forget_code_at(address, size)
        vcpu.set_exits([(address + end) & 0xFFFF_FFFF])
        self._slack = slack
        self._disturbed = False
        before = self._retired
        try:
            halted = self._go(end, exit_at=(address + end) & 0xFFFF_FFFF)
            done = vcpu.linear_eip() - address
            if not self._disturbed and 0 <= done <= end:
                self._retired = before + done  # also if a last store into the block itself made it start again
            return halted
        finally:
            self._slack = 0
            vcpu.set_exits([])
            self._forget_code_at(address, size)

    def _boundary(self, address: int, size: int, left: int) -> int:
        """Offset of the first instruction boundary at or after ``left`` in a block."""
        code = self._code(address, size)
        return next((at for at, _, _ in boundaries(code, self._bits()) if at >= left), size)

    # ------------------------------------------------------------------ one stretch of the engine

    def _go(self, budget: int, *, window: bool = False, exit_at: int | None = None) -> bool:
        """Run the engine for at most ``budget`` bytes and settle the account; returns whether the guest halted."""
        vcpu, clock = self.vcpu, self._clock
        self._refused = None
        self._stopped = False
        self._look_at_first_block()
        clock.load(budget, window=window)
        clock.set_tsc(self._retired, self._msrs.tsc_offset, native=self._host_time is None and not self._tracer.active)
        flags_before = self._words[layout.WORD_EFLAGS]
        self._running = True
        try:
            vcpu.run()
        except EngineError as error:
            if self._abandoned is None:
                self._engine_errors[error.number] += 1
                cause = "there is no memory at this address" if error.is_fetch() else str(error)
                self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence(cause))
        finally:
            if self._poker is not None:
                self._poker.disarm()
            settled = self.position()
            block = clock.block()
            linear = vcpu.linear_eip()
            untouched = self._abandoned is None and not self._stopped and self._end is None
            if self._host_time is not None:
                untouched = untouched and not self._attention and self._retranslate is None
            refused = untouched and block[1] != 0 and linear == block[0]
            self._running = False
            self._retired = settled
            if count := clock.take_tsc_count():
                self._assists[AssistKind.RDTSC][0] += count
            if vcpu.flags_spoiled() and self._abandoned is None:
                self._repair_flags(refused, exit_at == linear, flags_before)
        if self._abandoned is None and self._counter and self._counter.exhausted() and self._end is None:
            self._end = Stop(ExitStatus.LIMIT, self.sentence("the instruction limit was reached"))
            return False
        if self._abandoned is not None:
            self._recover()
        elif self._intercept_at is not None:
            self._intercept_at = None
            self._intercepted()
        elif self._halting:
            self._halting = False
            return True
        elif refused:
            self._refused = block
        elif untouched and linear != exit_at:
            return True
        return False

    def _repair_flags(self, refused: bool, at_exit: bool, flags_before: int) -> None:
        """The flags were last certain where a block was refused, or where a part of a block began."""
        if refused:
            self.vcpu.repair_flags(self._clock.refused_eflags())
        elif at_exit:
            instructions = boundaries(self._code(*self._clock.block()), self._bits())
            cleared = FLAG_IF if any(mnemonic == "cli" for _, mnemonic, _ in instructions) else 0
            self.vcpu.repair_flags(flags_before & ~cleared)

    def _abandon(self, eip: int, event: Event | None = None, accumulator: int | None = None) -> None:
        """Make the present instruction the last: what the engine still executes of the block will not have happened.

        ``eip`` is where the guest goes on; ``event`` is delivered there first.
        """
        vcpu, words = self.vcpu, self._words
        address, size = self._clock.block()
        tail = address + size - ((vcpu.linear_eip() - vcpu.eip() + eip) & 0xFFFF_FFFF)
        self._abandoned_at = self._retired + self._clock.consumed() - (tail if 0 < tail <= size else 0)
        before = words[layout.WORD_EIP]
        words[layout.WORD_EIP] = eip
        hflags = words[layout.WORD_HFLAGS]
        if event is None:
            vcpu.set_interrupt_shadow(False)
        saved = vcpu.save()
        words[layout.WORD_EIP], words[layout.WORD_HFLAGS] = before, hflags
        if accumulator is not None:
            saved[0:8] = accumulator.to_bytes(8, "little")
        self._abandoned = saved
        self._pending_event = event
        self._counted = self._counter.count() - (event is not None) if self._counter else 0
        words[layout.WORD_CR0] |= CR0_PG
        words[layout.WORD_CR3] = _POISON_CR3
        words[layout.WORD_CR4] &= ~CR4_PAE
        vcpu.flush_tlb()
        self._stop_at_block_end()

    def _recover(self) -> None:
        vcpu = self.vcpu
        assert self._abandoned is not None
        vcpu.restore(self._abandoned)
        self._abandoned = None
        if self._counter:
            self._counter.rewind(self._counted)
        vcpu.flush_tlb()
        vcpu.clear_exception()
        event, self._pending_event = self._pending_event, None
        if event is not None:
            self._deliver(AssistKind.IO_PERMISSION, event)

    # ------------------------------------------------------------------ ports and MMIO

    def _forbidden(self, port: int, size: int) -> bool:
        """IOPL and the I/O bitmap; a forbidden access is abandoned with #GP."""
        cpl, flags = self.cpu.cpl(), self.cpu.eflags()
        if cpl == 0 or (cpl <= (flags >> 12) & 3 and not flags & FLAG_VM):
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
            accumulator = (self.vcpu.gpr(EAX) & ~mask) | (value & mask)
        self._abandon((eip + len(instruction.code)) & 0xFFFF_FFFF, accumulator=accumulator)

    # ------------------------------------------------------------------ exceptions and interrupts

    def _on_interrupt(self, vector: int) -> None:
        vcpu = self.vcpu
        if self._abandoned is not None:
            vcpu.stop()
            return
        if vcpu.is_software_interrupt():  # ends its block: nothing to refund
            self._disturbed = True
            if self._slack:
                self._take_back_slack()
            eip = vcpu.eip()
            length = 1 if vector in (3, 4) and self._code(vcpu.linear_eip() - 1, 1) in (b"\xcc", b"\xce") else 2
            event = Event(vector, None, True, False, None, (eip - length) & 0xFFFF_FFFF)
            if self._deliver(AssistKind.SOFTWARE_INTERRUPT, event):
                self._clock.refund(length)
            return
        code = vcpu.error_code() if vector in WITH_ERROR_CODE else None
        fetching = vector == PAGE_FAULT and bool(vcpu.error_code() & ERROR_FETCH)
        self._settle_block(complete=fetching or vector == DEBUG)
        if vector == DEBUG:
            if self._stepped():
                return
        elif self._poker is None and self.position() >= self._until:
            # A fault at the boundary where the run ends, because its block does not count its instruction: next time.
            vcpu.forget_exception()
            if self._counter:
                self._counter.take_back()
            self._stop_now()
            return
        self._exception(Event(vector, code, address=vcpu.cr2() if vector == PAGE_FAULT else None))

    def _on_invalid(self) -> bool:
        if self._abandoned is not None:
            self.vcpu.stop()
            return True
        self._settle_block()
        self._exception(Event(INVALID_OPCODE))
        return self._end is None

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
        problem = self._deliver_event(event)
        vcpu.clear_exception()
        if problem is None or isinstance(problem, Escalated):
            if self._pin.level and self._running and self.cpu.interrupts_enabled():
                self._open_window()
            return problem is not None
        where = eip if event.start is None else event.start
        before = where, (vcpu.linear_eip() - vcpu.eip() + where) & 0xFFFF_FFFF
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

    def _record(self, kind: AssistKind, event: Event) -> None:
        """Count and trace what is about to be delivered."""
        if kind is AssistKind.SOFTWARE_INTERRUPT:  # hashing an Enum is slow
            self._software_interrupts[event[0]] += 1
        elif kind is AssistKind.EXCEPTION:
            self._exceptions[event[0]] += 1
        else:
            self._assists[kind][event[0]] += 1
        if self._tracer.active:
            self._tracer.publish(Assisted(self.position(), kind, self.vcpu.eip(), event.vector, event.error_code))

    def _open_window(self) -> None:
        """An interrupt waits: be there when the guest next enables interrupts."""
        if self._engine_holds_if:
            self._clock.open_window()
        elif self.can_interrupt():
            self._stop_now()

    def sentence(self, cause: str, where: tuple[int, int] | None = None) -> str:
        """A sentence for people: EIP, instruction and cause."""
        eip, linear = where or (self.vcpu.eip(), self.vcpu.linear_eip())
        code = self._code(linear, MAXIMUM_LENGTH)
        return f"The guest ended at EIP {eip:#010x}, instruction {describe(code, self._bits(), eip)}: {cause}."

    # ------------------------------------------------------------------ instructions done in place of the CPU

    def _note(self, kind: AssistKind, detail: int) -> None:
        self._assists[kind][detail] += 1
        if self._tracer.active:
            self._tracer.publish(Assisted(self.position(), kind, self.vcpu.eip(), detail))

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
        self._note(AssistKind.SYSENTER, 0)
        if not selector:
            self._deliver(AssistKind.EXCEPTION, Event(GENERAL_PROTECTION, 0))
            cpu.set_eip(cpu.eip() - 2)
            return
        cpu.set_eflags(cpu.eflags() & ~(FLAG_VM | FLAG_IF | FLAG_RF))
        cpu.set_segment(SS, Segment(selector + 8, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9300))
        cpu.set_segment(CS, Segment(selector, 0, 0xFFFF_FFFF, _FLAT_32 | 0x9B00))
        cpu.set_gpr(ESP, values[SYSENTER_ESP])
        cpu.set_eip(values[SYSENTER_EIP] - 2)
        cpu.set_interrupt_shadow(False)

    # ------------------------------------------------------------------ translation and interception

    def _bits(self) -> int:
        return 32 if self._words[layout.WORD_HFLAGS] & (1 << 4) else 16

    def _code(self, linear: int, length: int) -> bytes:
        """Code bytes as the CPU would fetch them, as many as are mapped."""
        memory, paging = self.memory, self.cpu.paging()
        try:
            return read_linear(memory, paging, linear, length, mark=False)
        except LinearFault:
            first = PAGE_SIZE - linear % PAGE_SIZE
            if length > first:
                return self._code(linear, first)
            return b""

    def _on_translation(self, linear: int, size: int) -> None:
        """A block has been translated and is about to run: note its frame, look for instructions to intercept."""
        memory, paging = self.memory, self.cpu.paging()
        physical = walk(memory, paging, linear & 0xFFFF_FFFF, mark=False)
        if not isinstance(physical, int):
            return
        memory.code_frames.add(physical >> PAGE_SHIFT)
        if (linear & (PAGE_SIZE - 1)) + size > PAGE_SIZE:
            code = self._code(linear, size)
            second = walk(memory, paging, (linear + size - 1) & 0xFFFF_FFFF, mark=False)
            if isinstance(second, int):
                memory.code_frames.add(second >> PAGE_SHIFT)
        else:
            code = bytes(memory.view[physical : physical + size])
        if self._no_execute:
            # Stores through a non-executable mapping are checked against translated code once per TLB entry only.
            self.vcpu.flush_tlb()
        if self._suspicious.search(code) and self._abandoned is None:
            self._intercept_sites(linear, size, code)

    def _look_at_first_block(self) -> None:
        """The engine does not announce the first block of a run: look at what it may be."""
        memory, linear = self.memory, self.vcpu.linear_eip()
        physical = walk(memory, self.cpu.paging(), linear, mark=False)
        if not isinstance(physical, int):
            return
        memory.code_frames.add(physical >> PAGE_SHIFT)
        code = memory.view[physical : min(physical + _FIRST_LOOK, (physical | (PAGE_SIZE - 1)) + 1)]
        if self._suspicious.search(code) and self._hook_sites(linear, bytes(code)):
            self._forget_code_at(linear, len(code))

    def _forget_code_at(self, linear: int, size: int) -> None:
        """Drop the translations of code that the guest has at a linear address."""
        self.vcpu.forget_code_at(linear, size)

    def _intercept_sites(self, linear: int, size: int, code: bytes) -> None:
        """A block that has just been translated contains such an instruction: translate it again, with a hook."""
        if self._hook_sites(linear, code):
            self._retranslate = linear, size
            self._stop_at_block_end()

    def _hook_sites(self, linear: int, code: bytes) -> bool:
        """Hook every instruction that may need to be intercepted; returns whether one was new."""
        fresh = False
        for at, mnemonic, operands in boundaries(code, self._bits()):
            if self._is_intercepted(mnemonic, operands) and self._hook_site(linear + at):
                fresh = True
        return fresh

    def _hook_site(self, linear: int) -> bool:
        """Hook the instruction at a linear address, which must be translated again; returns whether it was new."""
        if linear in self._sites:
            return False
        self._sites.add(linear)
        self.vcpu.on_execute(linear, self._on_site)
        return True

    def _on_site(self, linear: int) -> None:
        """Just before an instruction that may need to be intercepted."""
        if self._abandoned is not None:
            self.vcpu.stop()
            return
        if linear in self._breakpoints and (self.position(), linear) != self._resumed_at:
            self.at_breakpoint = True
            self._stop_now()
            return
        if self._debug.watches(linear) and not self.cpu.eflags() & FLAG_RF:
            self._intercept(linear)
            return
        instruction = self._instruction()
        if (
            instruction is not None
            and self._is_intercepted(instruction.mnemonic, instruction.operands)
            and self._wants(instruction)
        ):
            self._intercept(linear)

    def _intercept(self, linear: int) -> None:
        self._intercept_at = linear
        self._stop_now()

    def _intercepted(self) -> None:
        """The engine stopped before an instruction that was to be intercepted."""
        if self._debug.hit(self.cpu.linear_eip(), self.cpu.eflags()):
            self._exception(Event(DEBUG))
            return
        instruction = self._instruction()
        assert instruction is not None
        self._emulate(instruction)

    def _instruction(self) -> Instruction | None:
        """The instruction at EIP."""
        return decode(self._code(self.vcpu.linear_eip(), MAXIMUM_LENGTH), self._bits())

    @abstractmethod
    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        """Whether such an instruction may have to be done in place of the CPU."""

    @abstractmethod
    def _wants(self, instruction: Instruction) -> bool:
        """Whether this one has to be, in the present state of the guest."""

    @abstractmethod
    def _emulate(self, instruction: Instruction) -> None:
        """Do the instruction at EIP in place of the CPU."""

    # ------------------------------------------------------------------ breakpoints

    def _load_debug(self, values: list[int]) -> None:
        self._debug.load(values)
        self._hook_addresses(self._debug.execution_breakpoints())

    @property
    def breakpoints(self) -> frozenset[int]:
        """Linear addresses at which ``run`` returns before the instruction."""
        return self._breakpoints

    @breakpoints.setter
    def breakpoints(self, addresses: frozenset[int]) -> None:
        self._breakpoints = addresses
        self._hook_addresses(addresses)

    def resume(self) -> None:
        """A run begins: a breakpoint on the next instruction does not count."""
        self.at_breakpoint = False
        self._resumed_at = self.position(), self.vcpu.linear_eip()

    def _hook_addresses(self, addresses: frozenset[int]) -> None:
        fresh = [address for address in addresses if self._hook_site(address)]
        if fresh:
            self.vcpu.forget_code()


def _describe(event: Event) -> str:
    """An event for a sentence."""
    name = f"interrupt {event.vector:#04x}" if event.external else vector_name(event.vector)
    code = "" if event.error_code is None else f" (error code {event.error_code:#x})"
    return name + code + ("" if event.address is None else f" at address {event.address:#010x}")
