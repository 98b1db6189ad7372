"""The board: every chip of the PC, wired top to bottom in one place.

Called by the builder. Addresses and lines come from the machine map; chips get their five ports and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvemu.devices.acpi_pm import AcpiPm
from hvemu.devices.bus import Bus
from hvemu.devices.cmos_rtc import CmosRtc
from hvemu.devices.contract import CharacterBackend, Device, GuestMemory, NoBackend, Watcher
from hvemu.devices.debug_ports import DebugConsole, DebugExit, PostPort, ResetControl, SystemControlPortA
from hvemu.devices.eoi_flag import EoiFlag
from hvemu.devices.fw_cfg import FwCfg, standard_entries
from hvemu.devices.i8042 import I8042
from hvemu.devices.ioapic import IoApic
from hvemu.devices.lapic import LocalApic
from hvemu.devices.pci import PciHost
from hvemu.devices.pci_chipset import HostBridge, IsaBridge, PowerManagement
from hvemu.devices.pic8259 import Pic8259Pair
from hvemu.devices.pit8254 import Pit8254, SystemControlPortB
from hvemu.devices.uart16550 import Uart16550
from hvemu.devices.vga_text import VgaText
from hvemu.machine.backdoor_port import BackdoorPort
from hvemu.machine.bios_port import BiosCallPort
from hvemu.machine.clock import VirtualClock
from hvemu.machine.configuration import MachineConfiguration
from hvemu.machine.drives import AttachedDrive
from hvemu.machine.interrupts import CallLine, FanOut, InterruptPin, NmiPin
from hvemu.machine.storage import Storage
from hvemu.vocabulary import machine_map as at
from hvemu.vocabulary.addresses import Gsi, Port
from hvemu.vocabulary.vmware import BACKDOOR_PORT


@dataclass
class Backends:
    """Where the board's character devices lead."""

    serial: CharacterBackend
    second_serial: CharacterBackend
    debug_console: CharacterBackend


NOWHERE = Backends(NoBackend(), NoBackend(), NoBackend())


class Board:
    """All chips, by what they are."""

    def __init__(
        self,
        configuration: MachineConfiguration,
        clock: VirtualClock,
        ports: Bus,
        mmio: Bus,
        backends: Backends,
        drives: Sequence[AttachedDrive],
        memory: GuestMemory,
        *,
        watcher: Watcher,
        power_off: Callable[[], None],
        debug_exit: Callable[[int], None],
        bios_call: Callable[[], None],
        attend: Callable[[], None],
        eoi_flag: EoiFlag,
        backdoor: Callable[[], int] | None = None,
    ) -> None:
        self.reset_requested = False
        self._attend = attend

        # Interrupts: ISA lines -> 8259 pair and I/O APIC -> local APIC -> the CPU's pins
        self.interrupt = InterruptPin()
        self.nmi = NmiPin()
        self.lapic = LocalApic(
            clock=clock,
            intr=self.interrupt,
            acknowledge_external=lambda: self.pic.acknowledge(),
            eoi_broadcast=lambda vector: self.ioapic.end_of_interrupt(vector),
            nmi=self.nmi.raise_nmi,
            eoi_flag=eoi_flag,
        )
        self.pic = Pic8259Pair(intr=CallLine(self.lapic.set_lint0), watcher=watcher)
        self.ioapic = IoApic(deliver=self.lapic.deliver)

        # Timers and clocks
        self.pit = Pit8254(clock=clock, irq0=self._line(at.IRQ_TIMER))
        self.rtc = CmosRtc(clock=clock, irq8=self._line(at.IRQ_RTC), start_time=configuration.rtc)

        # Consoles
        # OUT2 does not gate the interrupt, as in QEMU: small kernels that never set it expect that.
        self.serial, self.second_serial = (
            Uart16550(irq=self._line(line), clock=clock, backend=backend, watcher=watcher, out2_gates_irq=False)
            for line, backend in ((at.IRQ_COM1, backends.serial), (at.IRQ_COM2, backends.second_serial))
        )
        self.keyboard = I8042(
            irq1=self._line(at.IRQ_KEYBOARD), clock=clock, reset_line=self.request_reset, a20=lambda enabled: None
        )
        self.vga = VgaText(clock=clock)

        # Power, reset, PCI
        self.power = AcpiPm(clock=clock, irq9=self._line(at.IRQ_ACPI), power_off=power_off, watcher=watcher)
        reset_control = ResetControl(on_reset=self.request_reset)
        self.pci = PciHost(reset_control=reset_control)
        self.pci.add(0, 0, HostBridge())
        self.pci.add(1, 0, IsaBridge())
        self.pci.add(1, 3, PowerManagement(pm_base=Port(at.ACPI_PM_BASE), interrupt_line=at.IRQ_ACPI))
        self.pci.connect(ports, mmio)
        self.storage = Storage(drives, clock=clock, memory=memory, line=self._line, pci=self.pci, watcher=watcher)
        self.firmware_configuration = FwCfg(
            entries=standard_entries(memory_size=configuration.memory, command_line=configuration.append)
        )
        system_control_a = SystemControlPortA(on_reset=self.request_reset, a20=lambda enabled: None)

        self._quiesce_others: Callable[[], None] = lambda: None
        self.acknowledge: Callable[[], int] = self.lapic.acknowledge
        """Answers the CPU that takes an interrupt: the vector."""
        self.console_input: Callable[[bytes], object] = self.serial.receive
        """Where what is typed at the machine's console goes."""

        self._windows: list[tuple[Bus, int, int, Device]] = [
            (ports, at.PIC_MASTER, 2, self.pic.master),
            (ports, at.PIC_SLAVE, 2, self.pic.slave),
            (ports, at.PIC_ELCR, 2, self.pic.elcr),
            (ports, at.PIT_BASE, 4, self.pit),
            (ports, at.I8042_DATA, 1, self.keyboard.data),
            (ports, at.SYSTEM_CONTROL_B, 1, SystemControlPortB(clock=clock, timer=self.pit)),
            (ports, at.I8042_COMMAND, 1, self.keyboard.command),
            (ports, at.CMOS_BASE, 2, self.rtc),
            (ports, at.POST_PORT, 1, PostPort(watcher=watcher)),
            (ports, at.SYSTEM_CONTROL_A, 1, system_control_a),
            (ports, at.BIOS_CALL_PORT, 1, BiosCallPort(on_call=bios_call)),
            (ports, at.DEBUG_CONSOLE_PORT, 1, DebugConsole(backend=backends.debug_console)),
            (ports, at.DEBUG_EXIT_PORT, 4, DebugExit(on_exit=debug_exit)),
            (ports, at.COM1_BASE, 8, self.serial),
            (ports, at.COM2_BASE, 8, self.second_serial),
            (ports, 0x3B0, 0x30, self.vga),
            (ports, at.FW_CFG_BASE, 2, self.firmware_configuration),
            (ports, at.ACPI_PM_BASE, 12, self.power),
            (ports, at.PCI_CONFIG_ADDRESS, 4, self.pci.address),
            (ports, at.PCI_CONFIG_DATA, 4, self.pci.data),
            (mmio, at.IOAPIC_BASE, at.IOAPIC_SIZE, self.ioapic),
            (mmio, at.LAPIC_BASE, at.LAPIC_SIZE, self.lapic),
        ]
        self._windows += [(ports, base, length, device) for base, length, device in self.storage.windows]
        if backdoor is not None:
            self._windows.append((ports, BACKDOOR_PORT, 4, BackdoorPort(on_call=backdoor)))
        for bus, base, length, device in self._windows:
            bus.claim(base, length, device)
        self._configuration = configuration
        self.power_on()

    def use_events(self, console_input: Callable[[bytes], object], quiesce: Callable[[], None]) -> None:
        """The CPU's pin and the console are those of a paravirtual guest, which knows nothing of the chips."""
        self.interrupt = InterruptPin()
        self.acknowledge = lambda: 0
        self.console_input = console_input
        self._quiesce_others = quiesce

    def _line(self, number: int) -> FanOut:
        """One ISA interrupt line; the timer's is on pin 2 of the I/O APIC."""
        pin = at.TIMER_GSI if number == at.IRQ_TIMER else number
        return FanOut(
            CallLine(lambda level: self.pic.set_irq(number, level)),
            CallLine(lambda level: self.ioapic.set_irq(Gsi(pin), level)),
        )

    def request_reset(self) -> None:
        """A device pulled the reset line; the machine obeys at the next instruction boundary."""
        self.reset_requested = True
        self._attend()

    def devices(self) -> dict[str, Device]:
        """Every chip with a register window, by the name of its window or of its place on the PCI bus."""
        chips = {f"{bus.space}:{base:#x}": device for bus, base, _, device in self._windows}
        for (device, function), found in self.pci.functions.items():
            place = f"pci:00:{device:02x}.{function}"
            chips[place] = found
            chips |= {f"{place}/{number}": behind for number, behind in found.behind().items()}
        return chips

    def quiesce(self) -> None:
        """Complete what is in flight."""
        for device in self.devices().values():
            device.quiesce()
        self._quiesce_others()

    def power_on(self) -> None:
        """Reset every chip, then leave them as firmware leaves them."""
        for _, _, _, device in self._windows:
            device.reset()
        self.storage.power_on()
        self.pci.assign(at.PCI_PORTS, at.PCI_MEMORY, at.PCI_INTERRUPTS)
        self.nmi.pending = False
        for offset, master, slave in ((0, 0x11, 0x11), (1, 0x08, 0x70), (1, 0x04, 0x02), (1, 0x01, 0x01)):
            self.pic.master.write(offset, 1, master)
            self.pic.slave.write(offset, 1, slave)
        self.pic.master.write(1, 1, 0b1011_1000)  # timer, keyboard, cascade and COM1's neighbours stay masked
        self.pic.slave.write(1, 1, 0b1000_1111)
        level = (at.IRQ_ACPI, *at.PCI_INTERRUPTS.values())
        self.pic.elcr.write(1, 1, sum(1 << line - 8 for line in level))
        self.pit.write(3, 1, 0b0011_0110)  # channel 0, mode 3
        self.pit.write(0, 1, 0)
        self.pit.write(0, 1, 0)
        self.lapic.set_virtual_wire()
        self._fill_cmos()

    def _fill_cmos(self) -> None:
        """Memory sizes as the PC's BIOS stores them, in KiB and 64 KiB units."""
        memory = self._configuration.memory
        extended = min(max(0, (memory >> 10) - 1024), 0xFFFF)
        above_16m = min(max(0, (memory - (16 << 20)) >> 16), 0xFFFF)
        for index, value in (
            (0x14, 0x06),
            (0x15, 0x80),
            (0x16, 0x02),
            (0x17, extended & 0xFF),
            (0x18, extended >> 8),
            (0x30, extended & 0xFF),
            (0x31, extended >> 8),
            (0x34, above_16m & 0xFF),
            (0x35, above_16m >> 8),
        ):
            self.rtc.set_byte(index, value)
