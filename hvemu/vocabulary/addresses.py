"""The address spaces and units that signatures name instead of a bare int.

A linear address is what segmentation makes and paging takes; a guest-physical address is what the guest's
page tables make; a machine address is where the frame really lies in the emulated host's memory.
"""

from typing import NewType

Linear = NewType("Linear", int)
GuestPhysical = NewType("GuestPhysical", int)
Machine = NewType("Machine", int)
Port = NewType("Port", int)
Vector = NewType("Vector", int)
Gsi = NewType("Gsi", int)
"""Global system interrupt number: the pin of the I/O APIC (ACPI 6.4, 5.2.13)."""
Position = NewType("Position", int)
"""Guest code bytes retired since reset, plus the bytes' worth of time that HLT skipped."""
Nanoseconds = NewType("Nanoseconds", int)

PAGE_SIZE = 4096
PAGE_SHIFT = 12
