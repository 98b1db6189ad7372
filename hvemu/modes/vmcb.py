"""A virtual machine control block: reading and writing its fields in machine memory (APM vol. 2, appendix B)."""

from typing import Final

from hvemu.cpu.state import CS, DS, ES, FS, GS, SS, Segment, TableRegister, accessed
from hvemu.engine.vcpu import Vcpu
from hvemu.vocabulary.paging import PagingRegisters
from hvemu.vocabulary.svm import (
    CONTROL_FIELDS,
    EXIT_NAMES,
    FIELDS,
    SEGMENT_NAMES,
    SEGMENT_SIZE,
    STATE_FIELDS,
    STATE_SAVE_AREA,
    exit_name,
    intercept_of,
)

_NUMBERS: Final = ((ES, "ES"), (CS, "CS"), (SS, "SS"), (DS, "DS"), (FS, "FS"), (GS, "GS"))


class Vmcb:
    """The block at a machine address in ``view``."""

    def __init__(self, view: memoryview, address: int) -> None:
        self._view, self.address = view, address

    def read(self, name: str) -> int:
        """A field of ``vocabulary.svm.FIELDS`` by its name."""
        field = FIELDS[name]
        at = self.address + field.offset
        return int.from_bytes(self._view[at : at + field.size], "little")

    def write(self, name: str, value: int) -> None:
        """Set a field."""
        field = FIELDS[name]
        at = self.address + field.offset
        self._view[at : at + field.size] = (value & (1 << 8 * field.size) - 1).to_bytes(field.size, "little")

    def set_intercept(self, code: int, wanted: bool = True) -> None:
        """Ask for an exit by its code, or no longer; KeyError for one that cannot be asked for."""
        name, bit = intercept_of(code)
        value = self.read(name) & ~(1 << bit)
        self.write(name, value | wanted << bit)

    def intercepts(self) -> list[str]:
        """Names of all exits that are asked for, by their codes."""
        return [name for code, name in sorted(EXIT_NAMES.items()) if code < 0xA0 and self._asks_for(code)]

    def _asks_for(self, code: int) -> bool:
        name, bit = intercept_of(code)
        return bool(self.read(name) >> bit & 1)

    def segment(self, name: str) -> Segment:
        """A segment register; attributes as in the second word of a descriptor."""
        at = self.address + STATE_SAVE_AREA + SEGMENT_NAMES.index(name) * SEGMENT_SIZE
        raw = self._view[at : at + SEGMENT_SIZE]
        selector, attributes, limit, base = (
            int.from_bytes(raw[first:last], "little") for first, last in ((0, 2), (2, 4), (4, 8), (8, 16))
        )
        return Segment(selector, base, limit, (attributes & 0xFF) << 8 | (attributes & 0xF00) << 12)

    def set_segment(self, name: str, segment: Segment) -> None:
        """Set a segment register, the twelve attribute bits packed together as the APM has them."""
        selector, base, limit, attributes = segment
        packed = attributes >> 8 & 0xFF | attributes >> 12 & 0xF00
        at = self.address + STATE_SAVE_AREA + SEGMENT_NAMES.index(name) * SEGMENT_SIZE
        self._view[at : at + SEGMENT_SIZE] = (
            selector.to_bytes(2, "little")
            + packed.to_bytes(2, "little")
            + (limit & 0xFFFF_FFFF).to_bytes(4, "little")
            + base.to_bytes(8, "little")
        )

    def set_table(self, name: str, table: TableRegister) -> None:
        """GDTR or IDTR."""
        self.set_segment(name, Segment(0, table.base, table.limit, 0))

    def save(self, vcpu: Vcpu, paging: PagingRegisters, msrs: dict[str, int]) -> None:
        """Store the registers that the CPU holds: what #VMEXIT does, and VMSAVE. ``msrs`` by their field's name."""
        for index, name in _NUMBERS:
            self.set_segment(name, accessed(vcpu.segment(index)))
        self.set_table("GDTR", vcpu.gdt())
        self.set_table("IDTR", vcpu.idt())
        self.set_segment("LDTR", vcpu.ldt_segment())
        self.set_segment("TR", vcpu.task_segment())
        self.write("CPL", vcpu.cpl())
        for name, value in (
            ("CR0", paging.cr0),
            ("CR2", vcpu.cr2()),
            ("CR3", paging.cr3),
            ("CR4", paging.cr4),
            ("EFER", paging.efer),
            ("RFLAGS", vcpu.eflags()),
            ("RIP", vcpu.eip()),
            ("RSP", vcpu.long_gpr(4)),
            ("RAX", vcpu.long_gpr(0)),
            ("INTERRUPT_SHADOW", int(vcpu.interrupt_shadow())),
            *msrs.items(),
        ):
            self.write(name, value)

    def lines(self) -> list[tuple[str, str, str]]:
        """Every field that is used: name, value and meaning, for people."""
        found = []
        for field in CONTROL_FIELDS:
            value = self.read(field.name)
            meaning = field.meaning
            if field.name == "EXITCODE":
                meaning += f": {exit_name(value)}"
            found.append((field.name, f"{value:0{2 * field.size}x}", meaning))
        for name in SEGMENT_NAMES:
            selector, base, limit, attributes = self.segment(name)
            packed = attributes >> 8 & 0xFF | attributes >> 12 & 0xF00
            what = "table" if name in ("GDTR", "IDTR") else "system segment" if name in ("LDTR", "TR") else "segment"
            words = f"{selector:04x} {packed:03x} {limit:08x} {base:08x}"
            found.append((name, words, f"{what}: selector, attributes, limit, base"))
        found += [(f.name, f"{self.read(f.name):0{2 * f.size}x}", f.meaning) for f in STATE_FIELDS]
        return found
