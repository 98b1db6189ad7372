"""Delivery of exceptions and interrupts through the guest's IDT, as SDM vol. 3A chapter 6 describes it.

Called by every mode, because the engine delivers nothing. Works on a CpuPort and guest memory alone. Interrupt and
trap gates of 16 and 32 bits, the inner-ring stack from the TSS, error codes, privilege checks of INT n, escalation to
#DF and triple fault (table 6-5), real mode, and leaving virtual-8086 mode; in long mode, gates of 16 bytes and the
interrupt stack table (6.14). Not emulated: task gates, which end the guest with a sentence, limits of stacks and of
code (the engine checks none either), and shadow stacks.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

from hvemu.cpu.linear import LinearFault, probe_write, read_linear, read_linear_u64, write_linear
from hvemu.cpu.state import (
    ATTRIBUTE_BIG,
    ATTRIBUTE_CODE,
    ATTRIBUTE_CONFORMING,
    ATTRIBUTE_DPL_SHIFT,
    ATTRIBUTE_LONG,
    ATTRIBUTE_PRESENT,
    ATTRIBUTE_S,
    ATTRIBUTE_WRITABLE,
    CS,
    DS,
    ES,
    ESP,
    FLAG_AC,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    SS,
    CpuPort,
    Segment,
    SystemTables,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.paging import CR0_PE, EFER_LMA, PagingRegisters, canonical

DIVIDE_ERROR, DEBUG, NMI, BREAKPOINT, OVERFLOW, BOUND, INVALID_OPCODE, DEVICE_NOT_AVAILABLE, DOUBLE_FAULT = range(9)
INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 10, 11, 12, 13, 14
CONTRIBUTORY = frozenset({DIVIDE_ERROR, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION})
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
_TASK_GATE = 5
_NOT_FAULTS = frozenset({DEBUG, NMI, BREAKPOINT, OVERFLOW, DOUBLE_FAULT})
_GATES = frozenset({_TASK_GATE, 6, 7, 14, 15})
_CODE = ATTRIBUTE_S | ATTRIBUTE_CODE
_KEPT_BY_TRAP_GATE = ~(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM)
_KEPT_BY_INTERRUPT_GATE = _KEPT_BY_TRAP_GATE & ~FLAG_IF
_STRUCTS = [struct.Struct(f"<{n}I") for n in range(8)]
_STRUCTS16 = [struct.Struct(f"<{n}H") for n in range(8)]
_LONG_FRAMES = {5: struct.Struct("<5Q"), 6: struct.Struct("<6Q")}


class Event(NamedTuple):
    """Something to deliver. ``software`` marks INT n, INT3 and INTO, which check the gate's DPL."""

    vector: int
    error_code: int | None = None
    software: bool = False
    external: bool = False
    address: int | None = None
    """Linear address of a page fault; goes to CR2."""
    start: int | None = None
    """EIP of the INT instruction itself, for ``software``: where a failed delivery faults."""


class TripleFault(NamedTuple):
    """Delivery failed for good: the events in the order they happened."""

    events: tuple[Event, ...]


class Escalated(NamedTuple):
    """Another event was delivered than the one asked for: all of them, in order."""

    events: tuple[Event, ...]


class Unsupported(NamedTuple):
    """The guest wants something hvemu does not emulate; a sentence."""

    reason: str


class DeliveryFault(Exception):
    """A check failed while an event or a call through a gate went inward; ``event`` is the fault."""

    def __init__(self, vector: int, error_code: int) -> None:
        self.event = Event(vector, error_code)


class _TaskGate(Exception):
    pass


def fault_event(problem: LinearFault) -> Event:
    """What an access that the tables forbid is to the guest; an address that is not canonical is #GP(0)."""
    address, error_code = problem.fault
    return Event(PAGE_FAULT, error_code, address=address) if problem.canonical else Event(GENERAL_PROTECTION, 0)


def deliver(cpu: CpuPort, memory: GuestPhysicalMemory, event: Event) -> TripleFault | Unsupported | Escalated | None:
    """Deliver ``event``, escalating as the SDM's table 6-5 says. None means the CPU stands at its handler."""
    history = [event]
    while True:
        if event.address is not None:
            cpu.set_cr2(event.address)
        try:
            paging = cpu.paging()
            if paging.efer & EFER_LMA:
                _through_long_gate(cpu, memory, paging, event)
            elif paging.cr0 & CR0_PE:
                _through_gate(cpu, memory, paging, event)
            else:
                _through_ivt(cpu, memory, paging, event)
            return Escalated(tuple(history)) if len(history) > 1 else None
        except DeliveryFault as fault:
            second = fault.event
        except LinearFault as fault:
            second = fault_event(fault)
            if second.address is not None:
                cpu.set_cr2(second.address)  # even if it becomes #DF or worse (6.15, interrupt 14, footnote)
        except _TaskGate:
            if event.start is not None:
                cpu.set_eip(event.start)
            return Unsupported(f"vector {event.vector} goes through a task gate, which hvemu does not emulate")
        if event.start is not None:
            cpu.set_eip(event.start)
        history.append(second)
        if event.vector == DOUBLE_FAULT and not event.software and not event.external:
            return TripleFault(tuple(history))
        event = _combine(event, second)
        if event is not second:
            history[-1] = second
            history.append(event)


def _combine(first: Event, second: Event) -> Event:
    if first.software or first.external:
        return second
    first_contributes = first.vector in CONTRIBUTORY
    second_contributes = second.vector in CONTRIBUTORY
    if (first_contributes and second_contributes) or (
        first.vector == PAGE_FAULT and (second_contributes or second.vector == PAGE_FAULT)
    ):
        return Event(DOUBLE_FAULT, 0)
    return second


def _through_ivt(cpu: CpuPort, memory: GuestPhysicalMemory, paging: PagingRegisters, event: Event) -> None:
    tables = cpu.system_tables()
    if event.vector * 4 + 3 > tables.idt_limit:
        raise DeliveryFault(GENERAL_PROTECTION, 0)
    entry = struct.unpack("<HH", read_linear(memory, paging, tables.idt_base + event.vector * 4, 4))
    flags = cpu.eflags()
    stack = cpu.segment(SS)
    old_sp = cpu.gpr(ESP)
    sp = (old_sp - 6) & 0xFFFF
    frame = struct.pack("<HHH", cpu.eip() & 0xFFFF, cpu.segment(CS).selector, flags & 0xFFFF)
    _write_wrapping(memory, paging, stack.base, sp, frame, user=False)
    cpu.set_gpr(ESP, (old_sp & 0xFFFF0000) | sp)
    cpu.set_eflags(flags & ~(FLAG_IF | FLAG_TF | FLAG_RF | FLAG_AC))
    old_cs = cpu.segment(CS)
    cpu.set_segment(CS, Segment(entry[1], entry[1] << 4, old_cs.limit, old_cs.attributes))
    cpu.set_eip(entry[0])


def _through_gate(cpu: CpuPort, memory: GuestPhysicalMemory, paging: PagingRegisters, event: Event) -> None:
    vector, error_code, software = event[:3]
    tables = cpu.system_tables()
    gdt_base, gdt_limit, idt_base, idt_limit = tables[:4]
    external = 0 if software else 1
    if vector * 8 + 7 > idt_limit:
        raise DeliveryFault(GENERAL_PROTECTION, vector * 8 + 2 + external)
    gate = read_linear_u64(memory, paging, idt_base + vector * 8)
    cpl = cpu.cpl()
    selector = _gate_selector(gate, vector, cpl, software)
    if selector & 4 or (selector & 0xFFF8) + 7 > gdt_limit:
        descriptor = _descriptor(cpu, memory, paging, tables, selector, GENERAL_PROTECTION, external)
    else:
        descriptor = read_linear_u64(memory, paging, gdt_base + (selector & 0xFFF8))
    code, new_cpl, entry, wide, kept = _gate_target(gate, descriptor, cpl, external)
    flags = cpu.eflags()
    esp = cpu.gpr(ESP)
    old_stack = cpu.segment(SS)
    values = [cpu.eip(), cpu.segment(CS).selector, pushed_flags(event, flags)]
    if error_code is not None:
        values.insert(0, error_code)
    if flags & FLAG_VM and new_cpl:
        raise DeliveryFault(GENERAL_PROTECTION, (selector & 0xFFFC) + external)
    if new_cpl < cpl:
        stack, stack_pointer = _inner_stack(cpu, memory, paging, tables, new_cpl, external)
        values += (esp, old_stack.selector)
        if flags & FLAG_VM:
            values += (cpu.segment(index).selector for index in (ES, DS, FS, GS))
    else:
        stack, stack_pointer = old_stack, esp

    frame = _pack(values, wide)
    if stack.attributes & ATTRIBUTE_BIG:
        new_esp = (stack_pointer - len(frame)) & 0xFFFF_FFFF
        write_linear(memory, paging, stack.base + new_esp, frame, user=new_cpl == 3)
    else:
        top = (stack_pointer - len(frame)) & 0xFFFF
        new_esp = (stack_pointer & 0xFFFF0000) | top
        _write_wrapping(memory, paging, stack.base, top, frame, user=new_cpl == 3)

    # Nothing can fail from here on
    if flags & FLAG_VM:
        for index in (ES, DS, FS, GS):
            cpu.set_segment(index, Segment(0, 0, 0, 0))
    cpu.set_eflags(flags & kept)
    cpu.set_gpr(ESP, new_esp)
    cpu.set_eip(entry)
    cpu.set_code_and_stack(code, stack)


def _through_long_gate(cpu: CpuPort, memory: GuestPhysicalMemory, paging: PagingRegisters, event: Event) -> None:
    """SDM vol. 3A, 6.14: every gate is a 64-bit one, every frame has SS and RSP."""
    vector, error_code, software = event[:3]
    tables = cpu.system_tables()
    external = 0 if software else 1
    if vector * 16 + 15 > tables.idt_limit:
        raise DeliveryFault(GENERAL_PROTECTION, vector * 8 + 2 + external)
    at = tables.idt_base + vector * 16
    gate = read_linear_u64(memory, paging, at)
    upper = read_linear_u64(memory, paging, at + 8) & 0xFFFF_FFFF
    cpl = cpu.cpl()
    selector = _long_gate_selector(gate, vector, cpl, software)
    if selector & 4 or (selector & 0xFFF8) + 7 > tables.gdt_limit:
        descriptor = _descriptor(cpu, memory, paging, tables, selector, GENERAL_PROTECTION, external)
    else:
        descriptor = read_linear_u64(memory, paging, tables.gdt_base + (selector & 0xFFF8))
    code, new_cpl, entry, stack_number, kept = _long_gate_target(gate, upper, descriptor, cpl, external)
    flags, old_pointer, old_stack = cpu.eflags(), cpu.long_gpr(ESP), cpu.segment(SS)
    if not cpu.is_64_bit():
        old_pointer &= 0xFFFF_FFFF
    stack = Segment(new_cpl, 0, 0, new_cpl << ATTRIBUTE_DPL_SHIFT) if new_cpl < cpl else old_stack
    if stack_number:
        pointer = _long_stack(memory, paging, tables, 0x1C + 8 * stack_number, external)
    elif new_cpl < cpl:
        pointer = _long_stack(memory, paging, tables, 4 + 8 * new_cpl, external)
    else:
        pointer = old_pointer
    values = [cpu.eip(), cpu.segment(CS).selector, pushed_flags(event, flags) & ~FLAG_VM, old_pointer]
    values.append(old_stack.selector)
    if error_code is not None:
        values.insert(0, error_code)
    frame = _LONG_FRAMES[len(values)].pack(*values)
    top = (pointer & ~0xF) - len(frame) & 0xFFFF_FFFF_FFFF_FFFF
    if not (canonical(top) and canonical(top + len(frame) - 1)):
        raise DeliveryFault(STACK_FAULT, external)
    try:
        write_linear(memory, paging, top, frame, user=new_cpl == 3)
    except LinearFault:
        for at in range(top + len(frame) - 8, top, -8):  # CR2 is the address of the first push that faults
            probe_write(memory, paging, at, 1, user=new_cpl == 3)
        raise

    # Nothing can fail from here on
    cpu.set_eflags(flags & kept)
    cpu.set_code_and_stack(code, stack)
    cpu.set_long_gpr(ESP, top)
    cpu.set_eip(entry)


def _long_stack(
    memory: GuestPhysicalMemory, paging: PagingRegisters, tables: SystemTables, offset: int, external: int
) -> int:
    """A stack pointer from the 64-bit TSS (SDM vol. 3A, 7.7)."""
    if offset + 7 > tables.task_limit:
        raise DeliveryFault(INVALID_TSS, (tables.task_selector & 0xFFFC) + external)
    pointer = read_linear_u64(memory, paging, tables.task_base + offset)
    if not canonical(pointer):
        raise DeliveryFault(STACK_FAULT, external)
    return pointer


@lru_cache(maxsize=4096)
def _long_gate_selector(gate: int, vector: int, cpl: int, software: bool) -> int:
    """The same as ``_gate_selector``; there are no other gates than 64-bit ones."""
    if (gate >> 40) & 0x1F not in (14, 15):
        raise DeliveryFault(GENERAL_PROTECTION, vector * 8 + (2 if software else 3))
    return _gate_selector(gate, vector, cpl, software)


@lru_cache(maxsize=4096)
def _long_gate_target(
    gate: int, upper: int, descriptor: int, cpl: int, external: int
) -> tuple[Segment, int, int, int, int]:
    """The handler's code segment, its privilege level, its RIP, its stack's number, and the flags it keeps."""
    code, new_cpl, entry, _, kept = _gate_target(gate, descriptor, cpl, external)
    if code.attributes & (ATTRIBUTE_LONG | ATTRIBUTE_BIG) != ATTRIBUTE_LONG:
        raise DeliveryFault(GENERAL_PROTECTION, ((gate >> 16) & 0xFFFC) + external)
    entry |= upper << 32
    if not canonical(entry):
        raise DeliveryFault(GENERAL_PROTECTION, external)
    return code._replace(base=0), new_cpl, entry, (gate >> 32) & 7, kept


def _write_wrapping(
    memory: GuestPhysicalMemory, paging: PagingRegisters, base: int, top: int, frame: bytes, *, user: bool
) -> None:
    """A frame on a 16-bit stack, which wraps at 64 KiB; all of it or nothing."""
    room = 0x1_0000 - top
    if len(frame) > room:
        probe_write(memory, paging, base, len(frame) - room, user=user)
    write_linear(memory, paging, base + top, frame[:room], user=user)
    if len(frame) > room:
        write_linear(memory, paging, base, frame[room:], user=user)


@lru_cache(maxsize=4096)
def _gate_selector(gate: int, vector: int, cpl: int, software: bool) -> int:
    """Check a gate and give its code selector. Gates are few, so the answers are kept; so are the next function's."""
    error = vector * 8 + (2 if software else 3)
    gate_type = (gate >> 40) & 0x1F
    if gate_type not in _GATES:
        raise DeliveryFault(GENERAL_PROTECTION, error)
    if software and (gate >> 45) & 3 < cpl:
        raise DeliveryFault(GENERAL_PROTECTION, error)
    if not (gate >> 47) & 1:
        raise DeliveryFault(NOT_PRESENT, error)
    if gate_type == _TASK_GATE:
        raise _TaskGate
    selector = (gate >> 16) & 0xFFFF
    if not selector & 0xFFFC:
        raise DeliveryFault(GENERAL_PROTECTION, 0 if software else 1)
    return selector


@lru_cache(maxsize=4096)
def _gate_target(gate: int, descriptor: int, cpl: int, external: int) -> tuple[Segment, int, int, bool, int]:
    """The handler's code segment, its privilege level, its EIP, whether the gate is 32-bit, and the flags it keeps."""
    selector = (gate >> 16) & 0xFFFF
    code = segment_from_descriptor(selector, descriptor)
    attributes = code.attributes
    dpl = (attributes >> ATTRIBUTE_DPL_SHIFT) & 3
    if attributes & _CODE != _CODE or dpl > cpl:
        raise DeliveryFault(GENERAL_PROTECTION, (selector & 0xFFFC) + external)
    if not attributes & ATTRIBUTE_PRESENT:
        raise DeliveryFault(NOT_PRESENT, (selector & 0xFFFC) + external)
    new_cpl = cpl if attributes & ATTRIBUTE_CONFORMING else dpl
    gate_type = (gate >> 40) & 0xF
    wide = gate_type >= 14
    entry = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF0000 if wide else 0)
    kept = _KEPT_BY_TRAP_GATE if gate_type & 1 else _KEPT_BY_INTERRUPT_GATE
    return code._replace(selector=(selector & ~3) | new_cpl), new_cpl, entry, wide, kept


def pushed_flags(event: Event, flags: int) -> int:
    """EFLAGS as they are pushed: RF is set for faults, so that an instruction breakpoint does not hit twice."""
    return flags & ~FLAG_RF if event[2] or event[3] or event[0] in _NOT_FAULTS else flags | FLAG_RF


def _pack(values: list[int], wide: bool) -> bytes:
    if wide:
        return _STRUCTS[len(values)].pack(*values) if len(values) < 8 else struct.pack(f"<{len(values)}I", *values)
    return struct.pack(f"<{len(values)}H", *(value & 0xFFFF for value in values))


def _descriptor(
    cpu: CpuPort,
    memory: GuestPhysicalMemory,
    paging: PagingRegisters,
    tables: SystemTables,
    selector: int,
    vector: int,
    external: int,
) -> int:
    """The descriptor a selector names; beyond its table's limit it is ``vector``."""
    if selector & 4:
        _, base, limit, _ = cpu.ldt_segment()
    else:
        base, limit = tables.gdt_base, tables.gdt_limit
    offset = selector & 0xFFF8
    if offset + 7 > limit:
        raise DeliveryFault(vector, (selector & 0xFFFC) + external)
    return read_linear_u64(memory, paging, base + offset)


def inner_stack(cpu: CpuPort, memory: GuestPhysicalMemory, ring: int) -> tuple[Segment, int]:
    """SS and ESP that the TSS holds for ``ring``, for a call through a gate; raises DeliveryFault or LinearFault."""
    return _inner_stack(cpu, memory, cpu.paging(), cpu.system_tables(), ring, 0)


def _inner_stack(
    cpu: CpuPort,
    memory: GuestPhysicalMemory,
    paging: PagingRegisters,
    tables: SystemTables,
    ring: int,
    external: int,
) -> tuple[Segment, int]:
    """SS and ESP for ``ring`` from the TSS (SDM vol. 3A, 6.12.1.1 and 7.2.1)."""
    tss_error = (tables.task_selector & 0xFFFC) + external
    if tables.task_attributes & 0x800:  # 32-bit TSS
        offset = 4 + ring * 8
        if offset + 5 > tables.task_limit:
            raise DeliveryFault(INVALID_TSS, tss_error)
        at = tables.task_base + offset
        if at & 0xFFF > 0xFF8:  # two bytes more than the CPU reads could lie on a page that is not there
            raw = int.from_bytes(read_linear(memory, paging, at, 6), "little")
        else:
            raw = read_linear_u64(memory, paging, at)
        pointer, selector = raw & 0xFFFF_FFFF, (raw >> 32) & 0xFFFF
    else:
        offset = 2 + ring * 4
        if offset + 3 > tables.task_limit:
            raise DeliveryFault(INVALID_TSS, tss_error)
        pointer, selector = struct.unpack("<HH", read_linear(memory, paging, tables.task_base + offset, 4))
    if not selector & 0xFFFC:
        raise DeliveryFault(INVALID_TSS, external)
    descriptor = _descriptor(cpu, memory, paging, tables, selector, INVALID_TSS, external)
    return _inner_segment(selector, descriptor, ring, external), pointer


@lru_cache(maxsize=4096)
def _inner_segment(selector: int, descriptor: int, ring: int, external: int) -> Segment:
    """Check what the TSS names as the stack segment of ``ring``."""
    error = (selector & 0xFFFC) + external
    stack = segment_from_descriptor(selector, descriptor)
    attributes = stack.attributes
    if (
        selector & 3 != ring
        or (attributes >> ATTRIBUTE_DPL_SHIFT) & 3 != ring
        or attributes & (ATTRIBUTE_S | ATTRIBUTE_CODE | ATTRIBUTE_WRITABLE) != ATTRIBUTE_S | ATTRIBUTE_WRITABLE
    ):
        raise DeliveryFault(INVALID_TSS, error)
    if not attributes & ATTRIBUTE_PRESENT:
        raise DeliveryFault(STACK_FAULT, error)
    return stack
