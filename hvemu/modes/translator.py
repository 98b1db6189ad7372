"""The binary translator: guest kernel code in, code for ring 1 out, one translation unit at a time.

Most instructions are copied byte by byte. Direct control flow becomes exits that can be chained; calls push the guest's
return address; returns and indirect transfers compare their target with the ones seen before, by LEA and JECXZ, which
leave the flags alone. What reads or writes the state of ring 0 becomes a short sequence, or a HLT, which faults in
ring 1: a callout. There is no memory of the hypervisor's that 32-bit code could reach, so the virtual interrupt flag
is where the code is: a unit is translated for IF = 0 or for IF = 1, and CLI is a jump from one to the other.

Adams and Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (2006), section 3.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from hvemu.cpu.decoder import MAXIMUM_LENGTH, Detailed, decode, decode_operands, signed_word
from hvemu.cpu.state import ECX, GPR_NAMES

UNIT_LENGTH: Final = 12
"""Most guest instructions in a unit (Adams and Agesen, 3.1)."""
HINTS: Final = 4
"""Most targets of an indirect transfer that are compared in the cache before the hypervisor is asked."""
HLT: Final = 0xF4
SLOT_SIZE: Final = 5
_FILLER: Final = b"\xcc"
_XCHG_ECX_STACK: Final = b"\x87\x0c\x24"
_MOV_R8D_STACK: Final = b"\x44\x8b\x04\x24"
_MOV_R8D_ECX: Final = b"\x41\x89\xc8"
_MOV_ECX_STACK: Final = b"\x8b\x0c\x24"
_LEA_ESP_MINUS_4: Final = b"\x8d\x64\x24\xfc"
_CHAIN_ENTRY: Final = 8
FAR_JUMP_SIZE: Final = 7
LEA_SIZE: Final = 7
WAY_SIZE: Final = LEA_SIZE + 5
"""The way to the lookup: LEA R9,[RIP] and JMP."""
_LEA_R9_HERE: Final = b"\x4c\x8d\x0d" + bytes(4)
_JMP: Final = b"\xe9"
_TRAP_OR_IOPL: Final = 0x3100
_IF: Final = 0x200
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_SEGMENT_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65")
_CONDITIONS: Final = (
    "jo",
    "jno",
    "jb",
    "jae",
    "je",
    "jne",
    "jbe",
    "ja",
    "js",
    "jns",
    "jp",
    "jnp",
    "jl",
    "jge",
    "jle",
    "jg",
)
_JCC: Final = {name: number for number, name in enumerate(_CONDITIONS)}
_LOOPS: Final = ("loop", "loope", "loopne", "jecxz", "jcxz")
_ALWAYS_CALLOUT: Final = {
    "hlt": "stops the CPU", "clts": "writes CR0", "lmsw": "writes CR0", "lgdt": "loads GDTR", "lidt": "loads IDTR",
    "lldt": "loads LDTR", "ltr": "loads TR", "invlpg": "changes what the MMU knows", "wbinvd": "privileged",
    "invd": "privileged", "wbnoinvd": "privileged", "rdmsr": "reads a virtual MSR", "wrmsr": "writes a virtual MSR",
    "sysexit": "goes to user code", "lar": "reads the guest's own descriptors",
    "lsl": "reads the guest's own descriptors", "verr": "reads the guest's own descriptors",
    "verw": "reads the guest's own descriptors", "rdrand": "must not be random", "rdseed": "must not be random",
    "lss": "loads SS, which is in ring 1",
}  # fmt: skip
_TRANSFERS_BY_CALLOUT: Final = {
    "iretd": "may return to user code", "iret": "may return to user code", "retf": "may change the code segment",
    "ljmp": "may change the code segment", "lcall": "may change the code segment",
}  # fmt: skip
_EXITS_BY_ITSELF: Final = {
    **dict.fromkeys(
        ("in", "out", "insb", "insw", "insd", "outsb", "outsw", "outsd"), "a port: exits by itself, in any ring"
    ),
    **dict.fromkeys(("cpuid", "rdtsc", "rdtscp", "sysenter"), "answered in place of the CPU, as in every mode"),
    **dict.fromkeys(("vmcall", "vmmcall"), "#UD in any ring: a hypercall, if the machine shows a hypervisor"),
}
_RING_1_ONLY: Final = ("wrpkru", "rdpkru")
_INTERRUPTS: Final = ("int", "int3", "into", "int1")
_ENDS_UNIT: Final = frozenset({"hlt", "sysexit", *_TRANSFERS_BY_CALLOUT})


class Treatment(StrEnum):
    """What became of a guest instruction."""

    IDENTICAL = "identical"
    INLINE = "inline"
    CALLOUT = "callout"


class Context(NamedTuple):
    """What a unit is translated for: the virtual IF and IOPL, whether STI or MOV SS holds off interrupts, CS.

    ``flat_stack``: the base of SS is zero, so that 64-bit code finds the stack.
    """

    interrupts: bool
    shadow: bool
    iopl: int
    selector: int
    base: int
    flat_stack: bool = True


class Point(NamedTuple):
    """What the guest's state is at an address of the cache: that before the instruction at ``eip``, once ``undo`` is
    done and ``charged`` guest bytes are taken back. ``interrupts``: the virtual IF, where it is not the unit's."""

    eip: int
    charged: int = 0
    undo: str = ""
    value: int = 0
    register: int = 0
    interrupts: bool | None = None
    shadow: bool | None = None


class Transition(NamedTuple):
    """The context that an exit leads to, as far as it differs."""

    interrupts: bool
    shadow: bool


@dataclass(slots=True)
class Exit:
    """A place where a unit goes on to another: a jump once it is chained, HLT until then.

    ``slot`` is its offset in the unit; ``branch`` that of a conditional jump to the slot, or -1. ``length``: guest
    bytes that are charged at the slot itself, because the instruction is the slot.
    """

    slot: int
    target: int
    transition: Transition
    branch: int = -1
    length: int = 0
    indirect: bool = False


@dataclass(slots=True)
class Indirect:
    """The place of a return or indirect transfer: where its hints are, and what a hit does."""

    chain: int
    hits: list[int]
    hit: Callable[[int], bytes]
    miss: int
    undo: str
    register: int
    eip: int
    length: int
    slow: int
    """Where the hypervisor is asked, or a far jump leads to the 64-bit code at ``approach``: it takes the target to R8D
    and does to the stack what the transfer does. At ``landing`` it goes on to the lookup of the cache."""
    approach: int = 0
    landing: int = 0
    targets: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Callout:
    """A HLT that stands for a guest instruction; ``kind``: "instruction", "indirect", "breakpoint" or "tracer"."""

    kind: str
    length: int
    charged: bool = False
    indirect: Indirect | None = None


class Item(NamedTuple):
    """One guest instruction of a unit and what was emitted for it, at ``offset`` in the unit."""

    eip: int
    code: bytes
    text: str
    treatment: Treatment
    reason: str
    offset: int
    size: int


@dataclass(slots=True)
class Translation:
    """A unit: emitted code and everything there is to know of it. Offsets are from its start."""

    eip: int
    context: Context
    code: bytearray = field(default_factory=bytearray)
    items: list[Item] = field(default_factory=list)
    points: dict[int, Point] = field(default_factory=dict)
    weights: list[tuple[int, int]] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    callouts: dict[int, Callout] = field(default_factory=dict)
    constants: list[tuple[int, int, str]] = field(default_factory=list)
    length: int = 0
    """Guest bytes."""
    repeats: bool = False
    """Whether a repeated string instruction stands in an interrupt shadow. The engine counts its iterations in another
    way there, and does so only when the CPU's own shadow is set; so the unit is entered by the hypervisor alone."""


Fetch = Callable[[int, int], bytes]
"""Code bytes from a linear address, as many as can be had."""


def translate(
    fetch: Fetch,
    eip: int,
    context: Context,
    constant: Callable[[str], int],
    *,
    stops: frozenset[int] = frozenset(),
    tracers: frozenset[int] = frozenset(),
    limit: int = UNIT_LENGTH,
) -> Translation:
    """One unit, from ``eip`` to a control transfer or ``limit`` instructions; empty if no code can be fetched there.

    At the linear addresses of ``stops`` a breakpoint is called out first; the stores at those of ``tracers`` are
    called out, because they keep hitting watched pages.
    """
    return _Translator(fetch, eip, context, constant, stops, tracers, 1 if context.shadow else limit).run()


class _Translator:
    """Translates one unit."""

    def __init__(
        self,
        fetch: Fetch,
        eip: int,
        context: Context,
        constant: Callable[[str], int],
        stops: frozenset[int],
        tracers: frozenset[int],
        limit: int,
    ) -> None:
        self._fetch, self._constant, self._stops, self._tracers, self._limit = fetch, constant, stops, tracers, limit
        self.context, self.eip, self.unit = context, eip, Translation(eip, context)
        self._code = self.unit.code
        self._handlers: dict[str, Callable[[Detailed, int], tuple[Treatment, str, bool] | None]] = {
            "jmp": self._jmp, "call": self._call, "ret": self._ret, "cli": self._cli, "sti": self._sti,
            "pushfd": self._pushfd, "pushf": self._pushf, "popfd": self._popfd, "popf": self._popf, "mov": self._mov,
            "push": self._push, "pop": self._pop, "smsw": self._smsw, "sldt": self._sldt, "str": self._str,
            "sgdt": self._sgdt, "sidt": self._sidt,
        }  # fmt: skip

    def run(self) -> Translation:
        unit, base = self.unit, self.context.base
        start = (base + self.eip) & 0xFFFF_FFFF
        while True:
            linear = (base + self.eip) & 0xFFFF_FFFF
            room = 0x1000 - linear % 0x1000
            inside = linear & ~0xFFF == start & ~0xFFF
            if len(unit.items) == self._limit or (unit.items and (not inside or linear in self._stops)):
                self._fall_through()
                break
            code = self._fetch(linear, MAXIMUM_LENGTH)
            instruction = decode_operands(code, 32) if code else None
            if unit.items and room < MAXIMUM_LENGTH and (instruction is None or len(instruction.code) > room):
                self._fall_through()  # what crosses into another page is a unit of its own
                break
            if not code:
                break
            if self._one(linear, code, instruction):
                break
        unit.length = sum(len(item.code) for item in unit.items)
        return unit

    # ------------------------------------------------------------------ one instruction

    def _one(self, linear: int, code: bytes, instruction: Detailed | None) -> bool:
        """Translate the instruction at EIP; returns whether it ends the unit."""
        offset, unit = len(self._code), self.unit
        if linear in self._stops:
            self._point(Point(self.eip))
            unit.callouts[len(self._code)] = Callout("breakpoint", 0)
            self._emit(bytes([HLT]))
        if instruction is None or instruction.mnemonic in _RING_1_ONLY:
            # Rubbish, and what exists on this CPU only for the hypervisor
            length = len(instruction.code) if instruction else 1
            self._begin(length)
            self._emit(b"\x0f\x0b")
            self._add(offset, code[:length], "(undecodable)", Treatment.INLINE, "raises #UD")
            return True
        length, mnemonic = len(instruction.code), instruction.mnemonic
        decoded = decode(instruction.code, 32, self.eip)
        text = str(decoded) if decoded else mnemonic
        treatment, reason, ends = self._treat(linear, instruction, length, mnemonic)
        self._add(offset, instruction.code, text, treatment, reason)
        self.eip = (self.eip + length) & 0xFFFF_FFFF
        if not ends and self.context.shadow:
            self._fall_through()
            return True
        return ends

    def _treat(self, linear: int, instruction: Detailed, length: int, mnemonic: str) -> tuple[Treatment, str, bool]:
        handler = self._handlers.get(mnemonic)
        if linear in self._tracers:
            return (*self._callout(length, "stores to a watched page again and again", "tracer"), False)
        if mnemonic in _ALWAYS_CALLOUT:
            return (*self._callout(length, _ALWAYS_CALLOUT[mnemonic]), mnemonic in _ENDS_UNIT)
        if mnemonic in _TRANSFERS_BY_CALLOUT:
            return (*self._callout(length, _TRANSFERS_BY_CALLOUT[mnemonic]), True)
        if mnemonic in _JCC:
            return self._conditional(instruction, length, _JCC[mnemonic])
        if mnemonic in _LOOPS:
            return self._loop_or_jecxz(instruction, length)
        if mnemonic in _INTERRUPTS:
            return self._interrupt(instruction, length)
        found = handler(instruction, length) if handler is not None else None
        if found is not None:
            return found
        self._begin(length)
        self._emit(instruction.code)
        self.unit.repeats = self.context.shadow and instruction.repeated
        reason = _EXITS_BY_ITSELF.get(mnemonic, "does the same in ring 1")
        return Treatment.IDENTICAL, reason, False

    def _begin(self, length: int) -> None:
        """A guest instruction begins: its bytes are charged with the first byte emitted."""
        self._point(Point(self.eip))
        self.unit.weights.append((len(self._code), length))

    def _point(self, point: Point) -> None:
        self.unit.points[len(self._code)] = point

    def _emit(self, code: bytes) -> None:
        self._code += code

    def _add(self, offset: int, code: bytes, text: str, treatment: Treatment, reason: str) -> None:
        self.unit.items.append(Item(self.eip, code, text, treatment, reason, offset, len(self._code) - offset))

    def _callout(self, length: int, reason: str, kind: str = "instruction") -> tuple[Treatment, str]:
        self._begin(length)
        self.unit.callouts[len(self._code)] = Callout(kind, length)
        self._emit(bytes([HLT]))
        return Treatment.CALLOUT, reason

    def _after(self) -> Transition:
        return Transition(self.context.interrupts, False)

    def _slot(self, target: int, transition: Transition | None = None, length: int = 0, branch: int = -1) -> None:
        """An exit that is not chained yet."""
        transition = transition or self._after()
        if not length:
            self._point(Point(target, interrupts=transition.interrupts, shadow=transition.shadow))
        self.unit.exits.append(Exit(len(self._code), target & 0xFFFF_FFFF, transition, branch, length))
        self._emit(bytes([HLT]) + _FILLER * 4)

    def _fall_through(self) -> None:
        self._slot(self.eip)

    # ------------------------------------------------------------------ control flow

    def _conditional(self, instruction: Detailed, length: int, condition: int) -> tuple[Treatment, str, bool]:
        if instruction.operand_size != 4:
            return (*self._callout(length, "cuts EIP to 16 bits"), True)
        self._begin(length)
        branch = len(self._code)
        self._emit(bytes([0x0F, 0x80 | condition]) + struct.pack("<i", SLOT_SIZE))
        self._slot(self.eip + length)
        self._slot(self.eip + instruction.operands[0].value, branch=branch)
        return Treatment.INLINE, "goes to the translation of its target", True

    def _loop_or_jecxz(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        if instruction.operand_size != 4:
            return (*self._callout(length, "cuts EIP to 16 bits"), True)
        self._begin(length)
        self._emit(instruction.code[:-1] + bytes([SLOT_SIZE]))
        self._slot(self.eip + length)
        self._slot(self.eip + instruction.operands[0].value)
        return Treatment.INLINE, "goes to the translation of its target", True

    def _interrupt(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        self._begin(length)
        self._emit(instruction.code)
        if instruction.mnemonic == "into":
            self._point(Point(self.eip + length))
            return Treatment.IDENTICAL, "traps by itself", False
        self._slot(self.eip + length)  # for its address: the CPU reports the next instruction
        return Treatment.IDENTICAL, "traps by itself", True

    def _jmp(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        operand = instruction.operands[0]
        if operand.kind == "imm" and instruction.operand_size == 4 and len(instruction.operands) == 1:
            self._begin(length)
            self._slot(self.eip + operand.value, length=length)
            return Treatment.INLINE, "goes to the translation of its target", True
        if operand.kind == "reg" and operand.size == 4 and operand.register != "esp":
            self._by_register(length, GPR_NAMES.index(operand.register), b"")
            return Treatment.INLINE, "looks its target up", True
        return (*self._callout(length, "has no register to spare for the lookup"), True)

    def _call(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        operand, after = instruction.operands[0], (self.eip + length) & 0xFFFF_FFFF
        push = b"\x68" + struct.pack("<I", after)
        if instruction.operand_size == 4 and len(instruction.operands) == 1:
            if operand.kind == "imm":
                self._begin(length)
                self._emit(push)
                self._slot(self.eip + operand.value)
                return Treatment.INLINE, "pushes the guest's return address", True
            if operand.kind == "reg" and operand.register != "esp":
                self._by_register(length, GPR_NAMES.index(operand.register), push)
                return Treatment.INLINE, "pushes the guest's return address, looks its target up", True
            modrm = instruction.code[instruction.modrm_at] >> 3 & 7
            if operand.kind == "mem" and modrm == 2 and instruction.address_size == 4:
                self._call_memory(instruction, length, after)
                return Treatment.INLINE, "pushes the guest's return address, looks its target up", True
        return (*self._callout(length, "may change the code segment"), True)

    def _ret(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        if instruction.operand_size != 4:
            return (*self._callout(length, "cuts EIP to 16 bits"), True)
        release = 4 + (signed_word(instruction.operands[0].value) if instruction.operands else 0)
        self._begin(length)
        self._emit(_XCHG_ECX_STACK)
        if -0x80 <= release < 0x80:
            leave = b"\x8d\x64\x24" + struct.pack("<b", release)
        else:
            leave = b"\x8d\xa4\x24" + struct.pack("<i", release)

        def hit(target: int) -> bytes:
            return b"\xb9" + struct.pack("<I", target) + _XCHG_ECX_STACK + leave

        site = self._indirect(length, hit, _XCHG_ECX_STACK, "stack")
        self._lookup(site, (_MOV_R8D_STACK, leave), "", -release)
        return Treatment.INLINE, "consumes the guest's return address, looks its target up", True

    def _by_register(self, length: int, register: int, push: bytes) -> None:
        exchange = b"" if register == ECX else bytes([0x87, 0xC8 | register])
        self._begin(length)
        self._emit(exchange)

        def hit(target: int) -> bytes:
            return b"\xb9" + struct.pack("<I", target) + exchange + push

        site = self._indirect(length, hit, exchange, "register", register, plain=not exchange)
        take = bytes([0x41, 0x89, 0xC0 | register << 3])
        if push:
            # Below the stack pointer first, because that may fault; the prefix makes it wrap around as PUSH does
            self._lookup(site, (take, b"\x67\xc7\x44\x24\xfc" + push[1:], _LEA_ESP_MINUS_4), "", 4)
        else:
            self._lookup(site, (take,), "", 0)

    def _call_memory(self, instruction: Detailed, length: int, after: int) -> None:
        self._begin(length)
        # PUSH, to where the return address will be: it reads and writes in the order that CALL does
        self._emit(_with_memory(instruction, b"\xff", 6) + _XCHG_ECX_STACK)

        def hit(_target: int) -> bytes:
            return b"\xb9" + struct.pack("<I", after) + _XCHG_ECX_STACK

        site = self._indirect(length, hit, b"", "pushed")
        store = b"\xc7\x04\x24" + struct.pack("<I", after)
        self._lookup(site, (_MOV_R8D_ECX, _MOV_ECX_STACK, store), "pushed", 4)

    def _indirect(
        self,
        length: int,
        hit: Callable[[int], bytes],
        restore: bytes,
        undo: str,
        register: int = 0,
        *,
        plain: bool = False,
    ) -> Indirect:
        """The hints, all unused; the miss; room for the hits. ECX holds the target."""
        unit, chain = self.unit, len(self._code)
        miss = chain + HINTS * _CHAIN_ENTRY
        for number in range(HINTS):
            if number or not plain:
                self._point(Point(self.eip, length, undo, 0, register))
            self._emit(b"\xeb" + bytes([miss - len(self._code) - 2]) + _FILLER * 6)
        self._point(Point(self.eip, length, undo, 0, register))
        self._emit(b"\x8d\x89" + bytes(4) + restore)
        slow = len(self._code)
        self._point(Point(self.eip, length, "" if restore or plain else undo))
        self._emit(bytes([HLT]) + _FILLER * (FAR_JUMP_SIZE - 1))
        size = len(hit(0)) + SLOT_SIZE
        hits = [len(self._code) + number * size for number in range(HINTS)]
        self._emit(_FILLER * size * HINTS)
        site = Indirect(chain, hits, hit, miss, undo, register, self.eip, length, slow)
        unit.callouts[slow] = Callout("indirect", length, charged=True, indirect=site)

        return site

    def _lookup(self, site: Indirect, steps: tuple[bytes, ...], undo: str, moved: int) -> None:
        """The way to the lookup, in 64-bit code; ``moved``: what then has to be added to ESP to undo the transfer."""
        site.approach = len(self._code)
        for step in steps:
            self._point(Point(self.eip, site.length, undo))
            self._emit(step)
        site.landing = len(self._code)
        self._point(Point(self.eip, site.length, "moved", moved))
        self.unit.callouts[site.landing] = self.unit.callouts[site.slow]
        self._emit(_LEA_R9_HERE + _JMP + bytes(4))

    # ------------------------------------------------------------------ flags

    def _cli(self, _instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        self._begin(length)
        if not self.context.interrupts:
            self._emit(b"\x90")
            return Treatment.INLINE, "interrupts are disabled already", False
        self._slot(self.eip + length, Transition(interrupts=False, shadow=False), length)
        return Treatment.INLINE, "goes on in code for IF = 0", True

    def _sti(self, _instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        self._begin(length)
        self._slot(self.eip + length, Transition(interrupts=True, shadow=not self.context.shadow), length)
        return Treatment.INLINE, "goes on in code for IF = 1, where a pending interrupt is seen", True

    def _pushfd(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool] | None:
        difference = (0 if self.context.interrupts else -_IF) + (self.context.iopl << 12)
        if not difference:
            return None  # ring 1 runs with IF = 1 and IOPL = 0: this is what it pushes
        self._begin(length)
        self._emit(instruction.code)
        self._correct_stack(difference)
        return Treatment.INLINE, "the virtual IF and IOPL differ from the CPU's", False

    def _correct_stack(self, difference: int) -> None:
        """Add to the word on top of the stack, and leave the flags alone."""
        self._emit(_XCHG_ECX_STACK + b"\x8d\x89" + struct.pack("<i", difference) + _XCHG_ECX_STACK)

    def _pushf(self, _instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return (*self._callout(length, "pushes 16 bits of virtual flags"), False)

    def _popf(self, _instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return (*self._callout(length, "pops 16 bits of virtual flags"), True)

    def _popfd(self, _instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        if self.context.iopl:
            return (*self._callout(length, "changes IOPL"), True)
        after = (self.eip + length) & 0xFFFF_FFFF
        finish = Point(self.eip, length, "popf")
        self._begin(length)
        # Its own flags die here. The first TEST touches all that POPF will, so a fault finds them unharmed.
        self._emit(b"\xf7\x04\x24" + struct.pack("<I", _TRAP_OR_IOPL) + b"\x75\x15")
        self._point(finish)
        self._emit(b"\xf7\x04\x24" + struct.pack("<I", _IF) + b"\x74\x06")
        for interrupts in (True, False):
            self._point(finish)
            self._emit(b"\x9d")
            self._slot(after, Transition(interrupts, shadow=False))
        self._point(finish)
        self.unit.callouts[len(self._code)] = Callout("instruction", length, charged=True)
        self._emit(bytes([HLT]))
        return Treatment.INLINE, "takes IF from the stack; a change of IOPL or TF is called out", True

    # ------------------------------------------------------------------ sensitive registers

    def _mov(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool] | None:
        target, source = instruction.operands[:2]
        if source.register[:2] in ("cr", "dr") or target.register[:2] in ("cr", "dr"):
            if source.register in ("cr0", "cr2", "cr3", "cr4"):
                self._begin(length)
                self._emit(bytes([0xB8 | GPR_NAMES.index(target.register)]))
                self._immediate(4, source.register)
                return Treatment.INLINE, "the virtual register's value, patched when it changes", False
            return (*self._callout(length, "reads or writes a virtual register"), False)
        if target.register == "ss":
            return (*self._callout(length, "loads SS, which is in ring 1"), False)
        if source.register in ("cs", "ss"):
            return self._segment_to(instruction, length)
        return None

    def _segment_to(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        target, source = instruction.operands
        if target.kind == "reg":
            register = _register_number(target.register)
            prefix = b"\x66" if target.size == 2 else b""
            self._begin(length)
            if source.register == "cs":
                value = struct.pack("<I", self.context.selector)[: target.size]
                self._emit(prefix + bytes([0xB8 | register]) + value)
            else:
                self._emit(prefix + bytes([0x8C, 0xD0 | register]) + prefix + _lea_minus_one(register))
            return Treatment.INLINE, "the guest's selector, not that of ring 1", False
        if source.register == "cs" and instruction.address_size == 4:
            self._begin(length)
            code = _with_memory(instruction, b"\xc7", 0)
            self._emit(b"\x66" + code + struct.pack("<H", self.context.selector))
            return Treatment.INLINE, "the guest's selector, not that of ring 1", False
        return (*self._callout(length, "stores the guest's selector, not that of ring 1"), False)

    def _push(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool] | None:
        name = instruction.operands[0].register
        if name not in ("cs", "ss"):
            return None
        if instruction.operand_size != 4:
            return (*self._callout(length, "pushes the guest's selector, not that of ring 1"), False)
        self._begin(length)
        if name == "cs":
            self._emit(b"\x68" + struct.pack("<I", self.context.selector))
        else:
            self._emit(instruction.code)
            self._correct_stack(-1)
        return Treatment.INLINE, "the guest's selector, not that of ring 1", False

    def _pop(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool] | None:
        if instruction.operands[0].register == "ss":
            return (*self._callout(length, "loads SS, which is in ring 1"), False)
        return None

    def _smsw(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return self._constant_word(instruction, length, "cr0")

    def _sldt(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return self._constant_word(instruction, length, "ldtr")

    def _str(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return self._constant_word(instruction, length, "tr")

    def _constant_word(self, instruction: Detailed, length: int, name: str) -> tuple[Treatment, str, bool]:
        target = instruction.operands[0]
        reason = "the virtual register's value, patched when it changes"
        if target.kind == "reg":
            wide = target.size == 4 and name != "cr0"  # the engine's SMSW leaves the upper half alone
            self._begin(length)
            self._emit((b"" if wide else b"\x66") + bytes([0xB8 | _register_number(target.register)]))
            self._immediate(4 if wide else 2, name + (":16" if wide else ""))
            return Treatment.INLINE, reason, False
        if instruction.address_size != 4:
            return (*self._callout(length, "stores a virtual register"), False)
        self._begin(length)
        self._emit(b"\x66" + _with_memory(instruction, b"\xc7", 0))
        self._immediate(2, name)
        return Treatment.INLINE, reason, False

    def _sgdt(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return self._table_register(instruction, length, "gdtr")

    def _sidt(self, instruction: Detailed, length: int) -> tuple[Treatment, str, bool]:
        return self._table_register(instruction, length, "idtr")

    def _table_register(self, instruction: Detailed, length: int, name: str) -> tuple[Treatment, str, bool]:
        if instruction.address_size != 4 or instruction.operand_size != 4:
            return (*self._callout(length, "stores a virtual register"), False)
        self._begin(length)
        self._emit(b"\x66" + _with_memory(instruction, b"\xc7", 0))
        self._immediate(2, name + ".limit")
        self._point(Point(self.eip, length))
        self._emit(_with_memory(instruction, b"\xc7", 0, 2))
        self._immediate(4, name + ".base")
        return Treatment.INLINE, "the virtual register's value, patched when it changes", False

    def _immediate(self, size: int, name: str) -> None:
        self.unit.constants.append((len(self._code), size, name))
        self._emit(struct.pack("<I", self._constant(name) & 0xFFFF_FFFF)[:size])


def _register_number(name: str) -> int:
    return GPR_NAMES.index(name if len(name) == 3 else "e" + name)


def _lea_minus_one(register: int) -> bytes:
    """LEA reg,[reg-1]: subtract and leave the flags alone."""
    stack = b"\x24" if register == GPR_NAMES.index("esp") else b""
    return bytes([0x8D, 0x40 | register << 3 | register]) + stack + b"\xff"


def _with_memory(instruction: Detailed, opcode: bytes, register: int, delta: int = 0) -> bytes:
    """Another instruction with the memory operand of this one, ``delta`` bytes further."""
    code, at = instruction.code, instruction.modrm_at
    prefixes = bytes(byte for byte in _leading(code) if byte in _SEGMENT_PREFIXES)
    modrm = code[at] & 0xC7 | register << 3
    has_sib = modrm & 7 == 4
    sib = code[at + 1 : at + 2] if has_sib else b""
    size = instruction.displacement_size
    value = int.from_bytes(code[instruction.displacement_at :][:size], "little", signed=True) if size else 0
    absolute = modrm >> 6 == 0 and (modrm & 7 == 5 or (has_sib and sib[0] & 7 == 5))
    if delta and not absolute:
        modrm = modrm & 0x3F | 0x80
        size = 4
    displacement = struct.pack("<I", (value + delta) & 0xFFFF_FFFF)[:size]
    return prefixes + opcode + bytes([modrm]) + sib + displacement


def _leading(code: bytes) -> bytes:
    """The prefixes of an instruction."""
    count = next(index for index, byte in enumerate(code) if byte not in _PREFIXES)
    return code[:count]


def adapted(item: Item) -> Item:
    """What an instruction becomes whose stores keep faulting."""
    return item._replace(treatment=Treatment.CALLOUT, reason="stores to a watched page again and again")
