/* Finding devices on PCI bus 0 (PCI Local Bus Specification 2.1, 3.2.2.3.2 "configuration mechanism #1", 6.1). */
#pragma once
#include "../lib/cpu.h"

#define PCI_COMMAND 0x04
#define PCI_COMMAND_PORTS 0x1
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_BUS_MASTER 0x4
#define PCI_INTERRUPT_LINE 0x3C

/* `place` is device << 11 | function << 8, as the address register wants it. */
u32 pci_read(u32 place, u32 offset);

/* Finds a function by vendor | device << 16 and switches it on; its place, or 0 (the host bridge) if there is none. */
u32 pci_find(u32 identity);
bool pci_has_class(u32 class_and_subclass);

/* What firmware has put into a function: the port base in BAR 0, the line of the 8259s. */
u16 pci_ports(u32 place);
u32 pci_line(u32 place);
