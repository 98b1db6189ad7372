"""Running a guest by stretches of the engine, with position: the clockwork that every mode shares.

Position is kept by the engine's block clock. A stretch ends at a block that is refused, or where a hook stops the
engine; the last block before a stop is run in part. An exit in the middle of a block can be made the last thing that
happens (``_abandon``): the rest of the block runs on poisoned page tables and its effects are thrown away. ``cpu`` is
what the guest believes, ``vcpu`` the engine's registers; without a hypervisor in between they are the same.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from hvemu.cpu.cpuid import CpuId
from hvemu.cpu.debug_registers import DebugRegisters
from hvemu.cpu.decoder import MAXIMUM_LENGTH, boundaries, describe
from hvemu.cpu.delivery import (
    Event,
)
from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.msr import ModelSpecificRegisters
from hvemu.cpu.state import CS, FLAG_IF, CpuPort, VirtualCpu, accessed
from hvemu.dispatch.dispatcher import Dispatcher
from hvemu.engine import layout
from hvemu.engine.block_clock import ADDRESS, BIAS, BUDGET, CACHE_SIZE, LOADED, SIZE, InstructionCounter
from hvemu.engine.poker import Poker
from hvemu.engine.vcpu import EngineError, Vcpu
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.modes.live_cpu import LiveCpu
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.addresses import PAGE_SHIFT, PAGE_SIZE, Position
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind, ExitKind
from hvemu.vocabulary.outcomes import Halt, Outcome, Stop
from hvemu.vocabulary.paging import CR0_PG, CR4_PAE, LINEAR_MASK

_POISON_CR3: Final = 0xFFFF_F000
"""Page tables nobody answers for: while abandoned, MMIO reads as zeros, which means not present."""
_QUAD_CS_BASE: Final = (layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * CS + 8) // 8
_HOST_UNIT: Final = 4e-9
_HOST_STRETCH: Final = 0.02
_HOST_WINDOW: Final = 0.0002


class TaskPriority(Protocol):
    """CR8, which is the upper half of the local APIC's task priority register (SDM vol. 3A, 10.8.6.1)."""

    def read_priority(self) -> int:
        """The interrupt class up to which interrupts wait, 0 to 15."""

    def write_priority(self, value: int) -> None:
        """Set it."""


class OwnTaskPriority:
    """CR8 of a CPU without a local APIC: a register that nothing reads."""

    def __init__(self) -> None:
        self._value = 0

    def read_priority(self) -> int:
        """What was written last."""
        return self._value

    def write_priority(self, value: int) -> None:
        """Keep it."""
        self._value = value


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
    hypercall: Callable[[CpuPort], Outcome] | None = None
    """What VMCALL and VMMCALL do; #UD as on a bare CPU without it."""
    frames: range = range(0)
    """Machine frames that are the hypervisor's own; unless given, all below the guest's but the first."""

    def own_frames(self) -> range:
        """Where a technique keeps its tables; nothing of the hypervisor's is at machine address 0."""
        return self.frames or range(1, self.memory.base >> PAGE_SHIFT)

    task_priority: TaskPriority | None = None


class Stretches(ABC):
    """Runs from position to position; subclasses say what happens on the way."""

    name: str
    _engine_holds_if = True
    """Whether the engine's EFLAGS.IF is the guest's."""

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        vcpu, ledger, msrs = services.vcpu, services.ledger, services.msrs
        self.vcpu, self.cpu, self.memory = vcpu, cpu, services.memory
        self._host_time = services.host_time
        self._poker = Poker(vcpu.stop) if services.host_time else None
        self._clock = vcpu.clock
        self._cells = vcpu.clock.cells
        self._words, self._quads = vcpu.words, vcpu.quads
        self._msrs = msrs
        self._pin = services.interrupt_pending
        self._task_priority = services.task_priority or OwnTaskPriority()
        self._tracer = services.tracer
        self._services = services
        self._assists = {kind: ledger.counter(kind) for kind in AssistKind}
        self._engine_errors = ledger.counter(ExitKind.ENGINE_ERROR)
        self._halts = ledger.counter(ExitKind.HLT)
        self._debug = DebugRegisters()
        self._retired = 0  # position when the clock was loaded
        self._running = False
        self._until = 0
        self._slack = 0  # bytes the running budget was enlarged by, to let a shortened block in
        self._disturbed = False  # whether an exception left the part of a block that was to run
        self._refused: tuple[int, int] | None = None
        self._stopped_at = 0  # linear address where the engine stopped last
        self._attention = self._urgent = False
        self._end: Stop | None = None
        self._abandoned: bytearray | None = None
        self._abandoned_at = 0
        self._counted = 0  # instructions, when the block was abandoned
        self._pending_event: Event | None = None
        self._intercept_at: int | None = None
        self._retranslate: tuple[int, int] | None = None
        self._stopped = False  # the engine was stopped on purpose, in the middle of a stretch
        self._halting = False
        self.at_breakpoint = False
        self._nmi_blocked = False
        self.halted = False
        self.warn: Callable[[str], None] = lambda text: None
        Stretches.connect(self)
        if services.host_time is None:
            vcpu.clock.install()
        self._counter = InstructionCounter(vcpu.handle, vcpu.eflags_address) if services.count_instructions else None

    def connect(self) -> None:
        """Be the one that memory, the dispatcher and the MSRs tell and ask; the last one to call it is."""
        self._services.dispatcher.where = self._where
        self.memory.forget_code = self.vcpu.forget_code
        self.memory.on_watched_write = lambda frame, offset, length: None
        self.memory.watched_frames.clear()
        self._msrs.live = {}
        self._msrs.paging_enabled = lambda: bool(self.cpu.paging().cr0 & CR0_PG)

    def take_over_from(self, other: "Stretches") -> None:
        """Go on from another technique's position, with what is pending there."""
        self._retired = other._retired
        self._attention, self._urgent, self._end = other._attention, other._urgent, other._end
        other._end = None
        if self._counter and other._counter:
            self._counter.go_on_from(other._counter)

    # ------------------------------------------------------------------ the ExecutionMode contract

    @abstractmethod
    def enter(self, cpu: VirtualCpu) -> None:
        """Load the engine with the guest's state."""

    def leave(self) -> VirtualCpu:
        """The guest's state at an instruction boundary: what ``cpu`` shows, and what is kept beside it."""
        cpu = self.cpu
        paging = cpu.paging()
        return VirtualCpu(
            gprs=[cpu.long_gpr(index) for index in range(16)],
            instruction_pointer=cpu.eip(),
            flags=cpu.eflags(),
            segments=[accessed(cpu.segment(index)) for index in range(6)],
            gdtr=cpu.gdt(),
            idtr=cpu.idt(),
            ldtr=cpu.ldt_segment(),
            tr=cpu.task_segment(),
            cr0=paging.cr0,
            cr2=cpu.cr2(),
            cr3=paging.cr3,
            cr4=paging.cr4,
            cr8=self._task_priority.read_priority(),
            debug=list(self._debug.values),
            msrs=self._msrs.present_values(),
            efer=paging.efer,
            interrupt_shadow=cpu.interrupt_shadow(),
            nmi_blocked=self._nmi_blocked,
            halted=self.halted,
            fpu=self.vcpu.read_fpu(),
        )

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
        linear = quads[_QUAD_CS_BASE] + quads[layout.QUAD_EIP]
        tail = cells[ADDRESS] + size - linear
        if not 0 < tail <= size:
            tail &= LINEAR_MASK  # the cell is signed, which the upper half of 64-bit addresses is not
            if not 0 < tail <= size:
                return Position(charged)
        return Position(charged - (self._clock.weight(linear, linear + tail) if cells[CACHE_SIZE] else tail))

    def _tail(self) -> int:
        """Guest code bytes of the current block that have been charged but lie at or after EIP."""
        return self._tail_from(self.vcpu.linear_eip())

    def _tail_from(self, linear: int) -> int:
        address, size = self._clock.block()
        tail = address + size - linear
        return self._clock.weight(linear, linear + tail) if 0 < tail <= size else 0

    def _eip(self) -> int:
        """Where the guest believes to be."""
        return self.vcpu.eip()

    def _where(self) -> tuple[int, Position]:
        return self._eip(), self.position()

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
            if self._clock_knows_if():
                halted = self._go(left, window=self._pin.level)
            else:  # only the end of a shadow makes interrupts possible unseen: let its one instruction be refused
                halted = self._go(0 if self._pin.level and self.cpu.interrupt_shadow() else left)
            if not halted and self._refused is not None and self._end is None and not self._attention:
                halted = self._approach(*self._refused)
            if halted:
                return self._halt()

    def _clock_knows_if(self) -> bool:
        """Whether the block clock can tell where the guest has interrupts enabled."""
        return self._engine_holds_if

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
        if self.cpu.interrupt_shadow() and self._pin.level and not self._in_cache(address):
            return self._go(size)  # a block in the shadow of STI is one instruction
        whole = self._clock.weight(address, address + size)
        if left >= whole or (self._pin.level and self.can_interrupt()):
            return False
        end = self._boundary(address, size, left)
        if end == size:
            self._slack = whole - left
            try:
                return self._go(whole)
            finally:
                self._slack = 0
        return self._go_part(address, size, end, self._clock.weight(address, address + end) - left)

    def _go_part(self, address: int, size: int, end: int, slack: int) -> bool:
        """Run the first ``end`` bytes of the block at ``address``, an instruction boundary."""
        vcpu = self.vcpu
        self._forget_code_at(address, size)
        vcpu.set_exits([address + end & LINEAR_MASK])
        exit_at = address + end & vcpu.linear_mask()
        self._slack = slack
        self._disturbed = False
        before = self._retired
        weight = self._clock.weight
        try:
            halted = self._go(weight(address, address + end), exit_at=exit_at)
            if self._refused == (address, end) and not self._disturbed:
                # It stored into itself: the engine starts it again, and would charge it again
                self._retired = before
                self._slack = slack + end
                halted = self._go(2 * end, exit_at=exit_at)
            done = self._part_done() - address
            if not self._disturbed and 0 <= done <= end:
                self._retired = before + weight(address, address + done)  # a last store may have restarted it
            return halted
        finally:
            self._slack = 0
            vcpu.set_exits([])
            self._forget_code_at(address, size)

    def _in_cache(self, linear: int) -> bool:
        """Whether this is an address of translated code."""
        return False

    def _part_done(self) -> int:
        """Linear address that the part of a block has come to."""
        return self.vcpu.linear_eip()

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
            linear = self._stopped_at = vcpu.linear_eip()
            untouched = self._abandoned is None and not self._stopped and self._end is None
            if self._host_time is not None:
                untouched = untouched and not self._attention and self._retranslate is None
            # The engine does not wrap what 32-bit code reaches beyond 4 GiB, through its segment's base for instance
            refused = untouched and block[1] != 0 and linear == block[0] & vcpu.linear_mask()
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
        vcpu, words, quads = self.vcpu, self._words, self._quads
        tail = self._tail_from(vcpu.linear_of(eip))
        self._abandoned_at = self._retired + self._clock.consumed() - tail
        before = quads[layout.QUAD_EIP]
        quads[layout.QUAD_EIP] = eip
        hflags = words[layout.WORD_HFLAGS]
        if event is None:
            vcpu.set_interrupt_shadow(False)
        saved = vcpu.save()
        quads[layout.QUAD_EIP], words[layout.WORD_HFLAGS] = before, hflags
        if accumulator is not None:
            saved[0:8] = accumulator.to_bytes(8, "little")
        self._abandoned = saved
        self._pending_event = event
        self._counted = self._counter.count() - (event is not None) if self._counter else 0
        words[layout.WORD_CR0] |= CR0_PG
        quads[layout.QUAD_CR + 3] = _POISON_CR3
        words[layout.WORD_CR4] &= ~CR4_PAE
        vcpu.flush_tlb()
        self._stop_at_block_end()

    def _recover(self) -> None:
        vcpu = self.vcpu
        assert self._abandoned is not None
        vcpu.restore(self._abandoned)
        self._abandoned = None
        self._stopped_at = vcpu.linear_eip()
        if self._counter:
            self._counter.rewind(self._counted)
        vcpu.flush_tlb()
        vcpu.clear_exception()
        event, self._pending_event = self._pending_event, None
        if event is not None:
            self._deliver(AssistKind.IO_PERMISSION, event)

    # ------------------------------------------------------------------ the code at EIP

    def _bits(self) -> int:
        hflags = self._words[layout.WORD_HFLAGS]
        if hflags & layout.HFLAG_CS64:
            return 64
        return 32 if hflags & (1 << 4) else 16

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

    def _forget_code_at(self, linear: int, size: int) -> None:
        """Drop the translations of code that the guest has at a linear address."""
        self.vcpu.forget_code_at(linear, size)

    def sentence(self, cause: str, where: tuple[int, int] | None = None) -> str:
        """A sentence for people: EIP, instruction and cause."""
        if where is None:
            eip = self._eip()
            where = eip, self.vcpu.linear_of(eip)
        eip, linear = where
        code = self._code(linear, MAXIMUM_LENGTH)
        name = "RIP" if self.cpu.is_64_bit() else "EIP"
        return f"The guest ended at {name} {eip:#010x}, instruction {describe(code, self._bits(), eip)}: {cause}."

    # ------------------------------------------------------------------ what subclasses do on the way

    @abstractmethod
    def _look_at_first_block(self) -> None:
        """The engine does not announce the first block of a run: look at what it may be."""

    @abstractmethod
    def _intercepted(self) -> None:
        """The engine stopped before an instruction that was to be intercepted."""

    @abstractmethod
    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        """Deliver through the IDT; a failure ends the guest with a sentence. Returns whether it escalated."""
