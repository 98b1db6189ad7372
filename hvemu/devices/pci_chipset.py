"""The functions that every guest expects on bus 0: host bridge, ISA bridge, IDE and power management.

They are there to be found: an i440FX without memory to configure, a PIIX3 whose interrupt routing is stored and whose
IDE channels have their compatible addresses, and a PIIX4 power management function that says where the ACPI registers
are.

Not emulated: what the bridges' registers would do (PAM, SMRAM, PIRQ routing), IDE as a bus master, USB, SMBus.
Spec: Intel 82441FX (290549-001), 82371SB (290550-002) and 82371AB (290562-001).
"""

from hvemu.devices.pci import PciFunction
from hvemu.vocabulary.addresses import Port

PIRQ_ROUTING_DISABLED = 0x80
PM_REGISTERS_ENABLED = 0x01
IDE_DECODE_ENABLE = 0x8000


class HostBridge(PciFunction):
    """82441FX at 00:00.0."""

    name = "pci-host-bridge"
    vendor_id = 0x8086
    device_id = 0x1237
    revision = 2
    class_code = 0x060000

    def describe(self) -> None:
        """The attribute registers PAM0 to PAM6 and SMRAM are kept."""
        for offset in range(0x59, 0x60):
            self.declare_writable(offset, 1, 0x33)
        self.declare_writable(0x72, 1, 0x7F)

    def set_defaults(self) -> None:
        """Memory space and bus mastering are on for good."""
        self.put(0x04, 2, 0x0006)
        self.put(0x06, 2, 0x0280)
        self.put(0x72, 1, 0x02)


class IsaBridge(PciFunction):
    """82371SB function 0 at 00:01.0."""

    name = "pci-isa-bridge"
    vendor_id = 0x8086
    device_id = 0x7000
    class_code = 0x060100
    header_type = 0x80  # several functions

    def describe(self) -> None:
        """The four PIRQ routing registers are kept."""
        self.declare_writable(0x60, 4, 0x8F8F_8F8F)

    def set_defaults(self) -> None:
        """PIRQs routed nowhere."""
        self.put(0x04, 2, 0x0007)
        self.put(0x06, 2, 0x0200)
        self.put(0x60, 4, PIRQ_ROUTING_DISABLED * 0x0101_0101)


class IdeFunction(PciFunction):
    """82371SB function 1 at 00:01.1: both channels in compatibility mode, without the bus master registers of BAR 4.

    The timing registers are kept and change nothing; a channel whose decode enable is cleared answers all the same.
    """

    name = "pci-ide"
    vendor_id = 0x8086
    device_id = 0x7010
    class_code = 0x010180

    def describe(self) -> None:
        """IDETIM of both channels and SIDETIM."""
        self.declare_writable(0x40, 4, 0xFFFF_FFFF)
        self.declare_writable(0x44, 1, 0xFF)

    def set_defaults(self) -> None:
        """The firmware has enabled both channels."""
        self.put(0x04, 2, 0x0001)
        self.put(0x06, 2, 0x0280)
        self.put(0x40, 4, IDE_DECODE_ENABLE << 16 | IDE_DECODE_ENABLE)


class PowerManagement(PciFunction):
    """82371AB function 3 at 00:01.3."""

    name = "pci-power-management"
    vendor_id = 0x8086
    device_id = 0x7113
    revision = 3
    class_code = 0x068000
    interrupt_pin = 1

    def __init__(self, *, pm_base: Port, interrupt_line: int = 9) -> None:
        self._pm_base = pm_base
        self._interrupt_line = interrupt_line
        super().__init__()

    def set_defaults(self) -> None:
        """The firmware has put the registers where the ACPI tables say; they do not move."""
        self.put(0x04, 2, 0x0001)
        self.put(0x06, 2, 0x0280)
        self.put(0x3C, 1, self._interrupt_line)
        self.put(0x40, 4, self._pm_base | 1)
        self.put(0x80, 1, PM_REGISTERS_ENABLED)
