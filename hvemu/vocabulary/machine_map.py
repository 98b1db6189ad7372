"""Every address, port and interrupt number of the machine, on one page. Devices know none of these.

    guest-physical memory                         ports
    00000000  real-mode IVT, BIOS data area       0020-0021 00A0-00A1  8259 pair
    00000400  BIOS data area                      0040-0043 0061       8254, system control port B
    0009FC00  extended BIOS data area             0060 0064            i8042
    000A0000  VGA window                          0070-0071            CMOS / RTC
    000B8000  VGA text buffer                     0080                 POST code
    000E0000  ACPI tables                         0092                 system control port A
    000F0000  BIOS stubs, MP table, RSDP          00E9                 debug console
    00100000  RAM up to --memory                  00F4                 isa-debug-exit
    F8000000  registers of PCI functions          0170-0177 01F0-01F7  IDE channels, if there are drives
    FEC00000  I/O APIC                            0376 03F6            their device control
    FEE00000  local APIC                          02F8 03F8            16550 COM2, COM1
    FFFFFFF0  reset vector (of real hardware)     03B4.. 03C0-03DA     VGA registers
                                                  0510-0511            fw_cfg
                                                  0600-060B            ACPI PM1a, PM timer
                                                  0CF8-0CFF 0CF9       PCI configuration, reset
                                                  5658                 VMware's backdoor (vmware.py), if shown
                                                  C000-FFFF            registers of PCI functions

The guests' include file guests/abi/machine_map.h is generated from the constants below.
"""

from typing import Final

# Guest-physical memory
IVT_BASE: Final = 0x0000_0000
BIOS_DATA_AREA: Final = 0x0000_0400
EBDA_BASE: Final = 0x0009_FC00
EBDA_SIZE: Final = 0x0000_0400
VGA_WINDOW: Final = 0x000A_0000
VGA_TEXT_BUFFER: Final = 0x000B_8000
VGA_TEXT_BUFFER_SIZE: Final = 0x8000
ROM_BASE: Final = 0x000E_0000
ACPI_TABLES: Final = 0x000E_0000
BIOS_SEGMENT: Final = 0xF000
BIOS_BASE: Final = 0x000F_0000
MP_TABLE: Final = 0x000F_1000
RSDP: Final = 0x000F_2000
BIOS_STUBS: Final = 0x000F_E000
HIGH_MEMORY: Final = 0x0010_0000
PCI_MEMORY: Final = 0xF800_0000
PCI_MEMORY_END: Final = 0xFEBF_FFFF
IOAPIC_BASE: Final = 0xFEC0_0000
IOAPIC_SIZE: Final = 0x1000
LAPIC_BASE: Final = 0xFEE0_0000
LAPIC_SIZE: Final = 0x1000

# Ports
PIC_MASTER: Final = 0x20
PIC_SLAVE: Final = 0xA0
PIC_ELCR: Final = 0x4D0
PIT_BASE: Final = 0x40
I8042_DATA: Final = 0x60
SYSTEM_CONTROL_B: Final = 0x61
I8042_COMMAND: Final = 0x64
CMOS_BASE: Final = 0x70
POST_PORT: Final = 0x80
SYSTEM_CONTROL_A: Final = 0x92
BIOS_CALL_PORT: Final = 0xB8
DEBUG_CONSOLE_PORT: Final = 0xE9
DEBUG_EXIT_PORT: Final = 0xF4
COM1_BASE: Final = 0x3F8
COM2_BASE: Final = 0x2F8
VGA_REGISTERS: Final = 0x3C0
VGA_CRTC: Final = 0x3D4
VGA_STATUS: Final = 0x3DA
IDE_PRIMARY: Final = 0x1F0
IDE_PRIMARY_CONTROL: Final = 0x3F6
IDE_SECONDARY: Final = 0x170
IDE_SECONDARY_CONTROL: Final = 0x376
FW_CFG_BASE: Final = 0x510
ACPI_PM_BASE: Final = 0x600
ACPI_PM1_EVENT: Final = 0x600
ACPI_PM1_CONTROL: Final = 0x604
ACPI_PM_TIMER: Final = 0x608
PCI_CONFIG_ADDRESS: Final = 0xCF8
RESET_CONTROL: Final = 0xCF9
PCI_CONFIG_DATA: Final = 0xCFC
PCI_PORTS: Final = 0xC000

# Places on PCI bus 0, and the interrupt line of each place that has one
PCI_IDE: Final = (1, 1)
PCI_VIRTIO: Final = 3
PCI_BUSLOGIC: Final = 16

# Interrupt lines of the ISA bus (8259 inputs; the I/O APIC sees line 0 on pin 2)
IRQ_TIMER: Final = 0
IRQ_KEYBOARD: Final = 1
IRQ_CASCADE: Final = 2
IRQ_COM2: Final = 3
IRQ_COM1: Final = 4
IRQ_RTC: Final = 8
IRQ_ACPI: Final = 9
IRQ_VIRTIO: Final = 10
IRQ_BUSLOGIC: Final = 11
IRQ_IDE_PRIMARY: Final = 14
IRQ_IDE_SECONDARY: Final = 15
PCI_INTERRUPTS: Final = {PCI_VIRTIO: IRQ_VIRTIO, PCI_BUSLOGIC: IRQ_BUSLOGIC}
"""INTA# of a device on bus 0: the line of both controllers that it drives, level-triggered."""
IOAPIC_PINS: Final = 24
IOAPIC_ID: Final = 1
LAPIC_ID: Final = 0
TIMER_GSI: Final = 2

# Clocks, in hertz
PIT_HZ: Final = 1_193_182
ACPI_PM_TIMER_HZ: Final = 3_579_545
LAPIC_BUS_HZ: Final = 100_000_000

# Verdicts that guests write to DEBUG_EXIT_PORT; the process exits with (c << 1) | 1
VERDICT_PASS: Final = 0x10
VERDICT_FAIL: Final = 0x11
VERDICT_SKIP: Final = 0x12
