"""A guest that does one access after the other on page tables that a test lays out, in any mode of a real machine.

A stub of machine code fetches a command word by word from a port, does it at the ring that was asked for, and reports
what came of it to the port: a value, or a page fault with all the handler can know. Between two commands a test may
call Python, as a device would write memory or to look at the hypervisor's tables. The stub occupies 64 KiB from 1 MiB
on, which must be mapped where they are, with accessed and dirty bits set.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from hvemu.cpu.msr import EFER
from hvemu.cpu.state import (
    CS,
    SS,
    Segment,
    TableRegister,
    VirtualCpu,
    segment_from_descriptor,
)
from hvemu.devices.contract import Device, DeviceState
from hvemu.machine import builder
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.machine import Machine
from hvemu.memory.shadow import ShadowPaging, ShadowPolicy
from hvemu.vocabulary.paging import CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR0_WP, PagingRegisters

RAM = 5 << 20
"""Not a multiple of a large page, so that one lies half outside."""
STUB, STUB_END = 0x10_0000, 0x11_0000
KERNEL_CODE, USER_CODE, KERNEL_STACK, USER_STACK, TABLES = range(STUB, STUB + 0x5000, 0x1000)
STUB_TABLE = STUB + 0x5000
"""The page table of the stub: 4-byte entries in its first half, 8-byte entries in its second; a directory of two
levels and one of PAE can both name it."""
IDT = TABLES + 0x400
TSS = TABLES + 0x100
CODE0, DATA0, CODE3, DATA3, TASK = 0x08, 0x10, 0x1B, 0x23, 0x28
PORT = 0x2E0
CONTROL = CR0_PE | CR0_ET | CR0_NE
PAGING, PROTECTED = CONTROL | CR0_PG, CONTROL | CR0_PG | CR0_WP
WINDOW, WINDOW_SIZE = 0xE000_0000, 0x4000
"""Where a device answers that keeps what is written to it."""

ACCESSES = {
    "read8": "8a07",  # mov al,[edi]
    "read": "8b07",  # mov eax,[edi]
    "write8": "8807",  # mov [edi],al
    "write": "8907",  # mov [edi],eax
    "or": "0907",  # or [edi],eax
    "and": "2107",  # and [edi],eax
    "exchange": "8707",  # xchg [edi],eax
    "fill": "f3ab",  # rep stosd
    "push": "8d6704 50",  # lea esp,[edi+4] / push eax
    "execute": "ffd7",  # call edi
}
"""What both rings can do: EDI is the address, EAX the value, ECX the count."""
CONTROLS = {
    "invlpg": "0f013f",
    "cr0": "0f22c0",
    "cr3": "0f22d8",
    "cr4": "0f22e0",
    "efer": "b9800000c0 31d2 0f30",  # mov ecx,0C0000080h / xor edx,edx / wrmsr
    # Out of paging, through PAE or not, and in again; PORT is in DX
    "switch": "0f22c0 ed 0f22e0 ed 0f22d8 ed b9800000c0 31d2 0f30 66bae002 ed 0f22c0",
    "user": f"6a23 68{(USER_STACK + 0x1000).to_bytes(4, 'little').hex()} 6a02 6a1b 55 cf",  # iret to EBP
    "stop": "e6f4",  # out 0F4h,al; 0 is what it gets
}
_ENDINGS = {"user": "", "stop": "next"}
_NEXT = (
    f"bc{(KERNEL_STACK + 0x1000).to_bytes(4, 'little').hex()} 66bae002"  # mov esp,... / mov dx,PORT
    "ed 93 ed 95 ed 97 ed 91 ed ffe3"  # in eax,dx: EBX, EBP, EDI, ECX, EAX / jmp ebx
)
_DONE = "66bae002 ef"  # mov dx,PORT / out dx,eax; what follows is next
_FAULT = (
    "66bae402 58 ef 0f20d0 ef 58 ef 58 ef 58 ef"  # mov dx,PORT+4 / error code, CR2, EIP, CS, EFLAGS
    "89f8 ef 89c8 ef"  # EDI, ECX
)


def _assemble() -> tuple[bytes, bytes, dict[str, int], dict[str, int]]:
    """The kernel's page and the user's, with the addresses of everything in them."""
    kernel, user = bytearray(), bytearray()
    at: dict[str, int] = {}
    at_user: dict[str, int] = {}

    def add(name: str, code: str, ending: str = "") -> None:
        at[name] = KERNEL_CODE + len(kernel)
        kernel.extend(bytes.fromhex(code.replace(" ", "")))
        if ending:
            kernel.extend(b"\xe9" + (at[ending] - KERNEL_CODE - len(kernel) - 5).to_bytes(4, "little", signed=True))

    add("done", _DONE)
    add("next", _NEXT)
    add("fault", _FAULT, "next")
    for name, code in ACCESSES.items():
        add(name, code, "done")
        at_user[name] = USER_CODE + len(user)
        user.extend(bytes.fromhex(code.replace(" ", "")) + b"\xcd\x80")  # int 80h
    for name, code in CONTROLS.items():
        add(name, code, _ENDINGS.get(name, "done"))
    return bytes(kernel), bytes(user), at, at_user


_KERNEL, _USER, KERNEL, USER = _assemble()
_FAULTS_AT = {"push": 3}


def _descriptors() -> bytes:
    """GDT, TSS and IDT in one page."""
    page = bytearray(0x1000)
    limit_and_flags = 0x00CF << 48 | 0xFFFF
    for selector, kind in ((CODE0, 0x9B), (DATA0, 0x93), (CODE3 & ~3, 0xFB), (DATA3 & ~3, 0xF3)):
        page[selector : selector + 8] = (limit_and_flags | kind << 40).to_bytes(8, "little")
    task = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x8B << 40
    page[TASK : TASK + 8] = task.to_bytes(8, "little")
    stack = (KERNEL_STACK + 0x1000) | DATA0 << 32
    page[TSS - TABLES + 4 : TSS - TABLES + 12] = stack.to_bytes(8, "little")
    for vector, handler in ((14, KERNEL["fault"]), (0x80, KERNEL["done"])):
        gate = (handler & 0xFFFF) | CODE0 << 16 | 0xEE00 << 32 | (handler & 0xFFFF0000) << 32
        page[IDT - TABLES + 8 * vector : IDT - TABLES + 8 * vector + 8] = gate.to_bytes(8, "little")
    return bytes(page)


def _stub_table() -> bytes:
    """Identity for the first 16 pages of the stub: the user's code and stack for everybody, the rest for the kernel."""
    page = bytearray(0x1000)
    for index in range(16):
        address = STUB + index * 0x1000
        rights = {USER_CODE: 0x65, USER_STACK: 0x67, KERNEL_CODE: 0x61}.get(address, 0x63)
        for base, size in ((0, 4), (0, 8)):
            where = base + ((address >> 12) & 511) * size
            page[where : where + size] = (address | rights).to_bytes(size, "little")
    return bytes(page)


STUB_IMAGE = b"".join(part.ljust(0x1000, b"\0") for part in (_KERNEL, _USER, b"", b"", _descriptors(), _stub_table()))
STUB_ENTRY = STUB_TABLE | 0x27
"""The directory entry that maps the stub: the first of two levels, the first of PAE."""


class Command(NamedTuple):
    """One thing for the guest to do. ``more`` are words that the routine fetches by itself."""

    what: str
    address: int = 0
    value: int = 0
    count: int = 0
    user: bool = False
    more: tuple[int, ...] = ()

    def words(self) -> tuple[int, ...]:
        """What the stub fetches."""
        jump = KERNEL["user" if self.user else self.what]
        return (jump, USER.get(self.what, 0), self.address, self.count, self.value, *self.more)

    def faults_at(self) -> int:
        """EIP of a page fault."""
        if self.what == "execute":
            return self.address
        return (USER if self.user else KERNEL)[self.what] + _FAULTS_AT.get(self.what, 0)


class Done(NamedTuple):
    """The command was done; EAX afterwards."""

    value: int


class Fault(NamedTuple):
    """What the handler of #PF was told, and EDI and ECX, which tell how far a repeated instruction came."""

    error_code: int
    address: int
    eip: int
    cs: int
    flags: int
    edi: int
    ecx: int


Result = Done | Fault
Step = Command | Callable[[Machine], object]
_FLAGS_THAT_COUNT = 0x1_0100
"""RF, which is set for a fault, and TF, which nobody has set."""


class _Commander(Device):
    """The port: feeds commands and takes what came of them."""

    name = "commander"
    widest_access = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._words: deque[int] = deque()
        self._reported: list[int] = []
        self.steps: deque[Step] = deque()
        self.current: Command | None = None
        self.results: list[Result] = []
        self.after: Callable[[int, Result], object] = lambda index, result: None

    def read(self, offset: int, size: int) -> int:
        """The next word."""
        while not self._words:
            step = self.steps.popleft() if self.steps else Command("stop")
            if isinstance(step, Command):
                self.current = step
                self._words.extend(step.words())
            else:
                step(self._machine)
        return self._words.popleft()

    def write(self, offset: int, size: int, value: int) -> None:
        """A result, or a part of one."""
        if offset:
            self._reported.append(value)
            if len(self._reported) < len(Fault._fields):
                return
            result: Result = Fault(*self._reported)
            result = result._replace(flags=result.flags & _FLAGS_THAT_COUNT)
            self._reported.clear()
        else:
            result = Done(value)
        self.results.append(result)
        self.after(len(self.results) - 1, result)

    def reset(self) -> None:
        """Nothing is to be done."""
        self._words.clear()
        self._reported.clear()
        self.steps.clear()
        self.results = []

    def state(self) -> DeviceState:
        """Not saved."""
        return DeviceState(self.name, 1, {})

    def from_state(self, state: DeviceState) -> None:
        """Not restored."""


class Window(Device):
    """A device that keeps what is written to it."""

    name = "window"
    widest_access = 4

    def __init__(self) -> None:
        self.bytes = bytearray(WINDOW_SIZE)

    def read(self, offset: int, size: int) -> int:
        """What was written, at first zeros."""
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        """Zeros."""
        self.bytes[:] = bytes(WINDOW_SIZE)

    def state(self) -> DeviceState:
        """Not saved."""
        return DeviceState(self.name, 1, {})

    def from_state(self, state: DeviceState) -> None:
        """Not restored."""


class PagingGuest:
    """A machine with the stub. ``start`` lays out memory and registers, ``run`` does commands one after the other."""

    def __init__(
        self, mode: str, policy: ShadowPolicy | None = None, *, mmu: str = "", vmm_memory: int = 0, image: str = ""
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if policy is not None:
                patch.setitem(builder._SHADOW, "cached", policy)
            if vmm_memory:
                patch.setattr(builder, "VMM_MEMORY", vmm_memory)
            configuration = MachineConfiguration(
                image=image or __file__,
                loader="flat",
                memory=RAM,
                serial="none",
                mode=mode,
                mmu=mmu,
                load_address=0x20_0000,
            )
            self.machine = builder.build(configuration)
        self.mode: Any = self.machine.mode
        self.memory = self.machine.memory
        self.commander, self.window = _Commander(self.machine), Window()
        self.machine.ports.claim(PORT, 8, self.commander)
        self.machine.mmio.claim(WINDOW, WINDOW_SIZE, self.window)
        self._faults, self.most_faults = 0, 10_000
        if isinstance(getattr(self.mode, "paging", None), ShadowPaging):
            self._watch_for_standstill()

    def _watch_for_standstill(self) -> None:
        """A guest that faults without end must not hang the tests."""
        fault = self.mode.paging.fault

        def counted(*arguments: int) -> object:
            self._faults += 1
            if self._faults > self.most_faults:
                raise AssertionError(f"no progress: {self.commander.current} faults again and again")
            return fault(*arguments)

        self.mode.paging.fault = counted

    def start(self, pieces: Iterable[tuple[int, bytes]], registers: PagingRegisters) -> None:
        """Memory of zeros but for these pieces and the stub; the CPU at the stub's loop, in ring 0."""
        memory = self.memory
        memory.clear()
        for address, data in ((STUB, STUB_IMAGE), *pieces):
            memory.view[address : address + len(data)] = data
        self.window.reset()
        self.commander.reset()
        descriptors = STUB_IMAGE[TABLES - STUB :]
        cpu = VirtualCpu(instruction_pointer=KERNEL["next"])
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = registers
        for index in range(6):
            selector = {CS: CODE0, SS: DATA0}.get(index, DATA3)
            descriptor = int.from_bytes(descriptors[selector & ~7 :][:8], "little")
            cpu.segments[index] = segment_from_descriptor(selector, descriptor)
        cpu.gdtr = TableRegister(TABLES, 0x2F)
        cpu.idtr = TableRegister(IDT, 0x81 * 8 - 1)
        cpu.tr = Segment(TASK, TSS, 0x67, 0x8B00)
        cpu.msrs = {**self.machine.registers().msrs, EFER: registers.efer}
        self.machine.stop = None
        self._faults = 0
        self.mode.enter(cpu)

    def run(
        self, steps: Iterable[Step], after: Callable[[int, Result], object] = lambda index, result: None
    ) -> list[Result]:
        """Do the steps; the results of the commands, each also told to ``after`` as soon as it is there."""
        commander, machine = self.commander, self.machine
        commander.steps.extend(steps)
        commander.after = after
        commander.results = []
        before = self.mode.position()
        machine.stop = None
        stop = machine.run(before + 50_000_000)
        if stop is None or stop.reason != "the guest wrote 0x0 to the debug exit port":
            shared_guest.cache_clear()  # nobody shall inherit this
            cause = stop.reason if stop is not None else "the limit was reached"
            raise AssertionError(f"{cause}, at {commander.current}, after {commander.results[-3:]}")
        return commander.results

    def position(self) -> int:
        """Guest code bytes retired."""
        return int(self.mode.position())


POLICIES = {
    "cached": ShadowPolicy(),
    "flush": ShadowPolicy(keep=False),
    "trace": ShadowPolicy(unsync=False),
    "simple": ShadowPolicy(keep=False, unsync=False),
    "eight tables": ShadowPolicy(tables=8),
}


TECHNIQUES = {
    "native": ("native", ""),
    "nested": ("svm", "nested"),
    "nested-2": ("svm", "nested-2"),
    "shadow under svm": ("svm", "shadow"),
}
"""Mode and paging technique of those that have no policies, or are tested with one."""


@lru_cache
def shared_guest(technique: str) -> PagingGuest:
    """A machine that tests use one after the other: of TECHNIQUES, or in mode trap with one of the POLICIES."""
    if technique in POLICIES:
        return PagingGuest("trap", POLICIES[technique])
    mode, mmu = TECHNIQUES[technique]
    return PagingGuest(mode, mmu=mmu)
