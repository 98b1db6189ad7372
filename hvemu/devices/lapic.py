"""The local APIC of one processor (xAPIC, memory-mapped): three 256-bit registers and six local vectors.

It stands between everything that interrupts and the CPU: the I/O APIC calls ``deliver``, the board sets LINT0
and LINT1, the CPU asks ``pending`` and calls ``acknowledge``. Globally disabled, LINT0 is the INTR pin itself.
Whether the page answers at all when globally disabled is the board's affair.

Not emulated: x2APIC, TSC-deadline, other processors (INIT and start-up IPIs go nowhere), SMI, the APIC bus.
Spec: Intel SDM volume 3, chapter 10.
"""

from collections.abc import Callable
from typing import Any, Final

from hvemu.devices import lapic_registers as names
from hvemu.devices.contract import Clock, Device, DeviceState, IrqLine
from hvemu.devices.eoi_flag import EoiFlag, NoMemory
from hvemu.devices.lapic_registers import Vectors
from hvemu.devices.lapic_timer import LapicTimer
from hvemu.devices.saved import Flag, Kind, Number, Numbers, adopt_fields, fields_for, parse_fields, plain_fields
from hvemu.vocabulary.addresses import Vector
from hvemu.vocabulary.machine_map import LAPIC_BUS_HZ, LAPIC_ID

COMPUTED: Final = -1  # in the register table: ask, do not look up


class LocalApic(Device):
    """One page of registers, 32 bits each on 16-byte boundaries."""

    name = "lapic"
    widest_access = 4
    layout: dict[str, Kind] = {
        "errors": Number(0xFF),
        "lint0": Flag(),
        "lint1": Flag(),
        "external_latch": Flag(),
        "enabled_globally": Flag(),
        "output": Flag(),
    }

    def __init__(
        self,
        *,
        clock: Clock,
        intr: IrqLine,
        acknowledge_external: Callable[[], int],
        eoi_broadcast: Callable[[int], None],
        nmi: Callable[[], None],
        bus_hz: int = LAPIC_BUS_HZ,
        identifier: int = LAPIC_ID,
        eoi_flag: EoiFlag | None = None,
    ) -> None:
        self._intr = intr
        self._acknowledge_external = acknowledge_external
        self._eoi_broadcast = eoi_broadcast
        self._nmi = nmi
        self._identifier = identifier
        self._eoi_flag = eoi_flag or EoiFlag(NoMemory())
        self.timer = LapicTimer(clock, bus_hz, self._timer_expired)
        self.lint0 = self.lint1 = False
        self.enabled_globally = True
        self._clear()

    def reset(self) -> None:
        """Power-on: globally enabled, software-disabled, everything masked. The pins keep their levels."""
        self.enabled_globally = True
        self._eoi_flag.reset()
        self._clear()

    def _clear(self) -> None:
        self.registers = [0] * 256
        self._mark_computed()
        self.registers[names.ID] = self._identifier << 24
        self.registers[names.VERSION] = names.VERSION_VALUE
        self.registers[names.DFR] = 0xFFFF_FFFF
        self.registers[names.SVR] = 0xFF
        for number in names.LOCAL_VECTORS:
            self.registers[number] = names.LVT_MASKED
        self.vectors = Vectors()
        self._eoi_flag.withdraw()
        self.errors = 0
        self.external_latch = False  # an ExtINT message that waits to be acknowledged
        self.timer.reset()
        self.output = False
        self._intr.set_level(False)
        self._follow()

    def set_virtual_wire(self) -> None:
        """As a BIOS leaves it: enabled, LINT0 passes the 8259s through, LINT1 is NMI."""
        self._write_register(names.SVR, names.SVR_ENABLED | 0xFF)
        self._write_register(names.LVT_LINT0, names.EXTINT << 8)
        self._write_register(names.LVT_LINT1, names.NMI << 8)

    def set_enabled_globally(self, enabled: bool) -> None:
        """Bit 11 of IA32_APIC_BASE. Disabling loses every register."""
        if enabled != self.enabled_globally:
            self.enabled_globally = enabled
            self._clear()

    def set_eoi_flag(self, control: int) -> None:
        """A guest in a virtual machine names the flag in its memory that ends interrupts too; bit 0 enables it."""
        self._take_eoi()
        self._eoi_flag.withdraw()
        self._eoi_flag.control = control

    # The CPU's side

    def pending(self) -> bool:
        """Whether INTR is asserted."""
        return self.output

    def acknowledge(self) -> Vector:
        """The CPU takes the interrupt: the vector to deliver."""
        if not self.enabled_globally:
            return Vector(self._acknowledge_external())
        vector = self._deliverable()
        if vector >= 0:
            self.vectors.begin(vector)
            if self.vectors.is_alone(vector):
                self._eoi_flag.offer()
        elif self._external():
            self.external_latch = False
            vector = self._acknowledge_external()
        else:
            vector = self.registers[names.SVR] & 0xFF  # spurious: nothing goes into service
        self._follow()
        return Vector(vector)

    @property
    def task_priority(self) -> int:
        """The task priority register; CR8 is its upper four bits."""
        return self.registers[names.TPR]

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self.registers[names.TPR] = value & 0xFF
        self._follow()

    # The board's side

    def deliver(self, vector: int, level_triggered: bool, delivery_mode: int) -> None:
        """A message from the I/O APIC, or one that this APIC sent to itself."""
        if not self.enabled_globally:
            return
        if delivery_mode in (names.FIXED, names.LOWEST_PRIORITY):
            self._accept(vector & 0xFF, level_triggered)
        elif delivery_mode == names.NMI:
            self._nmi()
        elif delivery_mode == names.EXTINT:
            self.external_latch = True
            self._follow()

    def set_lint0(self, asserted: bool) -> None:
        """The pin that the 8259s drive on a PC."""
        rises = asserted and not self.lint0
        self.lint0 = asserted
        if rises:
            self._local_interrupt(names.LVT_LINT0)
        self._follow()

    def set_lint1(self, asserted: bool) -> None:
        """The pin that NMI drives on a PC."""
        rises = asserted and not self.lint1
        self.lint1 = asserted
        if rises and not self.enabled_globally:
            self._nmi()
        elif rises:
            self._local_interrupt(names.LVT_LINT1)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """A register; between registers there are zeros."""
        if offset & 0xF:
            return self._read_part(offset, size)
        number = offset >> 4 & 0xFF
        value = self.registers[number]
        if value < 0:
            value = self._computed(number)
        return value if size == 4 else value & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Only aligned 32-bit writes are defined; others are dropped."""
        if size == 4 and not offset & 0xF:
            self._write_register(offset >> 4 & 0xFF, value & 0xFFFF_FFFF)

    def _read_part(self, offset: int, size: int) -> int:
        if offset & 0xC:
            return 0
        return self.read(offset & ~3, 4) >> 8 * (offset & 3) & ((1 << 8 * size) - 1)

    def _computed(self, number: int) -> int:
        self._take_eoi()
        if number == names.PPR:
            return self.vectors.processor_priority(self.registers[names.TPR])
        if number == names.CURRENT_COUNT:
            return self.timer.current()
        return self.vectors.word(number)

    def _write_register(self, number: int, value: int) -> None:
        if number == names.EOI:
            self._take_eoi()
            self._eoi_flag.withdraw()
            self._end_of_interrupt()
        elif number == names.TPR:
            self.task_priority = value
        elif number == names.ICR_LOW:
            self.registers[names.ICR_LOW] = value & names.ICR_WRITABLE
            self._send(value)
        elif number in names.LOCAL_VECTORS:
            self._write_local_vector(number, value & names.WRITABLE[number])
        elif number == names.SVR:
            self._write_spurious_vector(value & names.SVR_WRITABLE)
        elif number == names.DFR:
            self.registers[names.DFR] = value | 0x0FFF_FFFF
        elif number == names.ESR:
            self.registers[names.ESR], self.errors = self.errors, 0
        elif number == names.INITIAL_COUNT:
            self.registers[number] = value
            self.timer.start(value)
        elif number == names.DIVIDE_CONFIGURATION:
            self.registers[number] = value & 0b1011
            self.timer.divide(value)
        elif number in names.WRITABLE:
            self.registers[number] = value & names.WRITABLE[number]

    def _write_local_vector(self, number: int, value: int) -> None:
        if not self.registers[names.SVR] & names.SVR_ENABLED:
            value |= names.LVT_MASKED
        self.registers[number] = value
        if number == names.LVT_TIMER:
            self.timer.set_mode(value >> 17 & 1, value >> 16 & 1)
        elif number == names.LVT_LINT0:
            if self.lint0 and value & names.LVT_LEVEL:
                self._local_interrupt(names.LVT_LINT0)
            self._follow()

    def _write_spurious_vector(self, value: int) -> None:
        """Software-disabling sets the mask bit of every local vector."""
        self.registers[names.SVR] = value
        if not value & names.SVR_ENABLED:
            for number in names.LOCAL_VECTORS:
                self._write_local_vector(number, self.registers[number])
        self._follow()

    def _take_eoi(self) -> None:
        """The guest may have ended its interrupt in memory: let it be so before anybody looks."""
        if self._eoi_flag.take():
            self._end_of_interrupt()

    def _end_of_interrupt(self) -> None:
        vector, level_triggered = self.vectors.end()
        if level_triggered:
            local = self.registers[names.LVT_LINT0]
            if self.lint0 and local & names.LVT_LEVEL and local & 0xFF == vector:
                self._local_interrupt(names.LVT_LINT0)  # still asserted
            self._eoi_broadcast(vector)
        self._follow()

    def _send(self, command: int) -> None:
        """The interrupt command register. Only messages to this processor arrive anywhere."""
        mode, vector, shorthand = command >> 8 & 7, command & 0xFF, command >> 18 & 3
        if mode in (names.FIXED, names.LOWEST_PRIORITY) and vector < 16:
            self._error(names.ERROR_SEND_ILLEGAL_VECTOR)
        elif shorthand in (1, 2) or (shorthand == 0 and self._is_addressed(bool(command >> 11 & 1))):
            self.deliver(vector, False, mode)

    def _is_addressed(self, logical: bool) -> bool:
        destination = self.registers[names.ICR_HIGH] >> 24
        if destination == 0xFF:
            return True
        if not logical:
            return destination == self.registers[names.ID] >> 24
        mine = self.registers[names.LDR] >> 24
        if self.registers[names.DFR] >> 28 == 0xF:  # flat model
            return bool(destination & mine)
        return destination >> 4 == mine >> 4 and bool(destination & mine & 0xF)

    def _local_interrupt(self, number: int) -> None:
        """A local source fires. ExtINT is a level, looked at when the output is worked out."""
        local = self.registers[number]
        if not local & names.LVT_MASKED and self.enabled_globally:
            mode = local >> 8 & 7
            if mode == names.NMI:
                self._nmi()
            elif mode == names.FIXED:
                self._accept(local & 0xFF, number == names.LVT_LINT0 and bool(local & names.LVT_LEVEL))

    def _timer_expired(self) -> None:
        self._local_interrupt(names.LVT_TIMER)

    def _error(self, error: int) -> None:
        self.errors |= error
        local = self.registers[names.LVT_ERROR]
        if not local & names.LVT_MASKED and local & 0xF0:  # an illegal vector here must not raise itself again
            self._accept(local & 0xFF, False)

    def _accept(self, vector: int, level_triggered: bool) -> None:
        if not self.registers[names.SVR] & names.SVR_ENABLED:
            return
        if vector < 16:
            self._error(names.ERROR_RECEIVE_ILLEGAL_VECTOR)
            return
        self._take_eoi()
        self.vectors.request(vector, level_triggered)
        self._eoi_flag.withdraw()  # its end now has to be told: another interrupt waits for it
        self._follow()

    def _deliverable(self) -> int:
        """The vector to deliver next, or -1."""
        if not self.registers[names.SVR] & names.SVR_ENABLED:
            return -1
        return self.vectors.deliverable(self.registers[names.TPR])

    def _external(self) -> bool:
        """Whether an 8259 interrupt is let through."""
        local = self.registers[names.LVT_LINT0]
        return self.external_latch or (self.lint0 and not local & names.LVT_MASKED and local >> 8 & 7 == names.EXTINT)

    def _follow(self) -> None:
        output = self._deliverable() >= 0 or self._external() if self.enabled_globally else self.lint0
        if output != self.output:
            self.output = output
            self._intr.set_level(output)

    def state(self) -> DeviceState:
        """Registers, request and service bits, pins and timer."""
        self._take_eoi()
        fields = plain_fields(self, self.layout)
        fields["registers"] = [max(value, 0) for value in self.registers]
        fields["vectors"] = plain_fields(self.vectors, Vectors.layout)
        fields["timer"] = plain_fields(self.timer, LapicTimer.layout)
        fields["eoi_flag"] = plain_fields(self._eoi_flag, EoiFlag.layout)
        return DeviceState(self.name, self.version, fields)

    def from_state(self, state: DeviceState) -> None:
        """Adopt all of it and drive INTR."""
        raw: dict[str, Any] = dict(fields_for(self, state))
        timer = parse_fields(LapicTimer.layout, raw.pop("timer", None), f"{self.name} timer")
        vectors = parse_fields(Vectors.layout, raw.pop("vectors", None), f"{self.name} vectors")
        eoi_flag = parse_fields(EoiFlag.layout, raw.pop("eoi_flag", None), f"{self.name} EOI flag")
        registers = Numbers(256, 0xFFFF_FFFF).parse(raw.pop("registers", None))
        adopt_fields(self, parse_fields(self.layout, raw, self.name))
        adopt_fields(self.vectors, vectors)
        adopt_fields(self.timer, timer)
        adopt_fields(self._eoi_flag, eoi_flag)
        self.registers = registers
        self._mark_computed()
        self._intr.set_level(self.output)

    def _mark_computed(self) -> None:
        for number in (names.PPR, names.CURRENT_COUNT, *range(names.ISR, names.ESR)):
            self.registers[number] = COMPUTED
