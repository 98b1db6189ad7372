"""Names and numbers of the local APIC's registers, and the three registers that have a bit per vector.

Used by lapic.py. ``Vectors`` decides what is delivered next from requests, services and the task priority; it
knows nothing of pins, messages or time.
Spec: Intel SDM volume 3, 10.4 "Local APIC" and 10.8 "Handling interrupts".
"""

from typing import Final

from hvemu.devices.saved import Number

# Register numbers: the offset divided by 16
ID, VERSION, TPR, APR, PPR, EOI = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0x0D, 0x0E, 0x0F, 0x10, 0x18, 0x20, 0x28
ICR_LOW, ICR_HIGH = 0x30, 0x31
LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
LOCAL_VECTORS: Final = range(LVT_TIMER, LVT_ERROR + 1)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE_CONFIGURATION = 0x38, 0x39, 0x3E

VERSION_VALUE: Final = 0x0005_0014  # version 14h, local vector table entries 0 to 5
SVR_WRITABLE: Final = 0x3FF
SVR_ENABLED: Final = 1 << 8
LVT_MASKED: Final = 1 << 16
LVT_PERIODIC: Final = 1 << 17
LVT_LEVEL: Final = 1 << 15
ICR_WRITABLE: Final = 0x000C_CFFF  # all but the delivery status
ERROR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ERROR_RECEIVE_ILLEGAL_VECTOR: Final = 1 << 6
FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7

WRITABLE: Final = {
    ID: 0xFF00_0000,
    LDR: 0xFF00_0000,
    LVT_TIMER: 0x0003_00FF,
    LVT_THERMAL: 0x0001_07FF,
    LVT_PERFORMANCE: 0x0001_07FF,
    LVT_LINT0: 0x0001_A7FF,
    LVT_LINT1: 0x0001_A7FF,
    LVT_ERROR: 0x0001_00FF,
    ICR_HIGH: 0xFF00_0000,
}


def highest_bit(bits: int) -> int:
    """The number of the highest set bit; -1 when there is none."""
    return bits.bit_length() - 1


class Vectors:
    """Interrupt request, in-service and trigger mode registers: 256 bits each."""

    layout = {
        "irr": Number((1 << 256) - 1),
        "isr": Number((1 << 256) - 1),
        "tmr": Number((1 << 256) - 1),
    }

    def __init__(self) -> None:
        self.irr = self.isr = self.tmr = 0

    def word(self, number: int) -> int:
        """32 bits of one of the three, by register number."""
        bits = self.isr if number < TMR else self.tmr if number < IRR else self.irr
        return bits >> 32 * (number & 7) & 0xFFFF_FFFF

    def request(self, vector: int, level_triggered: bool) -> None:
        """A vector arrives; a second request for it is merged with the first."""
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level_triggered else self.tmr & ~bit

    def processor_priority(self, task_priority: int) -> int:
        """The higher of the task priority and the class in service."""
        serving = highest_bit(self.isr) & 0xF0 if self.isr else 0
        return task_priority if task_priority & 0xF0 >= serving else serving

    def deliverable(self, task_priority: int) -> int:
        """The highest requested vector when its class is above the processor priority, else -1."""
        if not self.irr:
            return -1
        vector = highest_bit(self.irr)
        return vector if vector & 0xF0 > self.processor_priority(task_priority) & 0xF0 else -1

    def begin(self, vector: int) -> None:
        """From requested to in service."""
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector

    def is_alone(self, vector: int) -> bool:
        """Whether it is edge-triggered, and no other is requested or in service: its end concerns nobody else."""
        return not self.irr and self.isr == 1 << vector and not self.tmr >> vector & 1

    def end(self) -> tuple[int, bool]:
        """End the highest in service: the vector, or -1, and whether it was level-triggered."""
        vector = highest_bit(self.isr)
        if vector < 0:
            return -1, False
        self.isr &= ~(1 << vector)
        return vector, bool(self.tmr >> vector & 1)
