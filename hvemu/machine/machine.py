"""The machine: a wired board, a mode that runs the guest on it, and THE RUN LOOP.

Built by ``builder.build``. It never asks which mode runs. Results are a status, a sentence and the ledger.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hvemu.cpu.cpuid import CpuId
from hvemu.cpu.decoder import MAXIMUM_LENGTH, describe
from hvemu.cpu.state import GPR_NAMES, LONG_GPR_NAMES, VirtualCpu
from hvemu.devices.bus import Bus
from hvemu.machine.board import Board
from hvemu.machine.clock import FAR_AWAY, NANOSECONDS_PER_BYTE, VirtualClock
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.drives import Media
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.walk import walk
from hvemu.modes.contract import ExecutionMode
from hvemu.trace.events import Ended, InputArrived
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.outcomes import Halt, Stop
from hvemu.vocabulary.paging import EFER_LMA, LINEAR_MASK

_IDLE_LIMIT: Final = 3_600_000_000_000 // NANOSECONDS_PER_BYTE
"""A guest that sleeps for an hour of virtual time without one interrupt sleeps for ever."""
_WAIT: Final = 0.25
_STRETCH: Final = 25_000_000
"""The most bytes run before the loop looks up, so that limits, input and signals are seen."""
_SHORTEST_STRETCH: Final = 10_000
_PATIENCE: Final = 0.05

_ENDED_BADLY: Final = frozenset({ExitStatus.GUEST_ENDED, ExitStatus.TRIPLE_FAULT, ExitStatus.HALTED})


class Balloon(Protocol):
    """A guest that gives memory away when it is asked to."""

    def set_balloon(self, size: int) -> None:
        """Ask it to make do with so many bytes."""

    def balloon_target(self) -> int:
        """What it was asked for last."""

    def balloon(self) -> int:
        """How many bytes it has now."""


Idle = Callable[[float], bool]
"""Wait up to so many host seconds for input; returns whether some may still come."""


def _pointer_name(cpu: VirtualCpu) -> str:
    return "RIP" if cpu.is_64_bit() else "EIP"


@dataclass
class Machine:
    """One virtual machine. ``run`` may be called again after it returned at a limit."""

    configuration: MachineConfiguration
    memory: GuestPhysicalMemory
    clock: VirtualClock
    board: Board
    ports: Bus
    mmio: Bus
    mode: ExecutionMode
    cpuid: CpuId
    ledger: Ledger
    tracer: Tracer
    media: Media
    """The open images of its disks."""
    is_64_bit_kernel: bool
    """Whether its image is for long mode, although it starts in 32-bit code."""
    reset: Callable[[], None]
    switch: Callable[[str, str], None]
    balloon: Balloon | None = None
    """Takes and returns memory of the guest, if the guest can do that."""
    channels: Callable[[], list[str]] | None = None
    """Tells of the event channels that a guest has in place of interrupt lines, for people."""
    stop: Stop | None = None
    idle: Idle | None = None
    """Set by a console that can wait for input; without it nothing comes from outside."""
    poll: Callable[[], None] | None = None
    """Called now and then with the guest at a boundary; feeds input."""
    wall_seconds: float = 0.0
    slept: int = 0
    """How much of the position passed after HLT, without a guest instruction."""
    _idle_since: int = 0
    _pausing: bool = False
    _stretch: int = 1_000_000

    def run(self, until: int = FAR_AWAY) -> Stop | None:
        """Run to position ``until`` or to the end; returns why the guest ended, or None at a limit or breakpoint."""
        if self.stop is not None:
            return self.stop
        clock, interrupt = self.clock, self.board.interrupt
        started = time.perf_counter()
        self._pausing = False
        self.mode.resume()
        try:
            while not (self.stop or self.mode.position() >= until or self.mode.at_breakpoint or self._pausing):
                if self.poll is not None:
                    self.poll()
                mode = self.mode  # which whoever was polled may have switched
                clock.run_due()
                if self.board.nmi.pending:
                    self.board.nmi.pending = False
                    self.stop = mode.deliver_nmi()
                elif interrupt.level and mode.can_interrupt():
                    self._idle_since = mode.position()
                    self.stop = mode.deliver_interrupt(self.board.acknowledge())
                elif mode.halted:
                    self._sleep(until)
                else:
                    before = time.perf_counter()
                    outcome = mode.run(
                        min(clock.deadline(), Position(until), Position(mode.position() + self._stretch))
                    )
                    self._pace(time.perf_counter() - before)
                    if isinstance(outcome, Halt):
                        self._idle_since = mode.position()
                    elif outcome is not None:
                        self.stop = outcome
                self._obey()
        finally:
            self.wall_seconds += time.perf_counter() - started
        if self.stop is not None and self.stop.status in _ENDED_BADLY and (remark := self.mode.remark()):
            self.stop = Stop(self.stop.status, f"{self.stop.reason.removesuffix('.')}. {remark}")
        if self.stop is not None and self.tracer.active:
            self.tracer.publish(Ended(self.mode.position(), self.stop.status, self.stop.reason))
        return self.stop

    def _pace(self, seconds: float) -> None:
        """Look up some twenty times a host second, however slowly the guest advances; it does not notice."""
        if seconds > _PATIENCE:
            self._stretch = max(_SHORTEST_STRETCH, self._stretch // 2)
        elif seconds < _PATIENCE / 4:
            self._stretch = min(_STRETCH, self._stretch * 2)

    def _obey(self) -> None:
        """Carry out a reset that a device asked for."""
        if self.board.reset_requested and self.stop is None:
            self.board.reset_requested = False
            if self.configuration.reboot:
                try:
                    self.reset()
                except UserError as error:  # it has overwritten what it was booted from
                    self.stop = Stop(ExitStatus.HALTED, f"after its reset there is nothing to boot: {error}")
            else:
                self.stop = Stop(ExitStatus.POWER_OFF, "the guest reset the machine")

    def _sleep(self, until: int) -> None:
        """After HLT: let time pass up to the next interrupt, or to ``until``."""
        while not (self.stop is not None or self.board.nmi.pending or self.board.reset_requested or self._pausing):
            if self.board.interrupt.level and self.mode.can_interrupt():
                return
            here = self.mode.position()
            if here >= until:
                return
            deadline = self.clock.deadline()
            sleeps_for_ever = (
                deadline >= FAR_AWAY or here - self._idle_since > _IDLE_LIMIT or not self.mode.can_interrupt()
            )
            if self.idle is not None:
                ahead = (deadline - here) * NANOSECONDS_PER_BYTE / 1e9
                if not self.idle(min(ahead, _WAIT)):
                    self.idle = None
                if self.poll is not None:
                    self.poll()
                sleeps_for_ever = sleeps_for_ever and self.idle is None
            if sleeps_for_ever:
                self.stop = Stop(ExitStatus.HALTED, self._halted_sentence())
                return
            if min(deadline, until) < FAR_AWAY:
                ahead_of_us = max(0, min(deadline, until) - here)
                self.mode.skip(ahead_of_us)
                self.slept += ahead_of_us
                self.clock.run_due()

    def where(self) -> str:
        """EIP and the instruction there, for a sentence."""
        cpu = self.mode.leave()
        try:
            code = self.read_memory(cpu.linear_ip(), MAXIMUM_LENGTH)
        except ValueError:
            code = b""
        what = describe(code, cpu.bits(), cpu.instruction_pointer)
        return f"the guest was at {_pointer_name(cpu)} {cpu.instruction_pointer:#010x}, instruction {what}"

    def _halted_sentence(self) -> str:
        cpu = self.mode.leave()
        why = "with interrupts disabled" if not cpu.flags & 0x200 else "and no interrupt ever comes"
        return (
            f"The guest ended at {_pointer_name(cpu)} {cpu.instruction_pointer:#010x}, after instruction 'hlt': "
            f"halted for ever {why}."
        )

    def close(self) -> None:
        """Finish what disks are doing, flush them, and give their images back. The machine cannot run any more.

        Raises OSError when the host could not store something.
        """
        self.board.quiesce()
        self.media.close()

    # ------------------------------------------------------------------ for people and tools

    def switch_mode(self, mode: str, mmu: str = "") -> None:
        """Have another technique run the guest from this instruction on, which the guest does not notice.

        ``mode`` is one of the full modes, native, bt and svm; ``mmu`` its paging technique, its own choice unless
        given, also as one word: ``svm/shadow``. Call it between two runs, or from ``poll``. Raises UserError where it
        cannot take over.
        """
        self.switch(mode, mmu)

    def step(self) -> Stop | None:
        """Execute one guest instruction, or one iteration of a repeated one; after HLT sleep until an event is due."""
        here = self.mode.position()
        deadline = self.clock.deadline() if self.mode.halted else here
        return self.run(deadline if here < deadline < FAR_AWAY else here + 1)

    def pause(self) -> None:
        """Make the present ``run`` return at the next boundary; for callbacks and observers."""
        self._pausing = True
        self.mode.attend(urgent=True)

    @property
    def breakpoints(self) -> frozenset[int]:
        """Linear addresses at which ``run`` returns None before the instruction there; ``at_breakpoint`` says so."""
        return self.mode.breakpoints

    @breakpoints.setter
    def breakpoints(self, addresses: frozenset[int]) -> None:
        self.mode.breakpoints = addresses

    @property
    def at_breakpoint(self) -> bool:
        """Whether the last ``run`` ended before an instruction of ``breakpoints``."""
        return self.mode.at_breakpoint

    def type_text(self, text: str) -> None:
        """Press keys on the guest's keyboard."""
        if self.tracer.active:
            self.tracer.publish(InputArrived(self.mode.position(), "keyboard", text))
        self.board.keyboard.type_text(text)

    def send_serial(self, data: bytes) -> None:
        """Bytes arrive at COM1."""
        if self.tracer.active:
            self.tracer.publish(InputArrived(self.mode.position(), "serial", data.decode("latin-1")))
        self.board.console_input(data)

    def press_power_button(self) -> None:
        """What a finger on the front panel does: an ACPI event that the guest may obey."""
        self.board.power.press_power_button()

    def registers(self) -> VirtualCpu:
        """The guest's CPU state at this boundary."""
        return self.mode.leave()

    def register_values(self) -> dict[str, int]:
        """The general registers, EIP and EFLAGS by name; in 64-bit code RAX to R15, RIP and RFLAGS."""
        cpu = self.registers()
        if cpu.is_64_bit():
            return {
                **dict(zip(LONG_GPR_NAMES, cpu.gprs, strict=True)),
                "rip": cpu.instruction_pointer,
                "rflags": cpu.flags,
            }
        return {**dict(zip(GPR_NAMES, cpu.gprs, strict=False)), "eip": cpu.instruction_pointer, "eflags": cpu.flags}

    def read_memory(self, linear: int, length: int) -> bytes:
        """Guest memory at a linear address as the CPU would see it now; raises ValueError where nothing is mapped."""
        paging, pieces = self.registers().paging(), []
        mask = LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
        while length > 0:
            physical = walk(self.memory, paging, linear & mask, mark=False)
            if not isinstance(physical, int):
                raise ValueError(f"no page is mapped at {linear:#010x}")
            chunk = min(length, 0x1000 - (linear & 0xFFF))
            pieces.append(self.memory.read(physical, chunk))
            linear, length = linear + chunk, length - chunk
        return b"".join(pieces)

    def screen(self) -> list[str]:
        """The text screen, a string a row."""
        return list(self.board.vga.screen(self.memory).rows)

    def statistics(self) -> dict[str, Any]:
        """The ledger as plain values; instructions are exact where they were counted, else None."""
        host = self.configuration.clock == "host"
        return {
            "mode": self.mode.name,
            "image": self.configuration.image,
            "virtual_ns": None if host else self.mode.position() * NANOSECONDS_PER_BYTE,
            "position": None if host else self.mode.position(),
            "instructions": self.mode.instructions(),
            "wall_s": round(self.wall_seconds, 6),
            "guest_exit": None if self.stop is None else {"status": int(self.stop.status), "reason": self.stop.reason},
            **self.ledger.as_dict(),
        }
