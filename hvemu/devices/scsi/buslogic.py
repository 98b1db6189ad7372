"""The BusLogic BT-958, a PCI host adapter for an Ultra wide SCSI bus: its four registers and its PCI identity.

A driver gives commands byte by byte through the command register; SCSI commands lie in RAM and are announced by
mailboxes. Those are served a while after the announcement, by an event of virtual time, never within the driver's OUT,
and neither is anything else that reads or writes RAM. While a command waits and the next incoming mailbox is
full, the adapter looks at that again and again.

Interrupts that come while another is pending wait until that is reset, so that a driver that has read the interrupt
register and then resets it loses none.

Not emulated: resets of the bus by others (interrupt bit 3), what buslogic_commands.py and buslogic_ccb.py say.
Spec: the registers in Linux's drivers/scsi/BusLogic.h and FreeBSD's sys/dev/buslogic/btreg.h.
"""

from collections import deque
from typing import Any, Final

from hvemu.devices.contract import (
    Clock,
    DeviceEvent,
    DeviceState,
    GuestMemory,
    IrqLine,
    Watcher,
    nobody_watches,
)
from hvemu.devices.deadline import Deadline
from hvemu.devices.dma import LONGEST_REQUEST
from hvemu.devices.pci import INTERRUPT_LINE, PciFunction
from hvemu.devices.saved import (
    Due,
    Flag,
    Number,
    Queue,
    SavedDevice,
    adopt_fields,
    fields_for,
    parse_fields,
    plain_fields,
)
from hvemu.devices.scsi.bus import ScsiBus
from hvemu.devices.scsi.buslogic_ccb import INVALID_ACTION, NORMAL, Ending, carry_out, fetch, finish
from hvemu.devices.scsi.buslogic_commands import ROWS, START_MAILBOX, Firmware, InvalidCommand
from hvemu.devices.scsi.buslogic_mailboxes import (
    ABORT,
    COMPLETED,
    COMPLETED_WITH_ERROR,
    NOT_FOUND,
    START,
    Mailboxes,
    Outgoing,
)

CONTROL = STATUS = 0
COMMAND = DATA_IN = 1
INTERRUPT, GEOMETRY = 2, 3
HARD_RESET, SOFT_RESET, INTERRUPT_RESET, BUS_RESET = 1 << 7, 1 << 6, 1 << 5, 1 << 4
DIAGNOSTIC_ACTIVE, INITIALIZATION_REQUIRED, READY = 1 << 7, 1 << 5, 1 << 4
COMMAND_BUSY, DATA_READY, COMMAND_INVALID = 1 << 3, 1 << 2, 1 << 0
INTERRUPT_VALID, COMMAND_COMPLETE, OUTGOING_AVAILABLE, INCOMING_LOADED = 1 << 7, 1 << 2, 1 << 1, 1 << 0
EXTENDED_TRANSLATION: Final = 1 << 7
SERVICE_TIME: Final = 20_000
"""Nanoseconds from an announcement to its service."""
DIAGNOSTIC_TIME: Final = 5_000_000
"""Nanoseconds that a reset takes."""
POLL_TIME: Final = 1_000_000
"""Nanoseconds between two looks at an incoming mailbox that is full."""
_NONE: Final = -1
_LONGEST_PARAMETERS: Final = 2 + 255


class BusLogicFunction(PciFunction):
    """The PCI identity; both windows show the same registers."""

    name = "buslogic"
    vendor_id = 0x104B
    device_id = 0x1040
    revision = 0x08
    class_code = 0x010000
    interrupt_pin = 1

    def __init__(self, registers: "BusLogic") -> None:
        self._registers = registers
        super().__init__()

    def describe(self) -> None:
        """Ports and memory."""
        self.put_behind(0, 4, self._registers, is_port=True)
        self.put_behind(1, 0x1000, self._registers, is_port=False)

    def set_defaults(self) -> None:
        """The subsystem is the device."""
        self.put(0x2C, 2, self.vendor_id)
        self.put(0x2E, 2, self.device_id)
        self._tell()

    def configuration_written(self, offset: int, size: int) -> None:
        """The adapter reports its interrupt line."""
        self._tell()

    def resume(self) -> None:
        """The same after loading a state."""
        super().resume()
        self._tell()

    def _tell(self) -> None:
        self._registers.firmware.interrupt_line = self.config[INTERRUPT_LINE]


class BusLogic(SavedDevice):
    """The registers."""

    name = "buslogic-registers"
    layout = {
        "interrupt": Number(0xFF), "pending": Number(0x7F), "invalid": Flag(), "resetting": Flag(),
        "opcode": Number(0xFF, minimum=_NONE), "parameters": Queue(_LONGEST_PARAMETERS), "reply": Queue(255),
        "due": Due(), "busy": Due(),
    }  # fmt: skip

    def __init__(
        self, bus: ScsiBus, *, memory: GuestMemory, clock: Clock, irq: IrqLine, watcher: Watcher = nobody_watches
    ) -> None:
        self._bus, self._memory, self._clock, self._irq, self._watcher = bus, memory, clock, irq, watcher
        self.firmware = Firmware(bus, memory)
        self.due = Deadline(clock, self._serve)
        """When the mailboxes are looked at."""
        self.busy = Deadline(clock, self._end_busy)
        """When a reset or a command that moves memory is done."""
        self.reset()

    def reset(self) -> None:
        """As after power-on; the targets know of it by themselves."""
        self.due.arm(None)
        self.busy.arm(None)
        self.interrupt = self.pending = 0
        self.invalid = self.resetting = False
        self.opcode = _NONE
        self.parameters: deque[int] = deque()
        self.reply: deque[int] = deque()
        self.firmware.reset()
        self._drive()

    def quiesce(self) -> None:
        """Serve what was announced."""
        if self.due.at is not None:
            self.due.arm(None)
            self._serve()

    def state(self) -> DeviceState:
        """Registers, firmware and mailboxes."""
        fields = plain_fields(self, self.layout)
        fields["firmware"] = plain_fields(self.firmware, Firmware.layout)
        fields["mailboxes"] = plain_fields(self.firmware.mailboxes, Mailboxes.layout)
        return DeviceState(self.name, self.version, fields)

    def from_state(self, state: DeviceState) -> None:
        """All or none."""
        raw: dict[str, Any] = dict(fields_for(self, state))
        firmware = parse_fields(Firmware.layout, raw.pop("firmware", None), "buslogic-firmware")
        mailboxes = parse_fields(Mailboxes.layout, raw.pop("mailboxes", None), "buslogic-mailboxes")
        adopt_fields(self, parse_fields(self.layout, raw, self.name))
        adopt_fields(self.firmware, firmware)
        adopt_fields(self.firmware.mailboxes, mailboxes)
        self.resume()

    def resume(self) -> None:
        """The line follows the loaded state."""
        self._drive()

    # Registers

    def read(self, offset: int, size: int) -> int:
        """Status, data in, interrupt, geometry; there is nothing behind them."""
        if offset == STATUS:
            return self._status()
        if offset == DATA_IN:
            return self._next_of_reply()
        if offset == INTERRUPT:
            return self.interrupt
        return EXTENDED_TRANSLATION if offset == GEOMETRY else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Control and command; the others are read-only."""
        if offset == CONTROL:
            self._control(value)
        elif offset == COMMAND:
            self._command(value)

    def _status(self) -> int:
        if self.resetting:
            return DIAGNOSTIC_ACTIVE
        status = COMMAND_INVALID if self.invalid else 0
        if not self.firmware.mailboxes.count:
            status |= INITIALIZATION_REQUIRED
        if self.busy.at is not None:
            return status | COMMAND_BUSY
        if self.reply:
            return status | DATA_READY
        return status | (READY if self.opcode == _NONE else 0)

    def _next_of_reply(self) -> int:
        if not self.reply:
            return 0
        byte = self.reply.popleft()
        if not self.reply:
            self._end_command()
        return byte

    def _control(self, value: int) -> None:
        if value & (HARD_RESET | SOFT_RESET):
            self.reset()
            if value & HARD_RESET:
                self._bus.reset()
            self.resetting = True
            self.busy.arm(self._clock.now() + DIAGNOSTIC_TIME)
            return
        if value & INTERRUPT_RESET:
            self.invalid = False
            self.interrupt = self.pending | INTERRUPT_VALID if self.pending else 0
            self.pending = 0
            self._drive()
        if value & BUS_RESET:
            self._bus.reset()

    # Interrupts

    def _raise(self, bits: int) -> None:
        if self.interrupt:
            self.pending |= bits & ~(self.interrupt & COMMAND_COMPLETE)
        else:
            self.interrupt = bits | INTERRUPT_VALID
        self._drive()

    def _drive(self) -> None:
        self._irq.set_level(bool(self.interrupt) and self.firmware.interrupts)

    # Commands

    def _command(self, value: int) -> None:
        if self.busy.at is not None:
            return  # the register is busy, and the byte is lost
        if self.opcode != _NONE and not self.reply:
            self.parameters.append(value)
        elif value == START_MAILBOX and self.firmware.mailboxes.count:
            self._announce()  # whatever else is going on
            return
        elif self.reply:
            return
        else:
            self.invalid = False
            self.opcode = value
        self._collect()

    def _announce(self) -> None:
        if self.due.at is None or self.due.at > self._clock.now() + SERVICE_TIME:
            self.due.arm(self._clock.now() + SERVICE_TIME)

    def _collect(self) -> None:
        """Carry the command out when all of its parameters are there."""
        row = ROWS.get(self.opcode)
        if row is None:
            self._refuse()
        elif row.is_complete(bytes(self.parameters)):
            if row.transfers:
                self.busy.arm(self._clock.now() + SERVICE_TIME)
            else:
                self._execute()

    def _execute(self) -> None:
        try:
            self.reply = deque(ROWS[self.opcode].act(self.firmware, bytes(self.parameters)))
        except InvalidCommand:
            self._refuse()
            return
        self.parameters.clear()
        self._drive()
        if not self.reply:
            self._end_command()

    def _end_command(self) -> None:
        row, self.opcode = ROWS.get(self.opcode), _NONE
        if row is not None and row.completes:
            self._raise(COMMAND_COMPLETE)

    def _refuse(self) -> None:
        self._watcher(DeviceEvent(self.name, "command refused", self.opcode))
        self.invalid = True
        self.parameters.clear()
        self.opcode = _NONE
        self._raise(COMMAND_COMPLETE)

    def _end_busy(self) -> None:
        if self.resetting:
            self.resetting = False
        elif self.opcode in ROWS and ROWS[self.opcode].is_complete(bytes(self.parameters)):
            self._execute()

    # Mailboxes

    def _serve(self) -> None:
        """At most one pass over the outgoing mailboxes, and at most about LONGEST_REQUEST bytes."""
        mailboxes, happened, spent = self.firmware.mailboxes, 0, 0
        for _ in range(mailboxes.count):
            found = mailboxes.next()
            if found is None:
                break
            if not mailboxes.can_report():
                self.due.arm(self._clock.now() + POLL_TIME)
                break
            mailboxes.free(found.number)
            spent += self._process(found)
            happened |= INCOMING_LOADED | (OUTGOING_AVAILABLE if self.firmware.outgoing_interrupt else 0)
            if spent >= LONGEST_REQUEST:
                self.due.arm(self._clock.now() + SERVICE_TIME)
                break
        if happened:
            self._raise(happened)

    def _process(self, found: Outgoing) -> int:
        """Carry out what an outgoing mailbox asks for and report its end; returns the cost."""
        mailboxes = self.firmware.mailboxes
        if found.action == ABORT:  # commands end as they are taken, so there is never one to abort
            mailboxes.report(found.ccb, Ending(NORMAL), NOT_FOUND)
            return 0
        if found.action == START:
            ccb = fetch(self._memory, found.ccb, wide=mailboxes.wide, extended_lun=not self.firmware.legacy_luns)
            ending = carry_out(self._bus, self._memory, ccb)
        else:
            self._watcher(DeviceEvent(self.name, "invalid action code", found.action))
            ending = Ending(INVALID_ACTION)
        finish(self._memory, found.ccb, ending)
        good = not ending.host_status and not ending.target_status
        mailboxes.report(found.ccb, ending, COMPLETED if good else COMPLETED_WITH_ERROR)
        return ending.cost
