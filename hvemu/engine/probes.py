"""What hvemu builds on, probe by probe: each runs a few instructions on a fresh engine and says what happened.

``hvemu doctor`` prints them and the tests assert them, so that an engine that behaves differently is noticed before a
guest is. A probe returns None when all is as expected, or a sentence.
"""

import contextlib
import struct
from collections.abc import Callable
from typing import NamedTuple

from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    ATTRIBUTE_LONG,
    CS,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    ESI,
    ESP,
    FLAG_IF,
    FLAT_CODE,
    FLAT_DATA,
    FS,
    GS,
    R11,
    SS,
    Segment,
    TableRegister,
)
from hvemu.engine import binding, layout, svm_probes
from hvemu.engine.block_clock import InstructionCounter
from hvemu.engine.vcpu import EngineError, Vcpu
from hvemu.memory.machine_memory import MachineMemory
from hvemu.vocabulary.paging import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PKE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)

CODE = 0x1000
_MMIO = 0x0010_0000


class Probe(NamedTuple):
    """One fact: its name, what hvemu does with it, and the experiment."""

    name: str
    used_for: str
    run: Callable[[], str | None]


class Rig:
    """An engine with one MiB of RAM in flat 32-bit protected mode."""

    def __init__(self, *, native_clock: bool | None = None, model: str = "penryn") -> None:
        self.memory = MachineMemory(_MMIO)
        self.vcpu = Vcpu(model, native_clock=native_clock)
        self.vcpu.map_ram(0, _MMIO, self.memory.host_address)
        self.control(CR0_PE | CR0_ET)
        self.ring(0)
        self.vcpu.set_eflags(2)
        self.vcpu.set_gpr(ESP, 0x8000)

    def control(self, cr0: int, cr3: int = 0, cr4: int = 0, efer: int = 0) -> None:
        """Control registers."""
        self.vcpu.load_control(cr0, cr3, cr4, efer)

    def ring(self, level: int) -> None:
        """Flat segments of a privilege level."""
        bits = level << 13
        for index in range(6):
            flat = FLAT_CODE if index == CS else FLAT_DATA
            self.vcpu.set_segment(
                index, flat._replace(selector=flat.selector | level, attributes=flat.attributes | bits)
            )

    def code(self, text: str, at: int = CODE) -> None:
        """Machine code as hexadecimal digits."""
        data = bytes.fromhex(text.replace(" ", ""))
        self.memory.view[at : at + len(data)] = data

    def go(self, eip: int = CODE) -> None:
        """Run until something stops the engine."""
        self.vcpu.set_eip(eip)
        self.vcpu.run()


class CompatibilityRig(Rig):
    """The same in compatibility mode, ring 1: a 64-bit CPU's 4-level tables under 32-bit code, as mode ``trap`` runs.

    The first MiB is mapped at its place. ``HIGH``, which is out of reach for the code, begins with the GDT; ``map``
    changes a page of the low MiB, of ``HIGH``, or of the two around 4 GiB.
    """

    HIGH = 1 << 39
    BORDER = 1 << 32
    PDPT = 0
    """Where the entries of the first 512 GiB are."""
    _TABLES = 0x10000
    _GDT = 0x20000

    def __init__(self, model: str = "penryn") -> None:
        super().__init__(model=model)
        entry, view, free = struct.Struct("<Q"), self.memory.view, self._TABLES + 0x1000
        self._leaves = {}
        for area in (0, self.HIGH, self.BORDER - 0x20_0000, self.BORDER):
            table = self._TABLES
            for shift in (39, 30, 21):
                at = table + (area >> shift & 511) * 8
                if not self.PDPT and shift == 30:
                    self.PDPT = table
                if not entry.unpack_from(view, at)[0]:
                    entry.pack_into(view, at, free | 7)
                    free += 0x1000
                table = entry.unpack_from(view, at)[0] & ~0xFFF
            self._leaves[area >> 21] = table
        for page in range(0, _MMIO, 0x1000):
            self.map(page, page)
        self.map(self.HIGH, self._GDT, no_execute=True)
        descriptors = 0, 0, 0x00CF_BB00_0000_FFFF, 0x00CF_B300_0000_FFFF, 0x00CF_7B00_0000_FFFF, 0x00CF_F300_0000_FFFF
        struct.pack_into("<6Q", view, self._GDT, *descriptors)  # ring 1 code and data, ring 3 absent code and data
        high = self.HIGH
        self.vcpu.set_tables(
            TableRegister(high, 0x2F),
            TableRegister(high, 0),
            Segment(0, 0, 0, 0),
            Segment(0x58, high, 0x67, 0x8900),
        )
        cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        self.control(cr0, self._TABLES, CR4_PAE, EFER_LME | EFER_LMA | EFER_NXE)
        self.ring(1)
        self.vcpu.set_eflags(2 | FLAG_IF)
        self.faults: list[tuple[int, int, int]] = []
        self.vcpu.on_interrupt(self._fault)

    def _fault(self, vector: int) -> None:
        self.faults.append((vector, self.vcpu.eip(), self.vcpu.error_code()))
        self.vcpu.clear_exception()
        self.vcpu.stop()

    def map(self, linear: int, physical: int, *, no_execute: bool = False, key: int = 0) -> None:
        """Map a page and forget what was there."""
        bits = 0x67 | (1 << 63 if no_execute else 0) | key << 59
        struct.pack_into("<Q", self.memory.view, self._leaves[linear >> 21] + (linear >> 12 & 511) * 8, physical | bits)
        self.vcpu.flush_tlb()


class LongRig(CompatibilityRig):
    """The same in 64-bit code, at any ring."""

    def __init__(self, model: str = "penryn") -> None:
        super().__init__(model)
        descriptors = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF
        struct.pack_into("<4Q", self.memory.view, self._GDT + 0x10, *descriptors)
        self.ring(0)

    def ring(self, level: int) -> None:
        """64-bit code, flat data."""
        super().ring(level)
        code = self.vcpu.segment(CS)
        self.vcpu.set_segment(CS, code._replace(attributes=code.attributes & ~ATTRIBUTE_BIG | ATTRIBUTE_LONG))


def _expect(expected: object, actual: object) -> str | None:
    return None if expected == actual else f"expected {expected}, found {actual}"


def _privileged_faults() -> str | None:
    rig, seen = Rig(), []
    rig.ring(3)

    def fault(vector: int) -> None:
        seen.append((vector, rig.vcpu.eip(), rig.vcpu.error_code()))
        rig.vcpu.stop()

    rig.vcpu.on_interrupt(fault)
    rig.code("90 fa")  # nop / cli
    rig.go()
    return _expect([(13, CODE + 1, 0)], seen)


def _software_interrupt() -> str | None:
    rig, seen = Rig(), []

    def trap(vector: int) -> None:
        seen.append((vector, rig.vcpu.eip(), rig.vcpu.is_software_interrupt()))
        rig.vcpu.stop()

    rig.vcpu.on_interrupt(trap)
    rig.code("cd80")
    rig.go()
    return _expect([(0x80, CODE + 2, True)], seen)


def _invalid_instruction() -> str | None:
    rig, seen = Rig(), []

    def invalid() -> bool:
        seen.append(rig.vcpu.eip())
        rig.vcpu.set_eip(CODE + 4)
        return True

    rig.vcpu.on_invalid_instruction(invalid)
    rig.code("90 0f0b 90 f4")  # nop / ud2 / nop / hlt
    rig.go()
    return _expect(([CODE + 1], CODE + 5), (seen, rig.vcpu.eip()))


def _exception_state_is_writable() -> str | None:
    rig = Rig()

    def divide(_vector: int) -> None:
        rig.vcpu.set_eip(CODE + 4)
        rig.ring(3)
        rig.vcpu.clear_exception()

    rig.vcpu.on_interrupt(divide)
    rig.code("31c9 f7f1 8cc8 90 90")  # xor ecx,ecx / div ecx / mov eax,cs / nop
    rig.code("0f0b", CODE + 8)
    rig.vcpu.on_invalid_instruction(lambda: False)
    with contextlib.suppress(EngineError):
        rig.go()
    return _expect(3, rig.vcpu.gpr(EAX) & 3)


def _port_is_exact() -> str | None:
    rig, seen = Rig(), []

    def out(port: int, size: int, value: int) -> None:
        seen.append((port, size, value, rig.vcpu.eip(), rig.vcpu.eflags() & 0x8D5))

    rig.vcpu.on_port_out(out)
    rig.code("b801000000 48 e680 f4")  # mov eax,1 / dec eax / out 80h,al / hlt
    rig.go()
    return _expect([(0x80, 1, 0, CODE + 6, 0x44)], seen)


def _mmio_is_exact() -> str | None:
    rig, seen = Rig(), []

    def read(address: int, size: int) -> int:
        seen.append((address, size, rig.vcpu.eip(), rig.vcpu.eflags() & 1))
        return 0x1234_5678

    rig.vcpu.map_mmio(_MMIO, 0x1000, read, lambda *_: None)
    rig.vcpu.allow_mmio()
    rig.code("83f808 43 a120001000 f4")  # cmp eax,8 / inc ebx / mov eax,[100020h] / hlt
    rig.go()
    return _expect(([(_MMIO + 0x20, 4, CODE + 4, 1)], 0x1234_5678), (seen, rig.vcpu.gpr(EAX)))


def _rdtsc_is_replaced() -> str | None:
    rig = Rig()

    def tsc() -> None:
        rig.vcpu.set_gpr(EAX, 7)
        rig.vcpu.set_gpr(EDX, 9)

    rig.vcpu.on_instruction("RDTSC", tsc)
    rig.code("0f31 f4")
    rig.go()
    return _expect((7, 9), (rig.vcpu.gpr(EAX), rig.vcpu.gpr(EDX)))


def _syscall_adds_its_length() -> str | None:
    rig, seen = LongRig(), []

    def enter() -> None:
        seen.append(rig.vcpu.eip())
        rig.vcpu.set_eip(CODE + 0x10 * len(seen) - 2 - len(seen))

    rig.vcpu.on_instruction("SYSCALL", enter)
    rig.code("48 0f05 f4")
    rig.code("48 66 0f05 f4", CODE + 0x10)
    rig.code("90 f4", CODE + 0x20)
    rig.go()
    return _expect(([CODE, CODE + 0x10], CODE + 0x22), (seen, rig.vcpu.eip()))


def _wide_addresses() -> str | None:
    rig = LongRig()
    rig.vcpu.clock.install()
    rig.vcpu.clock.load(1 << 20)
    rig.map(rig.HIGH + 0x1000, CODE)
    rig.code("48a1 0080000000 7f0000")  # mov rax, [0x7f0000008000]
    rig.go(rig.HIGH + 0x1000)
    found = rig.vcpu.eip(), rig.vcpu.cr2(), rig.vcpu.clock.block()[0], rig.faults[0][0]
    return _expect((rig.HIGH + 0x1000, 0x7F00_0000_8000, rig.HIGH + 0x1000, 14), found)


def _canonical_addresses() -> str | None:
    rig = LongRig()
    rig.vcpu.set_long_gpr(ESP, 1 << 63)
    rig.vcpu.set_long_gpr(EBX, 1 << 47)
    for code in ("8a03", "50", "ffe3"):  # mov al, [rbx] / push rax / jmp rbx
        rig.code(code)
        rig.vcpu.forget_code()
        rig.go()
    return _expect([(13, CODE, 0), (13, CODE, 0), (13, 1 << 47, 0)], rig.faults)


def _gibibyte_pages() -> str | None:
    rig = LongRig("penryn")
    struct.pack_into("<Q", rig.memory.view, rig.PDPT + 8 * 5, 0x87)
    rig.memory.view[0x8000] = 0x5A
    rig.code("a0 0080004001000000 f4")  # mov al, [0x140008000]
    rig.go()
    return _expect((0x5A, []), (rig.vcpu.gpr(EAX) & 0xFF, rig.faults))


def _swapgs_and_sysret() -> str | None:
    rig = LongRig()
    vcpu = rig.vcpu
    vcpu.set_kernel_gs_base(0x1234_5678_9000)
    vcpu.write_msr(0xC000_0081, 0x20 << 48)
    vcpu.load_control(*vcpu.paging()[:3], vcpu.paging().efer | EFER_SCE)
    vcpu.set_long_gpr(ECX, CODE + 0x10)
    vcpu.set_long_gpr(R11, 2)
    rig.code("0f01f8 480f07")
    rig.code("f4", CODE + 0x10)
    rig.go()
    selectors = vcpu.segment(CS).selector, vcpu.segment(SS).selector, vcpu.segment(GS).base
    return _expect((0x33, 0x2B, 0x1234_5678_9000, (13, CODE + 0x10, 0)), (*selectors, rig.faults[0]))


def _sysenter_adds_two() -> str | None:
    rig = Rig()
    rig.vcpu.on_instruction("SYSENTER", lambda: rig.vcpu.set_eip(CODE + 0x10 - 2))
    rig.code("0f34")
    rig.code("f4", CODE + 0x10)
    rig.go()
    return _expect(CODE + 0x11, rig.vcpu.eip())


def _block_clock(native: bool | None) -> str | None:
    rig = Rig(native_clock=native)
    rig.vcpu.clock.install()
    rig.code("b964000000 49 75fd f4")  # mov ecx,100 / again: dec ecx / jnz again / hlt
    rig.vcpu.clock.load(1000)
    rig.go()
    whole = rig.vcpu.clock.consumed()
    rig.vcpu.clock.load(50)
    rig.go()
    left = rig.vcpu.clock.remaining()
    refused = rig.vcpu.linear_eip() == rig.vcpu.clock.block()[0]
    return _expect((5 + 3 * 100 + 1, True, True), (whole, left < 0, refused))


def _interrupt_window() -> str | None:
    rig = Rig()
    rig.vcpu.clock.install()
    rig.code("eb00 eb00 fb 90 90 f4")  # jmp / jmp / sti / nop / nop / hlt
    rig.vcpu.clock.load(1000, window=True)
    rig.go()
    return _expect((CODE + 5, True), (rig.vcpu.eip(), rig.vcpu.interrupt_shadow()))


def _exits_split_blocks() -> str | None:
    rig = Rig()
    rig.code("40 40 40 40 f4")
    rig.go()
    rig.vcpu.forget_code_at(CODE, 5)
    rig.vcpu.set_exits([CODE + 2])
    rig.vcpu.set_gpr(EAX, 0)
    rig.go()
    return _expect((2, CODE + 2), (rig.vcpu.gpr(EAX), rig.vcpu.eip()))


def _translation_is_announced() -> str | None:
    """Every new block but the first after a start is announced before it runs."""
    rig, seen = Rig(), []
    rig.vcpu.on_translation(lambda address, size: seen.append((address, size, rig.vcpu.gpr(EAX))))
    rig.code("eb00 40 eb00 40 f4")  # jmp / inc eax / jmp / inc eax / hlt
    rig.go()
    return _expect([(CODE + 2, 3, 0), (CODE + 5, 2, 1)], seen[-2:])


def _intercept_is_exact() -> str | None:
    rig, seen = Rig(), []

    def site(address: int) -> None:
        seen.append((address, rig.vcpu.eip(), rig.vcpu.gpr(EAX)))
        rig.vcpu.stop()

    rig.code("b805000000 40 0f32 40 f4")  # mov eax,5 / inc eax / rdmsr
    rig.vcpu.on_execute(CODE + 6, site)
    rig.go()
    return _expect(([(CODE + 6, CODE + 6, 6)], CODE + 6), (seen, rig.vcpu.eip()))


def _instructions_are_counted() -> str | None:
    rig = Rig()
    counter = InstructionCounter(rig.vcpu.handle, rig.vcpu.eflags_address)
    rig.code("b964000000 49 75fd f4")
    rig.go()
    whole = counter.count()
    counter.load(10)
    rig.go()
    return _expect((202, 212, True), (whole, counter.count(), counter.exhausted()))


def _limits_are_not_enforced() -> str | None:
    rig = Rig()
    rig.vcpu.on_interrupt(lambda _vector: rig.vcpu.stop())
    rig.vcpu.set_segment(3, Segment(0x18, 0, 0xF, 0x00409300))
    rig.code("a100200000 f4")
    rig.go()
    return _expect(CODE + 6, rig.vcpu.eip())


def _cmpxchg8b_spoils_flags() -> str | None:
    rig = Rig()
    rig.vcpu.set_gpr(EBX, 0xC000_0000)
    rig.vcpu.set_gpr(ESI, 0x2000)
    rig.vcpu.set_gpr(EDI, 0x2000)
    rig.code("01f3 0fc70f f4")  # add ebx,esi / cmpxchg8b [edi] / hlt
    rig.go()
    return _expect(True, rig.vcpu.flags_spoiled())


def _stores_reach_translated_code() -> str | None:
    rig = Rig()
    # mov byte [patch+1],5 / jmp patch / patch: mov al,1 / hlt; twice, so that it has been translated
    rig.code("b001 f4", 0x3000)
    rig.go(0x3000)
    rig.code("c60501300000 05 b800300000 ffe0")
    rig.go()
    return _expect(5, rig.vcpu.gpr(EAX) & 0xFF)


def _self_patching_block_restarts(native: bool | None) -> str | None:
    """A block that stores into itself starts again at the store; its bytes are charged once all the same."""
    rig = Rig(native_clock=native)
    rig.vcpu.clock.install()
    rig.code("40 c60509100000 05 b000 f4")  # inc eax / mov byte [the next instruction's operand],5 / mov al,0 / hlt
    rig.vcpu.clock.load(1000)
    rig.go()
    return _expect((11, 5), (rig.vcpu.clock.consumed(), rig.vcpu.gpr(EAX) & 0xFF))


def _nx_alias() -> str | None:
    """A store through a clean NX mapping is missed; flushing the TLB makes the next one seen."""
    rig = Rig()
    entry, view = struct.Struct("<Q"), rig.memory.view
    directory, table = 0x11000, 0x12000
    entry.pack_into(view, 0x10000, directory | 1)
    entry.pack_into(view, directory, table | 3)
    for page in range(256):
        entry.pack_into(view, table + 8 * page, page << 12 | 3)
    entry.pack_into(view, table + 8 * 0x80, 0x3000 | 3 | 1 << 63)  # 80000h is 3000h, not executable
    rig.control(CR0_PE | CR0_ET | CR0_PG, 0x10000, CR4_PAE, EFER_NXE)
    rig.code("b001 f4", 0x3000)
    rig.code("c60501000800 05 f4")  # mov byte [80001h],5 / hlt
    rig.code("c60501000800 06 f4", CODE + 0x10)
    rig.go(CODE)
    rig.go(0x3000)
    first = rig.vcpu.gpr(EAX) & 0xFF
    rig.vcpu.flush_tlb()
    rig.go(CODE + 0x10)
    rig.go(0x3000)
    return _expect((5, 6), (first, rig.vcpu.gpr(EAX) & 0xFF))


def _segment_loads_are_real() -> str | None:
    rig = Rig()
    view = rig.memory.view
    view[0x2000:0x2010] = bytes(8) + (0x0040_9300_0000_FFFF | 0x5000 << 16).to_bytes(8, "little")
    rig.vcpu.set_tables(
        TableRegister(0x2000, 15), TableRegister(0, 0), Segment(0, 0, 0, 0), Segment(0, 0, 0x67, 0x8900)
    )
    rig.code("b908000000 8ee1 64a100000000 f4")  # mov ecx,8 / mov fs,cx / mov eax,fs:[0] / hlt
    view[0x5000:0x5004] = b"hvem"
    rig.go()
    return _expect(int.from_bytes(b"hvem", "little"), rig.vcpu.gpr(EAX))


def _real_mode() -> str | None:
    rig = Rig()
    rig.control(CR0_ET)
    for index in range(6):
        rig.vcpu.set_segment(index, Segment(0x100, 0x1000, 0xFFFF, 0x9B00 if index == CS else 0x9300))
    rig.code("b83412 8cdb 8ed3 f4", 0x1000)  # mov ax,1234h / mov bx,ds / mov ss,bx
    rig.go(0)
    return _expect(
        (0x1234, 0x100, 0x1000), (rig.vcpu.gpr(EAX) & 0xFFFF, rig.vcpu.gpr(EBX) & 0xFFFF, rig.vcpu.segment(SS).base)
    )


def _flags_survive_a_start() -> str | None:
    """Flags set while stopped, and flags restored from inside a hook, are there when the engine starts."""
    rig, seen = Rig(), []
    rig.code("9c 58 f4")  # pushf / pop eax / hlt
    rig.vcpu.set_eflags(0x8D5 | 0x400 | 2)
    rig.go()
    first = rig.vcpu.gpr(EAX) & 0xED5
    rig.vcpu.on_port_out(lambda *_: seen.append(rig.vcpu.save()))
    rig.code("fd 31c0 e680 40 f4", 0x1100)  # std / xor eax,eax / out 80h,al / inc eax / hlt
    rig.vcpu.set_eflags(2)
    rig.go(0x1100)
    rig.vcpu.restore(seen[0])
    rig.go()
    return _expect((0x8D5 | 0x400, 0x444), (first, rig.vcpu.gpr(EAX) & 0xED5))


def _models_are_enforced() -> str | None:
    seen = []
    for model in ("conroe", "penryn"):
        rig = Rig(model=model)
        rig.control(CR0_PE | CR0_ET, cr4=1 << 9)

        def invalid() -> bool:
            seen.append("#UD")
            return False

        rig.vcpu.on_invalid_instruction(invalid)
        rig.code("660f3840c0 f4")  # pmulld xmm0,xmm0
        try:
            rig.go()
            seen.append("runs")
        except EngineError:
            pass
    return _expect(["#UD", "runs"], seen)


def _wild_jump_ends() -> str | None:
    rig = Rig()
    rig.vcpu.map_mmio(_MMIO, 0x1000, lambda *_: 0, lambda *_: None)
    rig.vcpu.allow_mmio()
    rig.code("b800001000 ffe0")
    try:
        rig.go()
    except EngineError as error:
        return _expect(binding.constants.UC_ERR_FETCH_PROT, error.number)
    return "the engine went on without memory"


def _privileged_faults_at_ring_1() -> str | None:
    rig = CompatibilityRig()
    # cli / sti / hlt / clts / mov eax, cr0 / mov cr3, eax / mov dr7, eax / lgdt [eax] / invlpg [eax] / rdmsr / wbinvd
    codes = "fa fb f4 0f06 0f20c0 0f22d8 0f23f8 0f0110 0f0138 0f32 0f09".split()
    for number, code in enumerate(codes):
        rig.code(code, CODE + 16 * number)
        rig.go(CODE + 16 * number)
    return _expect([(13, CODE + 16 * number, 0) for number in range(len(codes))], rig.faults)


def _sensitive_is_silent() -> str | None:
    """They show the hypervisor's TR and IF, and POPF does not change IF; the only fault is that of HLT at the end."""
    rig = CompatibilityRig()
    # str eax / pushf / pop ebx / push 2 / popf / pushf / pop edx / mov esi, cs / sgdt [2000h] / smsw edi / hlt
    rig.code("0f00c8 9c 5b 6a02 9d 9c 5a 8cce 0f010500200000 0f01e7 f4")
    rig.go()
    vcpu = rig.vcpu
    saw = vcpu.gpr(EAX), vcpu.gpr(EBX) & FLAG_IF, vcpu.gpr(EDX) & FLAG_IF, vcpu.gpr(ESI) & 3
    return _expect((0x58, FLAG_IF, FLAG_IF, 1, [(13, CODE + 22, 0)]), (*saw, rig.faults))


def _return_to_absent_code() -> str | None:
    rig = CompatibilityRig()
    rig.code("90 cf")  # nop / iret
    struct.pack_into("<5I", rig.memory.view, 0x7000, 0x3000, 0x23, 2, 0x6000, 0x2B)
    rig.vcpu.set_gpr(ESP, 0x7000)
    rig.go()
    return _expect(([(11, CODE + 1, 0x20)], 0x7000), (rig.faults, rig.vcpu.gpr(ESP)))


def _addresses_wrap() -> str | None:
    """A sum is taken modulo 4 GiB; an access across the border goes on behind it, where address 0 must be mapped."""
    rig = CompatibilityRig()
    rig.map(rig.BORDER - 0x1000, 0x5000)
    rig.map(rig.BORDER, 0)
    rig.memory.view[0:4], rig.memory.view[0x5FFC:0x6000] = b"wrap", b"edge"
    rig.vcpu.set_segment(FS, FLAT_DATA._replace(base=0xFFFF_F000, attributes=FLAT_DATA.attributes | 1 << 13))
    rig.code("64a100100000 8b1dfeffffff f4")  # mov eax, fs:[1000h] / mov ebx, [FFFFFFFEh] / hlt
    rig.go()
    saw = [rig.vcpu.gpr(index).to_bytes(4, "little") for index in (EAX, EBX)]
    return _expect([b"wrap", b"gewr"], saw)


def _code_is_forgotten_through_an_alias() -> str | None:
    """Translated code outlives a change made behind the engine's back until any address of its frame is named."""
    rig, seen = CompatibilityRig(), []
    rig.code("b001 f4", 0x3000)  # mov al, 1 / hlt
    for step in range(3):
        rig.go(0x3000)
        seen.append(rig.vcpu.gpr(EAX) & 0xFF)
        if step == 0:
            rig.memory.view[0x3001] = 5
        else:
            rig.map(rig.HIGH + 0x1000, 0x3000)
            rig.vcpu.forget_code_at(rig.HIGH + 0x1000, 0x1000)
    return _expect([1, 1, 5], seen)


def _keys_make_pages_execute_only() -> str | None:
    """A page whose protection key denies access runs, and can be neither read nor written; PKRU is where we think."""
    rig = CompatibilityRig()
    rig.vcpu.words[layout.WORD_CR4] |= CR4_PKE
    rig.vcpu.words[layout.WORD_PKRU] = 0b1100
    rig.map(0x3000, 0x3000, key=1)
    rig.code("b878563412 a100300000", 0x3000)  # mov eax, 12345678h / mov eax, [3000h]
    rig.go(0x3000)
    rig.code("a300300000")  # mov [3000h], eax
    rig.go()
    return _expect(([(14, 0x3005, 0x21), (14, CODE, 0x23)], 0x1234_5678), (rig.faults, rig.vcpu.gpr(EAX)))


def _blocks_of_a_cache_are_weighed() -> str | None:
    """A block of the translation cache is charged by the table, others by their size, natively and in Python."""
    seen = []
    for native in (None, False):
        rig = Rig(native_clock=native)
        weights = memoryview(bytearray(4 * 17)).cast("I")
        for offset in range(1, 17):
            weights[offset] = 7
        rig.vcpu.clock.install()
        rig.vcpu.clock.watch_cache(0x3000, 16, weights, 0)
        rig.code("90 eb04", 0x3000)  # nop / jmp 3007h
        rig.code("90 f4", 0x3007)  # nop / hlt
        rig.vcpu.clock.load(1000)
        rig.go(0x3000)
        seen.append(rig.vcpu.clock.consumed())
    return _expect([7, 7], seen)


PROBES = (
    Probe("privileged instruction at CPL 3", "real #GP, EIP at the instruction", _privileged_faults),
    Probe("INT n", "delivery by hvemu, EIP after the instruction", _software_interrupt),
    Probe("invalid instruction", "#UD, EIP at the instruction", _invalid_instruction),
    Probe("registers written inside a hook", "ring switch by editing segment caches", _exception_state_is_writable),
    Probe("port hook", "EIP and flags are exact inside", _port_is_exact),
    Probe("MMIO through protected ranges", "EIP and flags are exact inside", _mmio_is_exact),
    Probe("RDTSC hook", "virtual time-stamp counter", _rdtsc_is_replaced),
    Probe("SYSCALL hook", "the engine adds the instruction's length to RIP afterwards", _syscall_adds_its_length),
    Probe("64-bit addresses", "RIP, CR2 and the block clock have 64 bits", _wide_addresses),
    Probe("Canonical addresses", "an address that is not is #GP(0), also on the stack", _canonical_addresses),
    Probe("1 GiB pages", "they work on models whose CPUID does not show them", _gibibyte_pages),
    Probe("SWAPGS and SYSRET", "native, on MSRs that are given to the engine", _swapgs_and_sysret),
    Probe("SYSENTER hook", "the engine adds two to EIP afterwards", _sysenter_adds_two),
    Probe("block clock", "position, by the native callback where there is one", lambda: _block_clock(None)),
    Probe("block clock in Python", "the portable fallback gives the same", lambda: _block_clock(False)),
    Probe("interrupt window", "stops where IF has become 1, shadow visible", _interrupt_window),
    Probe("exits inside a block", "stopping at an exact position", _exits_split_blocks),
    Probe("translation announced", "finding RDMSR, MOV DR and LTR before they run", _translation_is_announced),
    Probe("intercept before an instruction", "MSRs, debug registers", _intercept_is_exact),
    Probe("instruction counter", "--max-instructions, exact counts", _instructions_are_counted),
    Probe("segment limits", "are not enforced: declared in the README", _limits_are_not_enforced),
    Probe("CMPXCHG8B", "spoils EFLAGS at a stop: repaired", _cmpxchg8b_spoils_flags),
    Probe("self-modifying code", "stores reach translated code", _stores_reach_translated_code),
    Probe("block that patches itself", "restarts at the store: refunded", lambda: _self_patching_block_restarts(None)),
    Probe("the same, counted in Python", "is refunded too", lambda: _self_patching_block_restarts(False)),
    Probe("code written through an NX alias", "seen after a TLB flush", _nx_alias),
    Probe("segment loads", "descriptors are read from guest memory", _segment_loads_are_real),
    Probe("real mode", "runs on the same engine", _real_mode),
    Probe("flags across a stop", "set and restored flags are there at the start", _flags_survive_a_start),
    Probe("CPU models", "an instruction the model lacks is #UD", _models_are_enforced),
    Probe("jump to an address without memory", "ends the guest with a sentence", _wild_jump_ends),
    Probe("privileged at CPL 1, compatibility mode", "trap: #GP, emulated", _privileged_faults_at_ring_1),
    Probe("sensitive at CPL 1", "trap: they are silent, and leak", _sensitive_is_silent),
    Probe("IRET to absent code, GDT above 4 GiB", "trap: every way to user code faults", _return_to_absent_code),
    Probe("addresses in compatibility mode", "trap: wrap at 4 GiB, if address 0 is mapped there", _addresses_wrap),
    Probe("code forgotten by another address", "trap: stores to code frames", _code_is_forgotten_through_an_alias),
    Probe("protection keys", "bt: the cache runs, but cannot be read", _keys_make_pages_execute_only),
    Probe("blocks of a translation cache", "bt: charged by guest bytes", _blocks_of_a_cache_are_weighed),
    Probe("VMRUN and #VMEXIT", "svm: the guest's own ring 0, exits handled in the hook", svm_probes.exit_is_exact),
    Probe("EVENTINJ", "svm: the CPU delivers external interrupts", svm_probes.interrupt_is_injected),
    Probe("nested page fault", "svm: its address is in the VMCB", svm_probes.nested_fault_has_its_address),
    Probe("intercepts in the CPU state", "svm: changed without VMRUN", svm_probes.intercepts_can_be_changed),
    Probe("stores to code under nested paging", "svm: reach translated code", svm_probes.stores_to_code_are_seen),
)
