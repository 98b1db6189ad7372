/* Generated from hvemu/vocabulary/machine_map.py by `python -m hvemu.labs.build_guests`: do not edit. */
#ifndef HVEMU_MACHINE_MAP_H
#define HVEMU_MACHINE_MAP_H

/* Guest-physical memory */
#define IVT_BASE 0x00000000
#define BIOS_DATA_AREA 0x00000400
#define EBDA_BASE 0x0009FC00
#define EBDA_SIZE 0x00000400
#define VGA_WINDOW 0x000A0000
#define VGA_TEXT_BUFFER 0x000B8000
#define VGA_TEXT_BUFFER_SIZE 0x8000
#define ROM_BASE 0x000E0000
#define ACPI_TABLES 0x000E0000
#define BIOS_SEGMENT 0xF000
#define BIOS_BASE 0x000F0000
#define MP_TABLE 0x000F1000
#define RSDP 0x000F2000
#define BIOS_STUBS 0x000FE000
#define HIGH_MEMORY 0x00100000
#define PCI_MEMORY 0xF8000000
#define PCI_MEMORY_END 0xFEBFFFFF
#define IOAPIC_BASE 0xFEC00000
#define IOAPIC_SIZE 0x1000
#define LAPIC_BASE 0xFEE00000
#define LAPIC_SIZE 0x1000

/* Ports */
#define PIC_MASTER 0x20
#define PIC_SLAVE 0xA0
#define PIC_ELCR 0x4D0
#define PIT_BASE 0x40
#define I8042_DATA 0x60
#define SYSTEM_CONTROL_B 0x61
#define I8042_COMMAND 0x64
#define CMOS_BASE 0x70
#define POST_PORT 0x80
#define SYSTEM_CONTROL_A 0x92
#define BIOS_CALL_PORT 0xB8
#define DEBUG_CONSOLE_PORT 0xE9
#define DEBUG_EXIT_PORT 0xF4
#define COM1_BASE 0x3F8
#define COM2_BASE 0x2F8
#define VGA_REGISTERS 0x3C0
#define VGA_CRTC 0x3D4
#define VGA_STATUS 0x3DA
#define IDE_PRIMARY 0x1F0
#define IDE_PRIMARY_CONTROL 0x3F6
#define IDE_SECONDARY 0x170
#define IDE_SECONDARY_CONTROL 0x376
#define FW_CFG_BASE 0x510
#define ACPI_PM_BASE 0x600
#define ACPI_PM1_EVENT 0x600
#define ACPI_PM1_CONTROL 0x604
#define ACPI_PM_TIMER 0x608
#define PCI_CONFIG_ADDRESS 0xCF8
#define RESET_CONTROL 0xCF9
#define PCI_CONFIG_DATA 0xCFC
#define PCI_PORTS 0xC000

/* Places on PCI bus 0, and the interrupt line of each place that has one */
#define PCI_VIRTIO 3
#define PCI_BUSLOGIC 16

/* Interrupt lines of the ISA bus (8259 inputs; the I/O APIC sees line 0 on pin 2) */
#define IRQ_TIMER 0
#define IRQ_KEYBOARD 1
#define IRQ_CASCADE 2
#define IRQ_COM2 3
#define IRQ_COM1 4
#define IRQ_RTC 8
#define IRQ_ACPI 9
#define IRQ_VIRTIO 10
#define IRQ_BUSLOGIC 11
#define IRQ_IDE_PRIMARY 14
#define IRQ_IDE_SECONDARY 15
#define IOAPIC_PINS 24
#define IOAPIC_ID 1
#define LAPIC_ID 0
#define TIMER_GSI 2

/* Clocks, in hertz */
#define PIT_HZ 1193182
#define ACPI_PM_TIMER_HZ 3579545
#define LAPIC_BUS_HZ 100000000

/* Verdicts that guests write to DEBUG_EXIT_PORT; the process exits with (c << 1) | 1 */
#define VERDICT_PASS 0x10
#define VERDICT_FAIL 0x11
#define VERDICT_SKIP 0x12

#endif
