/* PCI configuration space: write an address to one port, read or write the other. */
#include "pci.h"
#include "../abi/machine_map.h"

#define ENABLE 0x80000000u
#define MULTIFUNCTION 0x00800000u

u32 pci_read(u32 place, u32 offset)
{
    outl(PCI_CONFIG_ADDRESS, ENABLE | place | offset);
    return inl(PCI_CONFIG_DATA);
}

static void pci_write16(u32 place, u32 offset, u16 value)
{
    outl(PCI_CONFIG_ADDRESS, ENABLE | place | (offset & ~3u));
    outw(PCI_CONFIG_DATA + (offset & 2), value);
}

/* The first function after the host bridge whose register at `offset` is `value` under `mask`. */
static u32 search(u32 offset, u32 mask, u32 value)
{
    for (u32 device = 1; device < 32; device++) {
        u32 functions = 1;
        for (u32 function = 0; function < functions; function++) {
            u32 place = device << 11 | function << 8;
            if (pci_read(place, 0x00) == 0xFFFFFFFF)
                continue;
            if (pci_read(place, 0x0C) & MULTIFUNCTION)
                functions = 8;
            if ((pci_read(place, offset) & mask) == value)
                return place;
        }
    }
    return 0;
}

u32 pci_find(u32 identity)
{
    u32 place = search(0x00, 0xFFFFFFFF, identity);
    if (place)
        pci_write16(place, PCI_COMMAND, PCI_COMMAND_PORTS | PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
    return place;
}

bool pci_has_class(u32 class_and_subclass)
{
    return search(0x08, 0xFFFF0000, class_and_subclass << 16);
}

u16 pci_ports(u32 place)
{
    return pci_read(place, 0x10) & 0xFFFC;
}

u32 pci_line(u32 place)
{
    return pci_read(place, PCI_INTERRUPT_LINE) & 0xFF;
}
