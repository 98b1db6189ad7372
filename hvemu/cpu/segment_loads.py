"""Loading segment registers and transferring control far, with the CPU's checks (SDM vol. 3A, chapter 5; vol. 2).

Works on a CpuPort and guest memory, like event delivery; used where the engine's own loads cannot be, because its
descriptor tables are not the guest's. Not emulated: task gates and task switches.
"""

from typing import NamedTuple, NoReturn

from hvemu.cpu.delivery import GENERAL_PROTECTION, INVALID_TSS, NOT_PRESENT, STACK_FAULT, inner_stack
from hvemu.cpu.linear import probe_write, read_linear, read_linear_u64, write_linear
from hvemu.cpu.state import (
    ATTRIBUTE_ACCESSED,
    ATTRIBUTE_BIG,
    ATTRIBUTE_CODE,
    ATTRIBUTE_CONFORMING,
    ATTRIBUTE_DPL_SHIFT,
    ATTRIBUTE_PRESENT,
    ATTRIBUTE_S,
    ATTRIBUTE_WRITABLE,
    CS,
    DS,
    ES,
    ESP,
    FLAG_AC,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    SS,
    CpuPort,
    Segment,
    segment_from_descriptor,
)
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary.paging import EFER_LMA, LINEAR_MASK

FLAG_ID = 1 << 21
_ARITHMETIC = 0x8D5 | 0x400
_ACCESSED_BIT = ATTRIBUTE_ACCESSED << 32


class SegmentFault(Exception):
    """A load that the CPU refuses: vector and error code."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector, error_code)
        self.vector, self.error_code = vector, error_code


class NotEmulated(Exception):
    """The guest uses something hvemu does not emulate; a sentence."""


def load_descriptor(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int) -> tuple[int, int]:
    """Linear address and value of the descriptor that a selector names; raises SegmentFault or LinearFault."""
    if selector & 4:
        table = cpu.ldt_segment()
        base, limit = table.base, table.limit if table.selector & 0xFFFC else 0
    else:
        tables = cpu.system_tables()
        base, limit = tables.gdt_base, tables.gdt_limit
    offset = selector & 0xFFF8
    if offset + 7 > limit:
        raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
    address = base + offset & (LINEAR_MASK if cpu.paging().efer & EFER_LMA else 0xFFFF_FFFF)
    return address, read_linear_u64(memory, cpu.paging(), address)


def _accessed(cpu: CpuPort, memory: GuestPhysicalMemory, address: int, selector: int, descriptor: int) -> Segment:
    """The segment, its descriptor marked accessed in memory as the CPU does."""
    if not descriptor & _ACCESSED_BIT:
        descriptor |= _ACCESSED_BIT
        write_linear(memory, cpu.paging(), address + 5, bytes([descriptor >> 40 & 0xFF]))
    return segment_from_descriptor(selector, descriptor)


def _dpl(attributes: int) -> int:
    return (attributes >> ATTRIBUTE_DPL_SHIFT) & 3


def data_segment(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int) -> Segment:
    """What loading DS, ES, FS or GS gives; raises SegmentFault or LinearFault."""
    if not selector & 0xFFFC:
        return Segment(selector, 0, 0, 0)
    address, descriptor = load_descriptor(cpu, memory, selector)
    attributes = descriptor >> 32
    error = selector & 0xFFFC
    if not attributes & ATTRIBUTE_S or attributes & (ATTRIBUTE_CODE | ATTRIBUTE_WRITABLE) == ATTRIBUTE_CODE:
        raise SegmentFault(GENERAL_PROTECTION, error)
    conforming = attributes & ATTRIBUTE_CODE and attributes & ATTRIBUTE_CONFORMING
    if not conforming and max(cpu.cpl(), selector & 3) > _dpl(attributes):
        raise SegmentFault(GENERAL_PROTECTION, error)
    if not attributes & ATTRIBUTE_PRESENT:
        raise SegmentFault(NOT_PRESENT, error)
    return _accessed(cpu, memory, address, selector, descriptor)


def stack_segment(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int, cpl: int) -> Segment:
    """What loading SS gives at privilege level ``cpl``; raises SegmentFault or LinearFault."""
    if not selector & 0xFFFC:
        raise SegmentFault(GENERAL_PROTECTION, 0)
    address, descriptor = load_descriptor(cpu, memory, selector)
    attributes = descriptor >> 32
    error = selector & 0xFFFC
    kind = ATTRIBUTE_S | ATTRIBUTE_CODE | ATTRIBUTE_WRITABLE
    if selector & 3 != cpl or _dpl(attributes) != cpl or attributes & kind != ATTRIBUTE_S | ATTRIBUTE_WRITABLE:
        raise SegmentFault(GENERAL_PROTECTION, error)
    if not attributes & ATTRIBUTE_PRESENT:
        raise SegmentFault(STACK_FAULT, error)
    return _accessed(cpu, memory, address, selector, descriptor)


def _code_segment(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int, cpl: int, *, returning: bool) -> Segment:
    """CS for a far transfer that ends at ``cpl``; raises SegmentFault, LinearFault or NotEmulated."""
    if not selector & 0xFFFC:
        raise SegmentFault(GENERAL_PROTECTION, 0)
    address, descriptor = load_descriptor(cpu, memory, selector)
    attributes = descriptor >> 32
    error = selector & 0xFFFC
    if not attributes & ATTRIBUTE_S and not returning:
        kind = attributes >> 8 & 0xF
        if kind in (1, 5, 9) and _dpl(attributes) >= max(cpu.cpl(), selector & 3):
            if not attributes & ATTRIBUTE_PRESENT:
                raise SegmentFault(NOT_PRESENT, error)
            raise NotEmulated(f"a far transfer goes to selector {selector:#06x}, a task")
        raise SegmentFault(GENERAL_PROTECTION, error)
    if attributes & (ATTRIBUTE_S | ATTRIBUTE_CODE) != ATTRIBUTE_S | ATTRIBUTE_CODE:
        raise SegmentFault(GENERAL_PROTECTION, error)
    dpl = _dpl(attributes)
    if attributes & ATTRIBUTE_CONFORMING:
        if dpl > cpl:
            raise SegmentFault(GENERAL_PROTECTION, error)
    elif dpl != cpl or (not returning and selector & 3 > cpl):
        raise SegmentFault(GENERAL_PROTECTION, error)
    if not attributes & ATTRIBUTE_PRESENT:
        raise SegmentFault(NOT_PRESENT, error)
    return _accessed(cpu, memory, address, selector & ~3 | cpl, descriptor)


class _CallGate(NamedTuple):
    """A call gate: where it leads, how many parameters it copies, of which size."""

    selector: int
    offset: int
    parameters: int
    size: int


def _call_gate(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int) -> _CallGate | None:
    """The gate that a far CALL or JMP names, or None when it names something else (SDM vol. 3A, 5.8.3)."""
    if not selector & 0xFFFC:
        return None
    _, gate = load_descriptor(cpu, memory, selector)
    attributes = gate >> 32
    if attributes & ATTRIBUTE_S or attributes >> 8 & 0xF not in (4, 12):
        return None
    if _dpl(attributes) < max(cpu.cpl(), selector & 3):
        raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
    if not attributes & ATTRIBUTE_PRESENT:
        raise SegmentFault(NOT_PRESENT, selector & 0xFFFC)
    wide = bool(attributes & 0x800)
    offset = gate & 0xFFFF | (gate >> 32 & 0xFFFF_0000 if wide else 0)
    return _CallGate(gate >> 16 & 0xFFFF, offset, gate >> 32 & 0x1F, 4 if wide else 2)


def _gate_code(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int, *, inward: bool) -> tuple[Segment, int]:
    """CS and privilege level behind a call gate; only CALL may go ``inward``."""
    if not selector & 0xFFFC:
        raise SegmentFault(GENERAL_PROTECTION, 0)
    address, descriptor = load_descriptor(cpu, memory, selector)
    attributes, cpl, error = descriptor >> 32, cpu.cpl(), selector & 0xFFFC
    dpl = _dpl(attributes)
    if attributes & (ATTRIBUTE_S | ATTRIBUTE_CODE) != ATTRIBUTE_S | ATTRIBUTE_CODE or dpl > cpl:
        raise SegmentFault(GENERAL_PROTECTION, error)
    target = cpl if attributes & ATTRIBUTE_CONFORMING else dpl
    if target != cpl and not inward:
        raise SegmentFault(GENERAL_PROTECTION, error)
    if not attributes & ATTRIBUTE_PRESENT:
        raise SegmentFault(NOT_PRESENT, error)
    return _accessed(cpu, memory, address, selector & ~3 | target, descriptor), target


def _call_inward(
    cpu: CpuPort, memory: GuestPhysicalMemory, gate: _CallGate, code: Segment, ring: int, after: int
) -> None:
    """CALL through a gate to an inner ring: its stack from the TSS, parameters copied from the old one."""
    old, pointer = cpu.segment(SS), cpu.gpr(ESP)
    stack, top = inner_stack(cpu, memory, ring)
    parameters = _pop(cpu, memory, gate.parameters, gate.size)
    values = [old.selector, pointer, *reversed(parameters), cpu.segment(CS).selector, after]
    new = _push(cpu, memory, stack, top, values, gate.size)
    cpu.set_code_and_stack(code, stack)
    cpu.set_gpr(ESP, new)
    cpu.set_eip(gate.offset)


def far_jump(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int, offset: int) -> None:
    """JMP far to a code segment of the present privilege level, also through a call gate."""
    gate = _call_gate(cpu, memory, selector)
    if gate is not None:
        cpu.set_segment(CS, _gate_code(cpu, memory, gate.selector, inward=False)[0])
        cpu.set_eip(gate.offset)
        return
    cpu.set_segment(CS, _code_segment(cpu, memory, selector, cpu.cpl(), returning=False))
    cpu.set_eip(offset)


def far_call(cpu: CpuPort, memory: GuestPhysicalMemory, selector: int, offset: int, size: int, after: int) -> None:
    """CALL far, also through a call gate; ``after`` is the return address, ``size`` of the operands 2 or 4."""
    gate = _call_gate(cpu, memory, selector)
    if gate is not None:
        code, ring = _gate_code(cpu, memory, gate.selector, inward=True)
        if ring != cpu.cpl():
            _call_inward(cpu, memory, gate, code, ring, after)
            return
        size, offset = gate.size, gate.offset
    else:
        code = _code_segment(cpu, memory, selector, cpu.cpl(), returning=False)
    values = [cpu.segment(CS).selector, after]
    top = _push(cpu, memory, cpu.segment(SS), cpu.gpr(ESP), values, size, user=cpu.cpl() == 3)
    cpu.set_gpr(ESP, top)
    cpu.set_segment(CS, code)
    cpu.set_eip(offset)


def far_return(cpu: CpuPort, memory: GuestPhysicalMemory, size: int, release: int) -> None:
    """RET far, to the same or an outer privilege level; ``release`` bytes of parameters are dropped."""
    offset, selector = _pop(cpu, memory, 2, size)
    cpl, target = cpu.cpl(), selector & 3
    if target < cpl:
        raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
    code = _code_segment(cpu, memory, selector & 0xFFFF, target, returning=True)
    if target == cpl:
        cpu.set_gpr(ESP, _stack_pointer(cpu.segment(SS), cpu.gpr(ESP), 2 * size + release))
        cpu.set_segment(CS, code)
    else:
        _, _, *outer = _pop(cpu, memory, 4, size, skip=release, skip_after=2)
        _to_outer_ring(cpu, memory, code, outer[0], outer[1] & 0xFFFF, target, release)
    cpu.set_eip(offset)


def interrupt_return(cpu: CpuPort, memory: GuestPhysicalMemory, size: int) -> None:
    """IRET in protected mode, to the same or an outer privilege level (SDM vol. 2A, IRET)."""
    flags, cpl = cpu.eflags(), cpu.cpl()
    if flags & FLAG_NT:
        _task_return(cpu, memory)
    offset, selector, popped = _pop(cpu, memory, 3, size)
    if popped & FLAG_VM and size == 4 and cpl == 0 and not cpu.paging().efer & EFER_LMA:
        raise NotEmulated("IRET goes to virtual-8086 mode, which does not exist in ring 1; use --mode native")
    selector &= 0xFFFF
    target = selector & 3
    if target < cpl:
        raise SegmentFault(GENERAL_PROTECTION, selector & 0xFFFC)
    code = _code_segment(cpu, memory, selector, target, returning=True)
    if target == cpl and not cpu.is_64_bit():  # 64-bit code always pops SS and RSP
        cpu.set_gpr(ESP, _stack_pointer(cpu.segment(SS), cpu.gpr(ESP), 3 * size))
        cpu.set_segment(CS, code)
    else:
        values = _pop(cpu, memory, 5, size)
        _to_outer_ring(cpu, memory, code, values[3], values[4] & 0xFFFF, target, 0)
    mask = _ARITHMETIC | FLAG_TF | FLAG_AC | FLAG_ID | FLAG_RF | FLAG_NT
    if cpl == 0:
        mask |= FLAG_IOPL
    if cpl <= flags >> 12 & 3:
        mask |= FLAG_IF
    if size == 2:
        mask &= 0xFFFF
    cpu.set_eflags(flags & ~mask | popped & mask)
    cpu.set_eip(offset)


def _task_return(cpu: CpuPort, memory: GuestPhysicalMemory) -> NoReturn:
    """IRET with NT set goes back to the task that the TSS names; only its refusals are emulated."""
    link = int.from_bytes(read_linear(memory, cpu.paging(), cpu.task_segment().base, 2), "little")
    error = link & 0xFFFC
    if link & 4:
        raise SegmentFault(INVALID_TSS, error)
    try:
        _, descriptor = load_descriptor(cpu, memory, link)
    except SegmentFault:
        raise SegmentFault(INVALID_TSS, error) from None
    if descriptor >> 40 & 0x1F not in (0x3, 0xB):
        raise SegmentFault(INVALID_TSS, error)
    if not descriptor >> 47 & 1:
        raise SegmentFault(NOT_PRESENT, error)
    raise NotEmulated("IRET with NT set is a task switch, which hvemu does not emulate")


def _to_outer_ring(
    cpu: CpuPort, memory: GuestPhysicalMemory, code: Segment, pointer: int, selector: int, ring: int, release: int
) -> None:
    stack = stack_segment(cpu, memory, selector, ring)
    cpu.set_code_and_stack(code, stack)
    pointer += release
    if not stack.attributes & ATTRIBUTE_BIG:  # the upper half stays that of the inner ring
        pointer = cpu.gpr(ESP) & 0xFFFF_0000 | pointer & 0xFFFF
    cpu.set_gpr(ESP, pointer)
    for index in (ES, DS, FS, GS):
        segment = cpu.segment(index)
        conforming = segment.attributes & ATTRIBUTE_CODE and segment.attributes & ATTRIBUTE_CONFORMING
        if segment.selector & 0xFFFC and not conforming and _dpl(segment.attributes) < ring:
            cpu.set_segment(index, Segment(0, 0, 0, 0))


def _pop(
    cpu: CpuPort, memory: GuestPhysicalMemory, count: int, size: int, *, skip: int = 0, skip_after: int = 0
) -> list[int]:
    """Values on the stack, without moving its pointer; ``skip`` bytes after the first ``skip_after`` are left out."""
    stack, pointer = cpu.segment(SS), cpu.gpr(ESP)
    values = []
    for number in range(count):
        distance = number * size + (skip if number >= skip_after and skip else 0)
        if cpu.is_64_bit():
            data = read_linear(memory, cpu.paging(), cpu.long_gpr(ESP) + distance, size, user=cpu.cpl() == 3)
            values.append(int.from_bytes(data, "little"))
            continue
        at = _stack_pointer(stack, pointer, distance)
        data = read_linear(memory, cpu.paging(), stack.base + _offset(stack, at), size, user=cpu.cpl() == 3)
        values.append(int.from_bytes(data, "little"))
    return values


def _push(
    cpu: CpuPort,
    memory: GuestPhysicalMemory,
    stack: Segment,
    pointer: int,
    values: list[int],
    size: int,
    *,
    user: bool = False,
) -> int:
    """Store values below ``pointer``, the last one lowest, all or none; returns the new stack pointer."""
    paging, mask = cpu.paging(), (1 << 8 * size) - 1
    tops = [_stack_pointer(stack, pointer, -size * number) for number in range(1, len(values) + 1)]
    for top in tops:
        probe_write(memory, paging, stack.base + _offset(stack, top), size, user=user)
    for top, value in zip(tops, values, strict=True):
        data = (value & mask).to_bytes(size, "little")
        write_linear(memory, paging, stack.base + _offset(stack, top), data, user=user)
    return tops[-1]


def _offset(stack: Segment, pointer: int) -> int:
    return pointer if stack.attributes & ATTRIBUTE_BIG else pointer & 0xFFFF


def _stack_pointer(stack: Segment, pointer: int, change: int) -> int:
    if stack.attributes & ATTRIBUTE_BIG:
        return (pointer + change) & 0xFFFF_FFFF
    return pointer & 0xFFFF_0000 | (pointer + change) & 0xFFFF
