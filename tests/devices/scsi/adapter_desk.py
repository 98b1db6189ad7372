"""A BT-958 with a bus on a desk: memory that is checked, and what a driver does to the registers."""

from hvemu.devices.dma import LONGEST_REQUEST
from hvemu.devices.scsi.bus import ScsiBus, Target
from hvemu.devices.scsi.buslogic import SERVICE_TIME, BusLogic
from tests.devices.fakes import FakeClock, FakeIrqLine, FakeWatcher

from .desk import FakeMedium, disk

RAM = 1 << 20
BOXES, CCB, LIST, DATA, SENSE = 0x1000, 0x4000, 0x8000, 0x20000, 0xF000
COUNT = 4
TEST_UNIT_READY = bytes(6)


class CheckedMemory:
    """RAM of 1 MiB; outside of it there are ones and no writes, and no access is without bound."""

    def __init__(self) -> None:
        self.data = bytearray(RAM)

    def read(self, address: int, length: int) -> bytes:
        assert 0 <= address < 1 << 33
        assert 0 <= length <= LONGEST_REQUEST
        return bytes(self.data[address : address + length]).ljust(length, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        assert 0 <= address < 1 << 33
        assert len(data) <= LONGEST_REQUEST
        data = data[: max(0, RAM - address)]
        if data:
            self.data[address : address + len(data)] = data


class AdapterDesk:
    """Disks of 1 MiB at 0:0, 0:2 and 9:0."""

    def __init__(self, now: int = 0, options: tuple[int, ...] = ()) -> None:
        self.clock = FakeClock(now)
        self.irq = FakeIrqLine(self.clock)
        self.memory = CheckedMemory()
        self.medium = FakeMedium()
        self.watcher = FakeWatcher()
        self.bus = ScsiBus({0: Target({0: disk(self.medium), 2: disk()}), 9: Target({0: disk()})})
        self.adapter = BusLogic(self.bus, memory=self.memory, clock=self.clock, irq=self.irq, watcher=self.watcher)
        self._greet()

    def _greet(self) -> None:
        """Take the unit attentions of power on."""
        for target in self.bus.targets.values():
            for unit in target.units.values():
                unit.nexus_lost("buslogic")
                unit.take_sense("buslogic")

    # Registers

    def status(self) -> int:
        return self.adapter.read(0, 1)

    def interrupt(self) -> int:
        return self.adapter.read(2, 1)

    def acknowledge(self) -> None:
        self.adapter.write(0, 1, 0x20)

    def command(self, opcode: int, parameters: bytes = b"") -> bytes:
        """What a driver does: wait until ready, give bytes while none are to be read, read until the end."""
        assert 0x10 == self.status() & 0x18, hex(self.status())
        self.adapter.write(1, 1, opcode)
        for byte in parameters:
            if self.interrupt() & 4 or self.status() & 4:
                break
            assert not self.status() & 8
            self.adapter.write(1, 1, byte)
        reply = b""
        for _ in range(1000):
            if self.interrupt() & 4:
                return reply
            if self.status() & 4:
                reply += bytes((self.adapter.read(1, 1),))
            elif self.status() & 0x10:
                return reply
            self.clock.advance(10_000)
        raise AssertionError(f"command {opcode:#x} does not end")

    def inquire(self, opcode: int, parameters: bytes = b"") -> bytes:
        """A command that is valid, with its end taken away."""
        reply = self.command(opcode, parameters)
        assert not self.status() & 1, hex(opcode)
        self.acknowledge()
        return reply

    # Mailboxes and command control blocks

    def place(self, *, wide: bool = True, count: int = COUNT, base: int = BOXES) -> None:
        if wide:
            self.inquire(0x81, bytes((count,)) + base.to_bytes(4, "little"))
        else:
            self.inquire(0x01, bytes((count,)) + base.to_bytes(3, "big"))

    def post(self, index: int, address: int = CCB, action: int = 1) -> None:
        """Fill an outgoing mailbox of the 32-bit kind."""
        self.memory.write(BOXES + 8 * index, address.to_bytes(4, "little") + bytes((0, 0, 0, action)))

    def post24(self, index: int, address: int = CCB, action: int = 1) -> None:
        """And of the other."""
        self.memory.write(BOXES + 4 * index, bytes((action,)) + address.to_bytes(3, "big"))

    def ring(self) -> None:
        """Announce, and wait for the service."""
        self.adapter.write(1, 1, 2)
        self.clock.advance(SERVICE_TIME)

    def incoming(self, index: int, count: int = COUNT) -> tuple[int, int, int, int]:
        """Address, host and target status and completion code of an incoming mailbox of the 32-bit kind."""
        raw = self.memory.read(BOXES + 8 * (count + index), 8)
        return int.from_bytes(raw[:4], "little"), raw[4], raw[5], raw[7]

    def incoming24(self, index: int, count: int = COUNT) -> tuple[int, int]:
        """Completion code and address."""
        raw = self.memory.read(BOXES + 4 * (count + index), 4)
        return raw[0], int.from_bytes(raw[1:], "big")

    def write_ccb(
        self,
        cdb: bytes,
        *,
        at: int = CCB,
        opcode: int = 0,
        direction: int = 0,
        length: int = 0,
        data: int = DATA,
        target: int = 0,
        lun: int = 0,
        sense_length: int = 18,
    ) -> None:
        """A block of the 32-bit kind; its statuses are wrong until the adapter writes them."""
        block = bytes((opcode, direction << 3, len(cdb), sense_length))
        block += length.to_bytes(4, "little") + data.to_bytes(4, "little") + bytes((0, 0, 0xEE, 0xEE, target, lun))
        self.memory.write(at, block + cdb.ljust(12, b"\0") + bytes(6) + SENSE.to_bytes(4, "little"))

    def write_ccb24(
        self,
        cdb: bytes,
        *,
        opcode: int = 0,
        direction: int = 0,
        length: int = 0,
        place: int = 0,
        sense_length: int = 18,
    ) -> None:
        """A block of the other; ``place`` is target * 32 + unit."""
        block = bytes((opcode, place | direction << 3, len(cdb), sense_length))
        block += length.to_bytes(3, "big") + DATA.to_bytes(3, "big") + bytes((0, 0, 0, 0, 0xEE, 0xEE, 0, 0))
        self.memory.write(CCB, block + cdb)

    def statuses(self, at: int = CCB) -> tuple[int, int]:
        raw = self.memory.read(at + 14, 2)
        return raw[0], raw[1]

    def length_field(self, at: int = CCB) -> int:
        return int.from_bytes(self.memory.read(at + 4, 4), "little", signed=True)

    def run(self, cdb: bytes, **fields: int) -> tuple[int, int, int]:
        """One command with fresh mailboxes: host status, target status and completion code."""
        self.memory.data[BOXES : BOXES + 16 * COUNT] = bytes(16 * COUNT)
        self.place()
        self.write_ccb(cdb, **fields)
        self.post(0)
        self.ring()
        self.acknowledge()
        address, host, target, code = self.incoming(0)
        assert CCB == address
        assert (host, target) == self.statuses()
        return host, target, code
