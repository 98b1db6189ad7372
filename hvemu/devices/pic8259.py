"""The pair of 8259A interrupt controllers of a PC, cascaded on input 2, with the edge/level registers (ELCR).

The board calls ``set_irq`` or hands out ``line(n)``; the CPU calls ``acknowledge`` when it takes the interrupt
that ``intr`` announces. An edge-triggered request is dropped when its line falls before it is acknowledged.

Not emulated: the 8080 mode, buffered mode and LTIM of ICW1 (the ELCR decides, as in every PCI chipset).
Spec: Intel 8259A data sheet (231468-003); ELCR: Intel 82371AB (PIIX4), section 4.2.7.
"""

from typing import Final

from hvemu.devices.contract import DeviceEvent, IrqLine, Watcher, nobody_watches
from hvemu.devices.saved import Flag, Number, SavedDevice
from hvemu.vocabulary.addresses import Vector

ICW1_SELECT: Final = 0b1_0000
ICW1_NEEDS_ICW4: Final = 0b0001
ICW1_SINGLE: Final = 0b0010
ICW4_AUTO_EOI: Final = 0b0_0010
ICW4_SPECIAL_FULLY_NESTED: Final = 0b1_0000
OCW3_SELECT: Final = 0b1000
OCW3_POLL: Final = 0b0100

CASCADE: Final = 2
ELCR_MASTER: Final = 0b1111_1000  # the timer, the keyboard and the cascade are always edge-triggered
ELCR_SLAVE: Final = 0b1101_1110  # so are the RTC and the coprocessor


class Pic8259(SavedDevice):
    """One chip: two registers. The pair tells it about its inputs and watches its output."""

    layout = {
        "levels": Number(0xFF),
        "edges": Number(0xFF),
        "edge_level_control": Number(0xFF),
        "interrupt_mask": Number(0xFF),
        "in_service": Number(0xFF),
        "lowest_priority": Number(7),
        "vector_base": Number(0xF8),
        "next_command_word": Number(4),
        "single": Flag(),
        "needs_command_word_4": Flag(),
        "cascade_word": Number(0xFF),
        "auto_eoi": Flag(),
        "rotate_on_auto_eoi": Flag(),
        "special_fully_nested": Flag(),
        "special_mask": Flag(),
        "poll": Flag(),
        "read_in_service": Flag(),
        "output": Flag(),
    }

    def __init__(self, intr: IrqLine) -> None:
        self._intr = intr
        self.levels = 0
        self.reset()

    def reset(self) -> None:
        """Power-on: everything masked until ICW1 (the datasheet leaves it undefined). Inputs keep their levels."""
        self.edge_level_control = 0
        self.vector_base = 0
        self.cascade_word = 0
        self.rotate_on_auto_eoi = False
        self.single = False
        self.needs_command_word_4 = False
        self._initialize()
        self.interrupt_mask = 0xFF
        self.next_command_word = 0
        self.output = False
        self._intr.set_level(False)

    def _initialize(self) -> None:
        """What ICW1 resets."""
        self.edges = 0
        self.interrupt_mask = 0
        self.in_service = 0
        self.lowest_priority = 7
        self.auto_eoi = False
        self.special_fully_nested = False
        self.special_mask = False
        self.poll = False
        self.read_in_service = False

    def read(self, offset: int, size: int) -> int:
        """IRR or ISR at 0, IMR at 1; after a poll command either gives the poll byte."""
        if self.poll:
            self.poll = False
            line = self.highest_request()
            if line < 0:
                return 0
            self.begin_service(line)
            return 0x80 | line
        if offset == 1:
            return self.interrupt_mask
        return self.in_service if self.read_in_service else self.requests()

    def write(self, offset: int, size: int, value: int) -> None:
        """ICW1, OCW2 and OCW3 at 0; the other ICWs and OCW1 at 1."""
        value &= 0xFF
        if offset == 1:
            self._write_odd(value)
        elif value & ICW1_SELECT:
            self._initialize()
            self.single = bool(value & ICW1_SINGLE)
            self.needs_command_word_4 = bool(value & ICW1_NEEDS_ICW4)
            self.next_command_word = 2
        elif value & OCW3_SELECT:
            if value & 0b0100_0000:
                self.special_mask = bool(value & 0b0010_0000)
            self.poll = bool(value & OCW3_POLL)
            if value & 0b0010:
                self.read_in_service = bool(value & 0b0001)
        else:
            self._write_operation(value >> 5, value & 7)
        self.follow()

    def _write_odd(self, value: int) -> None:
        word = self.next_command_word
        if word == 0:
            self.interrupt_mask = value
        elif word == 2:
            self.vector_base = value & 0xF8
            self.next_command_word = 4 if self.single and self.needs_command_word_4 else 0 if self.single else 3
        elif word == 3:
            self.cascade_word = value
            self.next_command_word = 4 if self.needs_command_word_4 else 0
        else:
            self.auto_eoi = bool(value & ICW4_AUTO_EOI)
            self.special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
            self.next_command_word = 0

    def _write_operation(self, operation: int, line: int) -> None:
        """OCW2: ends of interrupt and rotation of priorities."""
        if operation in (0, 4):
            self.rotate_on_auto_eoi = operation == 4
        elif operation in (1, 5):  # not specific: the highest in service; the special mask hides masked ones
            serving = self._highest(self.in_service & ~self.interrupt_mask if self.special_mask else self.in_service)
            if serving >= 0:
                self.in_service &= ~(1 << serving)
                if operation == 5:
                    self.lowest_priority = serving
        elif operation in (3, 7):
            self.in_service &= ~(1 << line)
            if operation == 7:
                self.lowest_priority = line
        elif operation == 6:
            self.lowest_priority = line

    def set_input(self, line: int, asserted: bool) -> None:
        """An input pin changes; a rising edge is latched until it is acknowledged or falls."""
        bit = 1 << line
        if asserted:
            if self.levels & bit:
                return
            self.levels |= bit
            self.edges |= bit
        else:
            if not self.levels & bit:
                return
            self.levels &= ~bit
            self.edges &= ~bit
        self.follow()

    def requests(self) -> int:
        """The interrupt request register."""
        return self.levels & (self.edges | self.edge_level_control)

    def highest_request(self) -> int:
        """The input to serve next, or -1: not masked, and of higher priority than what is in service."""
        pending = self.requests() & ~self.interrupt_mask
        if not pending or self.next_command_word:
            return -1
        serving = self.in_service
        if self.special_mask:
            serving &= ~self.interrupt_mask
        wanted = self._highest(pending)
        if self.special_fully_nested and wanted == CASCADE:
            serving &= ~(1 << CASCADE)  # the slave may interrupt itself with something more urgent
        if not serving:
            return wanted
        first = self.lowest_priority + 1
        return wanted if (wanted - first) & 7 < (self._highest(serving) - first) & 7 else -1

    def _highest(self, lines: int) -> int:
        """The line of highest priority in a set, or -1 when it is empty."""
        if not lines:
            return -1
        first = (self.lowest_priority + 1) & 7
        rotated = (lines >> first | lines << (8 - first)) & 0xFF
        return ((rotated & -rotated).bit_length() - 1 + first) & 7

    def begin_service(self, line: int) -> None:
        """The acknowledge cycle: the output falls, and rises again when more is pending."""
        self.edges &= ~(1 << line)
        if not self.auto_eoi:
            self.in_service |= 1 << line
        elif self.rotate_on_auto_eoi:
            self.lowest_priority = line
        if self.output:
            self.output = False
            self._intr.set_level(False)
        self.follow()

    def follow(self) -> None:
        """Let the output follow the registers."""
        output = self.highest_request() >= 0
        if output != self.output:
            self.output = output
            self._intr.set_level(output)

    def resume(self) -> None:
        """Drive the output even when it did not change."""
        self._intr.set_level(self.output)


class MasterPic8259(Pic8259):
    """The chip whose output is the CPU's INTR pin."""

    name = "pic8259-master"


class SlavePic8259(Pic8259):
    """The chip on input 2 of the other."""

    name = "pic8259-slave"


class EdgeLevelControl(SavedDevice):
    """ELCR1 and ELCR2: a set bit makes the input level-triggered. The values live in the two chips."""

    name = "pic8259-elcr"

    def __init__(self, master: Pic8259, slave: Pic8259) -> None:
        self._chips = ((master, ELCR_MASTER), (slave, ELCR_SLAVE))

    def read(self, offset: int, size: int) -> int:
        """ELCR1 at 0, ELCR2 at 1."""
        return self._chips[offset][0].edge_level_control if offset < 2 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Inputs that the ISA bus needs as edges stay edges."""
        if offset < 2:
            chip, writable = self._chips[offset]
            chip.edge_level_control = value & writable
            chip.follow()

    def reset(self) -> None:
        """All edges."""
        for chip, _ in self._chips:
            chip.edge_level_control = 0
            chip.follow()


class InputLine:
    """One interrupt input of the pair, as an IrqLine."""

    def __init__(self, pair: "Pic8259Pair", line: int) -> None:
        self._pair = pair
        self._line = line

    def set_level(self, asserted: bool) -> None:
        """Set the input pin."""
        self._pair.set_irq(self._line, asserted)


class CascadeLine:
    """The slave's output, which is input 2 of the master."""

    def __init__(self, master: Pic8259) -> None:
        self._master = master

    def set_level(self, asserted: bool) -> None:
        """Set the master's input 2."""
        self._master.set_input(CASCADE, asserted)


class Pic8259Pair:
    """Sixteen inputs, 2 being the cascade. The builder claims ``master``, ``slave`` and ``elcr``."""

    def __init__(self, *, intr: IrqLine, watcher: Watcher = nobody_watches) -> None:
        self._watcher = watcher
        self.master = MasterPic8259(intr)
        self.slave = SlavePic8259(CascadeLine(self.master))
        self.elcr = EdgeLevelControl(self.master, self.slave)

    def line(self, number: int) -> IrqLine:
        """Input ``number`` as a pin to give to a device."""
        return InputLine(self, number)

    def set_irq(self, line: int, asserted: bool) -> None:
        """Set input ``line``, 0 to 15."""
        if line >= 8:
            self.slave.set_input(line - 8, asserted)
        elif line != CASCADE:
            self.master.set_input(line, asserted)

    def acknowledge(self) -> Vector:
        """The CPU's INTA cycles: the vector of the highest request. Nothing there any more: the spurious 7 or 15."""
        master, slave = self.master, self.slave
        line = master.highest_request()
        if line < 0:
            self._watcher(DeviceEvent(master.name, "spurious interrupt", master.vector_base | 7))
            return Vector(master.vector_base | 7)
        if line != CASCADE or master.single:
            master.begin_service(line)
            return Vector(master.vector_base | line)
        slave_line = slave.highest_request()
        master.begin_service(CASCADE)
        if slave_line < 0:
            self._watcher(DeviceEvent(slave.name, "spurious interrupt", slave.vector_base | 7))
            return Vector(slave.vector_base | 7)
        slave.begin_service(slave_line)
        return Vector(slave.vector_base | slave_line)
