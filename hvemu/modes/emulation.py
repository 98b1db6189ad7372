"""Emulation: instructions that a hypervisor does in place of the CPU, or has the CPU do alone, one by one.

What modes with a hypervisor in them have in common. An exit brings an instruction here; the emulator of privileged
instructions does it on what the guest believes of its CPU, or it is stepped over: the CPU does it with the trap flag
set while what it needs is open to it.
"""

from abc import abstractmethod
from typing import Final, Protocol

from hvemu.cpu.decoder import Detailed
from hvemu.cpu.delivery import Event, Unsupported
from hvemu.cpu.privileged import PrivilegedInstructions
from hvemu.cpu.state import FLAG_TF
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.stretches import Services
from hvemu.trace.events import Exited
from hvemu.vocabulary.addresses import Position
from hvemu.vocabulary.errors import ExitStatus, HostBug
from hvemu.vocabulary.exits import MNEMONICS, AssistKind, ExitKind
from hvemu.vocabulary.outcomes import Halt, Stop
from hvemu.vocabulary.paging import ERROR_FETCH

_NUMBERS: Final = {mnemonic: number for number, mnemonic in enumerate(MNEMONICS)}
_PATIENCE: Final = 10_000


class Opened(Protocol):
    """What stepping over an instruction opens to it, and closes again."""

    def open(self, frame: int) -> None:
        """Let the next instruction reach a guest frame that is kept from it."""

    def close(self) -> None:
        """The instruction is done, or will not be."""


class Emulation(DirectExecution):
    """Instructions done by the hypervisor, or stepped over."""

    paging: Opened

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        super().__init__(services, cpu)
        self._privileged = self._instructions(services)
        self._privileged.hypercall = services.hypercall or self._privileged.hypercall
        self._privileged.read_priority = self._task_priority.read_priority
        self._privileged.write_priority = self._task_priority.write_priority
        self._privileged.debug_changed = lambda: self._hook_addresses(self._debug.execution_breakpoints())
        self._last_hidden: tuple[int, int, int | None] = (0, 0, None)
        self._repeated = 0
        self._stepping_over = self._guest_steps = False
        self._repeat_ends_at = -1
        self._repeated_code = b""
        self._read_at = (-1, 0)  # position and EIP of the instruction that read MMIO last
        self._reads: list[tuple[int, int, int]] = []  # what it read: address, size, value
        self._replay: list[tuple[int, int, int]] = []

    @abstractmethod
    def _instructions(self, services: Services) -> PrivilegedInstructions:
        """The emulator of what is not to run as it is."""

    def _emulate_detailed(self, instruction: Detailed, *, counted: bool = True) -> None:
        """Do an instruction in place of the CPU; ``counted``: it is an exit of its own, not part of another."""
        kind = self._kind_of_emulation()
        stepping = bool(self.cpu.eflags() & FLAG_TF)
        eip = self.vcpu.eip()
        result = self._privileged.execute(instruction)
        if isinstance(result, Event):
            DirectExecution._exception(self, result)
            return
        if counted and not isinstance(result, Halt):  # which is a kind of its own
            self._count(kind, instruction.mnemonic, eip, len(instruction.code))
        if isinstance(result, Unsupported):
            self._end = Stop(ExitStatus.GUEST_ENDED, self.sentence(result.reason))
            self._stop_now()
            return
        self.vcpu.forget_exception()
        if isinstance(result, Halt):
            self._halting = True
            self._charge(len(instruction.code))
            self._stop_now()
            return
        if self._running and self.vcpu.cpl() == 3:
            self._look_at_entry()
        # A load of SS holds off the single-step trap as it does interrupts
        held_off = instruction.mnemonic != "sti" and self.vcpu.interrupt_shadow()
        self._retired_by_us(len(instruction.code), stepping=stepping and not held_off)

    def _kind_of_emulation(self) -> ExitKind:
        return ExitKind.PRIVILEGED

    def _count(self, kind: ExitKind, mnemonic: str, eip: int, length: int) -> None:
        detail = _NUMBERS[mnemonic]
        self._exits[kind._value_][detail] += 1
        if self._tracer.active:
            self._tracer.publish(Exited(self.position(), kind, eip, detail, length, 0))

    def _read_mmio(self, address: int, size: int) -> int:
        """A device is read once by an instruction, even if its store then takes a hidden fault and it starts again."""
        here = (self.position(), self._eip())
        if here != self._read_at:
            self._read_at, self._reads, self._replay = here, [], []
        if self._replay:
            known, width, value = self._replay.pop(0)
            if (known, width) == (address, size):
                return value
            self._replay.clear()
        value = self._on_mmio_read(address, size)
        self._reads.append((address, size, value))
        return value

    def _step_over(self, frame: int | None, instruction: Detailed | None) -> None:
        """Let the CPU do an instruction by itself, with a frame open to it, and come back after that one."""
        if not self._stepping_over:  # otherwise it has come a step further, into another frame
            self.paging.close()
        if frame is not None:
            self.paging.open(frame)
        self._again()
        if instruction is not None and instruction.repeated:
            self._repeated_code = instruction.code
            self._repeat_ends_at = self.vcpu.eip() + len(instruction.code)
        else:
            self._repeat_ends_at = -1
        if not self._stepping_over:
            flags = self.cpu.eflags()
            self._stepping_over, self._guest_steps = True, bool(flags & FLAG_TF)
            self.cpu.set_eflags(flags | FLAG_TF)

    def _end_step(self) -> None:
        """The store is done, or something else comes first; then it will fault again."""
        if self._stepping_over:
            self._stepping_over = False
            self.paging.close()
            if not self._guest_steps:
                self.cpu.set_eflags(self.cpu.eflags() & ~FLAG_TF)

    def _stepped(self) -> bool:
        if self._stepping_over:
            self._end_step()
            if not self._guest_steps:
                if self.vcpu.eip() == self._repeat_ends_at:
                    # Free of the trap flag, the engine would come back once more to find the counter at zero
                    self._charge(len(self._repeated_code))
                self.vcpu.forget_exception()
                if self._running and self._pin.level and self.can_interrupt():
                    self._stop_now()
                return True
        return super()._stepped()

    def run(self, until: Position) -> Halt | Stop | None:
        """Run to the first instruction boundary at or after ``until``; see the contract."""
        outcome = super().run(until)
        self._end_step()
        return outcome

    def _deliver(self, kind: AssistKind, event: Event) -> bool:
        self._end_step()
        return super()._deliver(kind, event)

    def _watch_progress(self, event: Event) -> None:
        """The same hidden fault again and again would be a bug of ours; better loud than for ever."""
        here = (self.position(), self.vcpu.eip(), event.address)
        self._repeated = self._repeated + 1 if here == self._last_hidden else 0
        self._last_hidden = here
        if self._repeated > _PATIENCE:
            raise HostBug(f"paging makes no progress at EIP {here[1]:#010x} for address {here[2]:#x}")

    def _again(self, error_code: int = 0) -> None:
        """The instruction is executed again; what made it fault has been removed. A fetch that faults starts none."""
        self.vcpu.forget_exception()
        if self._reads and self._read_at == (self.position(), self.vcpu.eip()):
            self._replay = list(self._reads)
        if self._counter and not error_code & ERROR_FETCH:
            self._counter.take_back()
