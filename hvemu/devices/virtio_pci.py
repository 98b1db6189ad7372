"""A virtio device behind PCI, by the legacy interface that every driver since 2008 knows.

The transport owns the registers and the queues; what a request means is the affair of the ``VirtioDevice`` behind it.
Requests are served a while after the notification, by an event of virtual time, never within the driver's OUT.
A driver that breaks the protocol finds the status bit DEVICE_NEEDS_RESET, and nothing happens until it resets.

Not emulated: MSI-X, the capabilities of VIRTIO 1.0, VIRTIO_F_EVENT_IDX.
Spec: Virtual I/O Device (VIRTIO) 1.2, 4.1.4.10 "Legacy Interfaces: A Note on PCI Device Layout", 2.1, 2.7.
"""

from typing import Any, Final, Protocol

from hvemu.devices.contract import Clock, DeviceEvent, GuestMemory, IrqLine, Watcher, nobody_watches
from hvemu.devices.deadline import Deadline
from hvemu.devices.pci import PciFunction
from hvemu.devices.saved import Due, Flag, Number, Numbers, Octets, SavedDevice
from hvemu.devices.virtqueue import Chain, Virtqueue, VirtqueueError

DEVICE_FEATURES, DRIVER_FEATURES, QUEUE_ADDRESS, QUEUE_SIZE = 0x00, 0x04, 0x08, 0x0C
QUEUE_SELECT, QUEUE_NOTIFY, DEVICE_STATUS, ISR_STATUS, CONFIGURATION = 0x0E, 0x10, 0x12, 0x13, 0x14
INDIRECT_DESCRIPTORS: Final = 1 << 28
NEEDS_RESET: Final = 0x40
DRIVER_OK: Final = 0x04
ISR_QUEUE, ISR_CONFIGURATION = 1, 2
ENTRIES: Final = 128
"""Descriptors of each queue."""
SERVICE_TIME: Final = 20_000
"""Nanoseconds from a notification to the interrupt."""
REGISTERS: Final = 64
"""Bytes of the window."""


class VirtioDevice(Protocol):
    """What is behind the transport."""

    queues: int
    features: int

    def configuration(self) -> bytes:
        """The device-specific configuration, as it is after a reset."""
        ...

    def writable_configuration(self) -> bytes:
        """A mask of the bits that a driver can change there."""
        ...

    def serve(self, queue: int, chain: Chain, configuration: bytes) -> int | None:
        """Carry out a request; returns bytes written, or None to keep the buffer. Raises VirtqueueError."""
        ...

    def reset(self) -> None:
        """The driver has reset the device."""
        ...


class VirtioPciFunction(PciFunction):
    """The transitional PCI identity of a virtio device."""

    name = "virtio-pci"
    vendor_id = 0x1AF4
    interrupt_pin = 1

    def __init__(self, registers: "VirtioPci", *, device_id: int, subsystem: int, class_code: int) -> None:
        self._registers, self._subsystem = registers, subsystem
        self._device_id, self._class_code = device_id, class_code
        super().__init__()

    def describe(self) -> None:
        """The registers are ports."""
        self.put_behind(0, REGISTERS, self._registers, is_port=True)

    def set_defaults(self) -> None:
        """Which device it is stands in the subsystem identifier."""
        self.put(0x02, 2, self._device_id)
        self.put(0x08, 4, self._class_code << 8)
        self.put(0x2C, 2, 0x1AF4)
        self.put(0x2E, 2, self._subsystem)


class VirtioPci(SavedDevice):
    """The registers and queues of one device."""

    name = "virtio-pci-registers"
    widest_access = 4

    def __init__(
        self,
        device: VirtioDevice,
        *,
        memory: GuestMemory,
        clock: Clock,
        irq: IrqLine,
        watcher: Watcher = nobody_watches,
    ) -> None:
        self._device, self._clock, self._irq, self._watcher = device, clock, irq, watcher
        self.queues = [Virtqueue(memory, ENTRIES) for _ in range(device.queues)]
        self.due = Deadline(clock, self._serve)
        self._mask = device.writable_configuration()
        count = device.queues
        self.layout = {
            "features": Number(0xFFFF_FFFF), "selected": Number(0xFFFF), "status": Number(0xFF), "isr": Number(0xFF),
            "notified": Numbers(count, 1), "frames": Numbers(count, 0xFFFF_FFFF), "seen": Numbers(count, 0xFFFF),
            "used": Numbers(count, 0xFFFF), "configuration": Octets(len(self._mask)), "due": Due(), "line": Flag(),
        }  # fmt: skip
        self.line = False
        self.reset()

    def reset(self) -> None:
        """As after power-on, and as after a driver's zero in the status register."""
        self.due.arm(None)
        self.features = self.selected = self.status = self.isr = 0
        self.notified = [0] * self._device.queues
        for queue in self.queues:
            queue.place(0)
        self.configuration = bytearray(self._device.configuration())
        self._device.reset()
        self._set_line(False)

    def quiesce(self) -> None:
        """Serve what was notified."""
        if self.due.at is not None:
            self.due.arm(None)
            self._serve()

    # What the saved state calls the queues' indices

    @property
    def frames(self) -> list[int]:
        """Where the queues are."""
        return [queue.frame for queue in self.queues]

    @frames.setter
    def frames(self, values: list[int]) -> None:
        self._put("frame", values)

    @property
    def seen(self) -> list[int]:
        """How far the queues were read."""
        return [queue.seen for queue in self.queues]

    @seen.setter
    def seen(self, values: list[int]) -> None:
        self._put("seen", values)

    @property
    def used(self) -> list[int]:
        """How many buffers were given back."""
        return [queue.used for queue in self.queues]

    @used.setter
    def used(self, values: list[int]) -> None:
        self._put("used", values)

    def _put(self, name: str, values: list[int]) -> None:
        for queue, value in zip(self.queues, values, strict=True):
            setattr(queue, name, value)

    def resume(self) -> None:
        """The line follows the loaded state."""
        self._irq.set_level(self.line)

    def read(self, offset: int, size: int) -> int:
        """A register; reading the ISR status acknowledges the interrupt."""
        if offset >= CONFIGURATION:
            start = offset - CONFIGURATION
            return int.from_bytes(self.configuration[start : start + size].ljust(size, b"\0"), "little")
        queue = self.queues[self.selected] if self.selected < len(self.queues) else None
        values: dict[int, Any] = {
            DEVICE_FEATURES: self._device.features | INDIRECT_DESCRIPTORS,
            DRIVER_FEATURES: self.features,
            QUEUE_ADDRESS: queue.frame if queue else 0,
            QUEUE_SIZE: ENTRIES if queue else 0,
            QUEUE_SELECT: self.selected,
            QUEUE_NOTIFY: 0,
            DEVICE_STATUS: self.status,
            ISR_STATUS: self.isr,
        }
        if offset == ISR_STATUS and size == 1:
            self.isr = 0
            self._set_line(False)
        return int(values.get(offset, 0)) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register."""
        if offset >= CONFIGURATION:
            for index in range(size):
                self._configure(offset - CONFIGURATION + index, value >> 8 * index & 0xFF)
        elif offset == DRIVER_FEATURES and size == 4:
            self.features = value & (self._device.features | INDIRECT_DESCRIPTORS)
        elif offset == QUEUE_ADDRESS and size == 4:
            if self.selected < len(self.queues):
                self.queues[self.selected].place(value)
        elif offset == QUEUE_SELECT and size == 2:
            self.selected = value
        elif offset == QUEUE_NOTIFY and size == 2:
            self._notify(value)
        elif offset == DEVICE_STATUS and size == 1:
            if value == 0:
                self.reset()
            else:
                self.status = value & ~NEEDS_RESET | self.status & NEEDS_RESET

    def _configure(self, index: int, byte: int) -> None:
        if index < len(self.configuration):
            mask = self._mask[index]
            self.configuration[index] = self.configuration[index] & ~mask | byte & mask

    def _notify(self, queue: int) -> None:
        if queue < len(self.queues) and not self.status & NEEDS_RESET:
            self.notified[queue] = 1
            if self.due.at is None:
                self.due.arm(self._clock.now() + SERVICE_TIME)

    def _serve(self) -> None:
        """Everything that waits in the notified queues."""
        reasons = 0
        for number, queue in enumerate(self.queues):
            if not self.notified[number]:
                continue
            self.notified[number] = 0
            try:
                reasons |= ISR_QUEUE if self._serve_queue(number, queue) else 0
            except VirtqueueError as error:
                self.status |= NEEDS_RESET
                self._watcher(DeviceEvent(self.name, "needs reset", str(error)))
                reasons |= ISR_QUEUE | ISR_CONFIGURATION  # the status has changed (2.1.2), and buffers may be used
                break
        if reasons:
            self.isr |= reasons
            self._set_line(True)

    def _serve_queue(self, number: int, queue: Virtqueue) -> bool:
        served = False
        for chain in queue.take():
            written = self._device.serve(number, chain, bytes(self.configuration))
            if written is not None:
                queue.give_back(chain.head, written)
                served = True
        return served and queue.wants_interrupt()

    def _set_line(self, level: bool) -> None:
        self.line = level
        self._irq.set_level(level)
