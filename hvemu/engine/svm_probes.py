"""What hvemu builds on in the engine's AMD-V, probe by probe; see ``probes``."""

import struct
from itertools import pairwise

from hvemu.cpu.state import EAX, EBX, ESP, FLAG_IF, FLAT_CODE, FLAT_DATA, Segment
from hvemu.engine import layout
from hvemu.engine.svm import EXIT_BASE, SvmHost
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.paging import CR0_ET, CR0_PE
from hvemu.vocabulary.svm import EFER_SVME, EXIT_NESTED_PAGE_FAULT, FIELDS, STATE_SAVE_AREA, intercept_of

_GUEST, _SIZE = 0x10_0000, 0x20_0000
"""The guest's memory in the machine's: guest-physical address 0, and where it ends."""
_CODE, _GDT, _IDT, _HANDLER, _STACK = 0x1000, 0x2000, 0x3000, 0x5000, 0x8000
_MAPPED = 64
_CPUID, _RDTSC = 0x72, 0x6E


class GuestRig:
    """A guest in flat protected mode under VMRUN; nested tables back its first 256 KiB."""

    def __init__(self, model: str = "opteron-g3", levels: int = 4) -> None:
        self.memory = MachineMemory(_SIZE)
        self.vcpu = Vcpu(model)
        self.vcpu.clock.install()
        self.vcpu.map_ram(0, _SIZE, self.memory.host_address)
        pool = FramePool(self.memory, 1, (_GUEST >> 12) - 1)
        self.host = SvmHost(self.vcpu, pool, levels)
        self.exits: list[tuple[int, int]] = []
        self.vcpu.on_interrupt(self._exit)
        self._write_block(self._nested(pool, levels))

    def _nested(self, pool: FramePool, levels: int) -> int:
        entry, bits = (struct.Struct("<Q"), 9) if levels == 4 else (struct.Struct("<I"), 10)
        tables = [pool.take() for _ in range(levels)]
        for table, below in pairwise(tables):
            entry.pack_into(self.memory.view, table, below | 7)
        for page in range(min(_MAPPED, 1 << bits)):
            entry.pack_into(self.memory.view, tables[-1] + page * entry.size, _GUEST + (page << 12) | 7)
        return tables[0]

    def field(self, name: str, value: int) -> None:
        """A field of the control block."""
        field = FIELDS[name]
        at = self.host.vmcb + field.offset
        self.memory.view[at : at + field.size] = value.to_bytes(field.size, "little")

    def _write_block(self, root: int) -> None:
        segments = [FLAT_DATA, FLAT_CODE, *[FLAT_DATA] * 4, Segment(0, _GDT, 0xFF, 0), Segment(0, 0, 0xFFFF, 0x8200),
                    Segment(0, _IDT, 0x7FF, 0), Segment(0, 0, 0x67, 0x8900)]  # fmt: skip
        for index, (selector, base, limit, attributes) in enumerate(segments):
            packed = attributes >> 8 & 0xFF | attributes >> 12 & 0xF00
            at = self.host.vmcb + STATE_SAVE_AREA + 16 * index
            struct.pack_into("<HHIQ", self.memory.view, at, selector, packed, limit, base)
        for name, value in (
            ("EFER", EFER_SVME), ("CR0", CR0_PE | CR0_ET), ("RFLAGS", 2 | FLAG_IF), ("RIP", _CODE), ("RSP", _STACK),
            ("RAX", 7), ("NP_ENABLE", 1), ("N_CR3", root), ("GUEST_ASID", 1),
        ):  # fmt: skip
            self.field(name, value)
        descriptors = 0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
        struct.pack_into("<4Q", self.memory.view, _GUEST + _GDT, *descriptors)
        self.intercept(_CPUID)
        self.intercept(0x80)  # VMRUN, which has to be

    def intercept(self, code: int) -> None:
        """Ask for an exit."""
        name, bit = intercept_of(code)
        field = FIELDS[name]
        at = self.host.vmcb + field.offset
        before = int.from_bytes(self.memory.view[at : at + field.size], "little")
        self.field(name, before | 1 << bit)

    def code(self, text: str, at: int = _CODE) -> None:
        """Machine code as hexadecimal digits."""
        data = bytes.fromhex(text.replace(" ", ""))
        self.memory.view[_GUEST + at : _GUEST + at + len(data)] = data

    def _exit(self, vector: int) -> None:
        if self.host.is_entering:
            self.host.heard(vector)
            return
        self.exits.append((vector - EXIT_BASE, self.vcpu.eip()))
        self.vcpu.clear_exception()
        self.vcpu.stop()


def _expect(expected: object, actual: object) -> str | None:
    return None if expected == actual else f"expected {expected}, found {actual}"


def exit_is_exact() -> str | None:
    """VMRUN loads the state area; an intercepted CPUID exits before it executes, and the guest can go on after it."""
    rig = GuestRig()
    rig.code("bb05000000 43 0fa2 43 f4")  # mov ebx,5 / inc ebx / cpuid / inc ebx / hlt
    rig.host.run()
    entered = rig.vcpu.eip(), rig.vcpu.gpr(EAX), rig.vcpu.gpr(ESP), rig.vcpu.words[layout.WORD_HFLAGS] >> 21 & 1
    rig.vcpu.run()
    exited = list(rig.exits), rig.vcpu.gpr(EBX)
    rig.vcpu.set_eip(_CODE + 8)
    rig.vcpu.run()
    return _expect(((_CODE, 7, _STACK, 1), ([(_CPUID, _CODE + 6)], 6), 7), (entered, exited, rig.vcpu.gpr(EBX)))


def interrupt_is_injected() -> str | None:
    """EVENTINJ has the CPU go through the guest's IDT; the hook hears of the vector afterwards."""
    rig = GuestRig()
    gate = _HANDLER | 0x10 << 16 | 0x8E00 << 32
    struct.pack_into("<Q", rig.memory.view, _GUEST + _IDT + 8 * 0x21, gate)
    rig.host.inject_interrupt(0x21)
    rig.host.run()
    vcpu = rig.vcpu
    frame = struct.unpack_from("<3I", rig.memory.view, _GUEST + _STACK - 12)
    state = rig.host.interrupted, vcpu.eip(), vcpu.gpr(ESP), vcpu.eflags() & FLAG_IF
    return _expect(((0x21, _HANDLER, _STACK - 12, 0), (_CODE, 0x10, 2 | FLAG_IF)), (state, frame))


def nested_fault_has_its_address() -> str | None:
    """EXITINFO2, with both formats of nested tables; nothing of the instruction has happened."""
    seen = []
    for levels in (4, 2):
        rig = GuestRig(levels=levels)
        rig.code("a134120500 f4")  # mov eax,[51234h], behind what is backed
        rig.host.run()
        rig.vcpu.run()
        seen.append((rig.exits, rig.host.fault_address(), rig.vcpu.gpr(EAX)))
    return _expect([([(EXIT_NESTED_PAGE_FAULT, _CODE)], 0x5_1234, 7)] * 2, seen)


def intercepts_can_be_changed() -> str | None:
    """Those that VMRUN has read lie in the CPU state, and count at once, also in code that was translated before."""
    rig = GuestRig()
    rig.code("0f31 90 f4")  # rdtsc / nop / hlt
    rig.host.run()
    rig.vcpu.run()
    without = list(rig.exits)
    rig.intercept(_RDTSC)
    rig.host.set_intercepts()
    rig.vcpu.set_eip(_CODE)
    rig.vcpu.run()
    return _expect(([], [(_RDTSC, _CODE)]), (without, rig.exits))


def stores_to_code_are_seen() -> str | None:
    """Under nested paging, whose entries are executable all."""
    rig = GuestRig()
    rig.code("b001 f4", 0x4000)
    rig.code("c60501400000 05 b800400000 ffe0")  # mov byte [4001h],5 / mov eax,4000h / jmp eax
    rig.host.run()
    rig.vcpu.set_eip(0x4000)
    rig.vcpu.run()
    rig.vcpu.set_eip(_CODE)
    rig.vcpu.run()
    return _expect(5, rig.vcpu.gpr(EAX) & 0xFF)
