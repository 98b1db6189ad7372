"""The BIOS services that boot loaders use, behind the firmware stubs in the BIOS segment.

A stub writes to the BIOS call port; ``Bios.call`` finds the service by CS:IP, works on the guest's registers and
memory, and the stub's IRET returns. Ticks and keys go through INT 8 and INT 9 into the BIOS data area as on a PC.
Services: INT 08h 09h 10h 11h 12h 13h (with the EDD extensions, for disks and CD-ROMs) 14h 15h 16h 19h 1Ah. Not
provided: graphics modes, floppies, APM, PCI BIOS, VESA. Interrupt numbers and layouts: Ralf Brown's list, the EDD 3.0
and the El Torito 1.0 specification.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Final

from hvemu.cpu.state import CS, DS, EAX, EBX, ECX, EDI, EDX, ES, ESI, ESP, FLAG_CF, FLAG_ZF, SS, CpuPort
from hvemu.devices.contract import BlockBackend
from hvemu.loader import el_torito
from hvemu.loader.boot_device import CDROM, HARD_DISK, SECTOR
from hvemu.loader.contract import memory_map
from hvemu.loader.firmware import STUB_SIZE
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.vocabulary import machine_map as at
from hvemu.vocabulary.errors import UserError

HEADS: Final = 16
SECTORS: Final = 63
_SMAP: Final = 0x534D4150
_COLUMNS, _ROWS = 80, 25
_SCREEN: Final = 2 * _COLUMNS * _ROWS
_TICKS_PER_DAY: Final = 0x1800B0
_WAIT_STUB: Final = 0x400
_BDA: Final = at.BIOS_DATA_AREA
_EBP: Final = 5

# Scan code set 1 -> (plain, shifted), US layout, by rows of the keyboard
_ROWS_OF_KEYS: Final = (
    (0x02, "1234567890-=\b\t", "!@#$%^&*()_+\b\t"),
    (0x10, "qwertyuiop[]\r", "QWERTYUIOP{}\r"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
    (0x01, "\x1b", "\x1b"),
)
_KEYS: Final = {
    start + index: (ord(plain), ord(shifted))
    for start, plains, shifts in _ROWS_OF_KEYS
    for index, (plain, shifted) in enumerate(zip(plains, shifts, strict=True))
}


class Bios:
    """The services, for one machine; drive 80h is the first of ``disks``, drive E0h the first of ``cdroms``."""

    def __init__(
        self,
        memory: GuestPhysicalMemory,
        cpu: CpuPort,
        read_port: Callable[[int, int], int],
        write_port: Callable[[int, int, int], None],
        disks: Sequence[BlockBackend],
        cdroms: Sequence[BlockBackend] = (),
    ) -> None:
        self._memory, self.cpu = memory, cpu
        self._read_port, self._write_port = read_port, write_port
        self._disks, self._cdroms = disks, cdroms
        self._services: dict[int, Callable[[], None]] = {
            0x08: self._tick, 0x09: self._key, 0x10: self._video, 0x11: self._equipment, 0x12: self._base_memory,
            0x13: self._disk_service, 0x14: self._serial, 0x15: self._system, 0x16: self._keyboard,
            0x19: self._reboot, 0x1A: self._time,
        }  # fmt: skip

    def call(self) -> None:
        """Serve the stub that just wrote to the BIOS call port; anything else that writes there is ignored."""
        cpu = self.cpu
        if cpu.segment(CS).selector != at.BIOS_SEGMENT or cpu.paging().cr0 & 1:
            return
        offset = cpu.eip() - (at.BIOS_STUBS - at.BIOS_BASE)
        if offset == _WAIT_STUB:
            self._keyboard()
        elif 0 <= offset < 256 * STUB_SIZE and offset % STUB_SIZE == 0:
            vector = offset // STUB_SIZE
            service = self._services.get(vector)
            if service is not None:
                service()
            elif 0x08 <= vector <= 0x0F or 0x70 <= vector <= 0x77:
                self._end_of_interrupt(vector >= 0x70)
            else:
                self._carry(True)

    # ------------------------------------------------------------------ registers

    def _byte(self, register: int, high: bool = False) -> int:
        return self.cpu.gpr(register) >> (8 if high else 0) & 0xFF

    def _word(self, register: int) -> int:
        return self.cpu.gpr(register) & 0xFFFF

    def _set_word(self, register: int, value: int) -> None:
        self.cpu.set_gpr(register, self.cpu.gpr(register) & 0xFFFF0000 | value & 0xFFFF)

    def _set_byte(self, register: int, value: int, high: bool = False) -> None:
        shift = 8 if high else 0
        self.cpu.set_gpr(register, self.cpu.gpr(register) & ~(0xFF << shift) | (value & 0xFF) << shift)

    def _flag(self, mask: int, value: bool) -> None:
        """Change a flag in the frame that the stub's IRET pops."""
        address = self.cpu.segment(SS).base + ((self._word(ESP) + 4) & 0xFFFF)
        flags = int.from_bytes(self._memory.read(address, 2), "little")
        flags = flags | mask if value else flags & ~mask
        self._memory.write(address, flags.to_bytes(2, "little"))

    def _carry(self, failed: bool, status: int | None = None) -> None:
        self._flag(FLAG_CF, failed)
        if status is not None:
            self._set_byte(EAX, status, high=True)

    def _bda(self, offset: int, size: int = 2) -> int:
        return int.from_bytes(self._memory.read(_BDA + offset, size), "little")

    def _set_bda(self, offset: int, value: int, size: int = 2) -> None:
        self._memory.write(_BDA + offset, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def _end_of_interrupt(self, slave: bool = False) -> None:
        if slave:
            self._write_port(at.PIC_SLAVE, 1, 0x20)
        self._write_port(at.PIC_MASTER, 1, 0x20)

    # ------------------------------------------------------------------ interrupts of the hardware

    def _tick(self) -> None:
        ticks = self._bda(0x6C, 4) + 1
        if ticks >= _TICKS_PER_DAY:
            ticks = 0
            self._set_bda(0x70, 1, 1)
        self._set_bda(0x6C, ticks, 4)
        self._end_of_interrupt()

    def _key(self) -> None:
        code = self._read_port(at.I8042_DATA, 1)
        shift = self._bda(0x17, 1)
        held = {0x2A: 2, 0x36: 1, 0x1D: 4, 0x38: 8}.get(code & 0x7F)
        if held:
            self._set_bda(0x17, shift & ~held if code & 0x80 else shift | held, 1)
        elif toggled := {0x46: 0x10, 0x45: 0x20, 0x3A: 0x40}.get(code):
            self._set_bda(0x17, shift ^ toggled, 1)
        elif not code & 0x80:
            plain, shifted = _KEYS.get(code, (0, 0))
            capital = bool(shift & 3) ^ (bool(shift & 0x40) and 0x61 <= plain < 0x7B)
            character = shifted if capital else plain
            if shift & 4 and 0x61 <= plain < 0x7B:
                character &= 0x1F
            tail = self._bda(0x1C)
            following = tail + 2 if tail + 2 < 0x3E else 0x1E
            if following != self._bda(0x1A):
                self._memory.write(_BDA + tail, bytes((character, code)))
                self._set_bda(0x1C, following)
        self._end_of_interrupt()

    # ------------------------------------------------------------------ INT 10h

    def _video(self) -> None:
        function = self._byte(EAX, high=True)
        position = self._bda(0x50)
        if function == 0x00:
            self._clear(0, 0, _ROWS - 1, _COLUMNS - 1, 0x07)
            self._move(0)
        elif function == 0x01:
            self._set_bda(0x60, self._word(ECX))
            self._crtc((0x0A, self._byte(ECX, high=True)), (0x0B, self._byte(ECX)))
        elif function == 0x02:
            self._move(self._word(EDX))
        elif function == 0x03:
            self._set_word(EDX, position)
            self._set_word(ECX, self._bda(0x60))
        elif function in (0x06, 0x07):
            self._scroll(up=function == 0x06)
        elif function == 0x08:
            self._set_word(EAX, int.from_bytes(self._memory.read(self._cell(position), 2), "little"))
        elif function in (0x09, 0x0A):
            start = self._cell(position)
            count = min(self._word(ECX), (at.VGA_TEXT_BUFFER + _SCREEN - start) // 2)
            cells = bytearray(self._memory.read(start, 2 * count))
            cells[0::2] = bytes((self._byte(EAX),)) * count
            if function == 0x09:
                cells[1::2] = bytes((self._byte(EBX),)) * count
            self._memory.write(start, bytes(cells))
        elif function == 0x0E:
            self._teletype(self._byte(EAX))
        elif function == 0x0F:
            self._set_word(EAX, _COLUMNS << 8 | 3)
            self._set_byte(EBX, 0, high=True)
        elif function == 0x13:
            move, pairs = self._byte(EAX) & 1, self._byte(EAX) & 2
            base = self.cpu.segment(ES).base + self._word(_EBP)
            text = self._memory.read(base, min(self._word(ECX), _COLUMNS * _ROWS) * (2 if pairs else 1))
            attributes = text[1::2] if pairs else bytes((self._byte(EBX),)) * len(text)
            self._move(self._word(EDX))
            for character, attribute in zip(text[::2] if pairs else text, attributes, strict=True):
                self._teletype(character, attribute)
            if not move:
                self._move(position)

    def _cell(self, position: int) -> int:
        row, column = min(position >> 8, _ROWS - 1), min(position & 0xFF, _COLUMNS - 1)
        return at.VGA_TEXT_BUFFER + 2 * (row * _COLUMNS + column)

    def _move(self, position: int) -> None:
        self._set_bda(0x50, position)
        index = (self._cell(position) - at.VGA_TEXT_BUFFER) // 2
        self._crtc((0x0E, index >> 8), (0x0F, index & 0xFF))

    def _crtc(self, *registers: tuple[int, int]) -> None:
        for register, value in registers:
            self._write_port(at.VGA_CRTC, 1, register)
            self._write_port(at.VGA_CRTC + 1, 1, value)

    def _teletype(self, character: int, attribute: int = 0x07) -> None:
        position = self._bda(0x50)
        row, column = min(position >> 8, _ROWS - 1), min(position & 0xFF, _COLUMNS - 1)
        if character == 0x0D:
            column = 0
        elif character == 0x0A:
            row += 1
        elif character == 0x08:
            column = max(0, column - 1)
        elif character != 0x07:
            self._memory.write(self._cell(row << 8 | column), bytes((character, attribute)))
            column += 1
        if column >= _COLUMNS:
            row, column = row + 1, 0
        if row >= _ROWS:
            screen = self._memory.read(at.VGA_TEXT_BUFFER, _SCREEN)
            self._memory.write(at.VGA_TEXT_BUFFER, screen[2 * _COLUMNS :] + b" \x07" * _COLUMNS)
            row = _ROWS - 1
        self._move(row << 8 | column)

    def _scroll(self, *, up: bool) -> None:
        top, left = self._byte(ECX, high=True), self._byte(ECX)
        bottom, right = min(self._byte(EDX, high=True), _ROWS - 1), min(self._byte(EDX), _COLUMNS - 1)
        lines = self._byte(EAX)
        attribute = self._byte(EBX, high=True)
        if top > bottom or left > right:
            return
        if lines == 0 or lines > bottom - top:
            self._clear(top, left, bottom, right, attribute)
            return
        rows = range(top, bottom + 1 - lines) if up else range(bottom, top + lines - 1, -1)
        width = 2 * (right - left + 1)
        for row in rows:
            source = row + lines if up else row - lines
            self._memory.write(self._cell(row << 8 | left), self._memory.read(self._cell(source << 8 | left), width))
        if up:
            self._clear(bottom + 1 - lines, left, bottom, right, attribute)
        else:
            self._clear(top, left, top + lines - 1, right, attribute)

    def _clear(self, top: int, left: int, bottom: int, right: int, attribute: int) -> None:
        for row in range(top, bottom + 1):
            self._memory.write(self._cell(row << 8 | left), bytes((0x20, attribute)) * (right - left + 1))

    # ------------------------------------------------------------------ INT 11h 12h 14h 15h 19h 1Ah

    def _equipment(self) -> None:
        self._set_word(EAX, self._bda(0x10))

    def _base_memory(self) -> None:
        self._set_word(EAX, self._bda(0x13))

    def _serial(self) -> None:
        function = self._byte(EAX, high=True)
        if self._word(EDX) == 0 and function == 1:
            self._write_port(at.COM1_BASE, 1, self._byte(EAX))
            self._set_byte(EAX, 0x60, high=True)
        elif self._word(EDX) == 0 and function == 2:
            status = self._read_port(at.COM1_BASE + 5, 1)
            self._set_byte(EAX, (status & 0x1E) if status & 1 else 0x80, high=True)
            if status & 1:
                self._set_byte(EAX, self._read_port(at.COM1_BASE, 1))
        elif self._word(EDX) == 0:
            self._set_word(EAX, self._read_port(at.COM1_BASE + 5, 1) << 8 | self._read_port(at.COM1_BASE + 6, 1))
        else:
            self._set_byte(EAX, 0x80, high=True)  # nobody answers

    def _system(self) -> None:
        function = self._word(EAX)
        size = self._memory.size
        if function == 0xE820 and self.cpu.gpr(EDX) == _SMAP:
            ranges, index = memory_map(size), self.cpu.gpr(EBX)
            if index >= len(ranges) or self.cpu.gpr(ECX) < 20:
                self._carry(True, 0x86)
                return
            row = ranges[index]
            target = self.cpu.segment(ES).base + self._word(EDI)
            self._memory.write(target, struct.pack("<QQI", *row))
            self.cpu.set_gpr(EAX, _SMAP)
            self.cpu.set_gpr(ECX, 20)
            self.cpu.set_gpr(EBX, index + 1 if index + 1 < len(ranges) else 0)
            self._carry(False)
        elif function == 0xE801:
            low = min(max(0, (size >> 10) - 1024), 15 * 1024)
            high = min(max(0, (size - (16 << 20)) >> 16), 0xFFFF)
            for register, value in ((EAX, low), (EBX, high), (ECX, low), (EDX, high)):
                self._set_word(register, value)
            self._carry(False)
        elif function >> 8 == 0x88:
            self._set_word(EAX, min(max(0, (size >> 10) - 1024), 0xFFFF))
            self._carry(False)
        elif function in (0x2400, 0x2401):
            self._carry(False, 0)  # the A20 gate is always open
        elif function == 0x2402:
            self._set_word(EAX, 1)
            self._carry(False)
        elif function == 0x2403:
            self._set_word(EBX, 3)
            self._carry(False, 0)
        else:
            self._carry(True, 0x86)

    def _reboot(self) -> None:
        self._write_port(at.RESET_CONTROL, 1, 6)

    def _time(self) -> None:
        function = self._byte(EAX, high=True)
        if function == 0x00:
            ticks = self._bda(0x6C, 4)
            self._set_word(ECX, ticks >> 16)
            self._set_word(EDX, ticks)
            self._set_byte(EAX, self._bda(0x70, 1))
            self._set_bda(0x70, 0, 1)
        elif function == 0x01:
            self._set_bda(0x6C, self._word(ECX) << 16 | self._word(EDX), 4)
        elif function in (0x02, 0x04):
            registers = (0x04, 0x02, 0x00) if function == 0x02 else (0x32, 0x09, 0x08, 0x07)
            values = []
            for register in registers:
                self._write_port(at.CMOS_BASE, 1, register)
                values.append(self._read_port(at.CMOS_BASE + 1, 1))
            self._set_word(ECX, values[0] << 8 | values[1])
            self._set_word(EDX, values[2] << 8 | (values[3] if function == 0x04 else 0))
            self._carry(False)
        else:
            self._carry(True)

    # ------------------------------------------------------------------ INT 16h

    def _keyboard(self) -> None:
        function = self._byte(EAX, high=True)
        head, tail = self._bda(0x1A), self._bda(0x1C)
        eflags = self.cpu.eflags() & ~FLAG_CF
        if function in (0x00, 0x10):
            if head == tail:
                eflags |= FLAG_CF  # the stub halts and asks again
            else:
                self._set_word(EAX, self._bda(head))
                self._set_bda(0x1A, head + 2 if head + 2 < 0x3E else 0x1E)
        elif function in (0x01, 0x11):
            self._flag(FLAG_ZF, head == tail)
            if head != tail:
                self._set_word(EAX, self._bda(head))
        elif function in (0x02, 0x12):
            self._set_byte(EAX, self._bda(0x17, 1))
            if function == 0x12:
                self._set_byte(EAX, self._bda(0x18, 1) & 0x73 | self._bda(0x96, 1) & 0x0C, high=True)
        self.cpu.set_eflags(eflags)

    # ------------------------------------------------------------------ INT 13h

    def _disk_service(self) -> None:
        function, drive = self._byte(EAX, high=True), self._byte(EDX)
        if 0 <= drive - HARD_DISK < len(self._disks):
            self._hard_disk_service(function, self._disks[drive - HARD_DISK])
        elif 0 <= drive - CDROM < len(self._cdroms):
            self._cdrom_service(function, self._cdroms[drive - CDROM])
        else:
            self._carry(True, 0x01 if function != 0x15 else 0)

    def _hard_disk_service(self, function: int, disk: BlockBackend) -> None:
        total = disk.size // SECTOR
        cylinders = min(max(1, total // (HEADS * SECTORS)), 1024)
        if function in (0x02, 0x03, 0x04):
            cylinder = self._byte(ECX, high=True) | (self._byte(ECX) & 0xC0) << 2
            sector, head = self._byte(ECX) & 0x3F, self._byte(EDX, high=True)
            count = self._byte(EAX)
            status = 0x01
            if sector and count and head < HEADS:
                block = (cylinder * HEADS + head) * SECTORS + sector - 1
                target = self.cpu.segment(ES).base + self._word(EBX)
                status = self._transfer(disk, SECTOR, function, block, count, target)
            if status:
                self._set_byte(EAX, 0)  # sectors transferred
            self._carry(status != 0, status)
        elif function == 0x08:
            last = cylinders - 1
            self._set_word(ECX, (last & 0xFF) << 8 | (last >> 2 & 0xC0) | SECTORS)
            self._set_word(EDX, (HEADS - 1) << 8 | len(self._disks) & 0x7F)
            self._set_byte(EBX, 0)
            self._carry(False, 0)
        elif function == 0x15:
            self._set_word(ECX, total >> 16)
            self._set_word(EDX, total)
            self._carry(False, 3)
        elif function == 0x48:
            self._drive_parameters(0b10, (cylinders, HEADS, SECTORS), total, SECTOR)  # the geometry is valid
        else:
            self._any_drive_service(function, disk, SECTOR)

    def _cdrom_service(self, function: int, cdrom: BlockBackend) -> None:
        if function == 0x48:
            self._drive_parameters(0b100, (0, 0, 0), cdrom.size // el_torito.SECTOR, el_torito.SECTOR)  # removable
        elif function == 0x4B and self._byte(EAX) <= 1:
            try:
                image = el_torito.find_boot_image(cdrom, "")
            except (UserError, OSError):
                self._carry(True, 0x01)
                return
            count = image.length // el_torito.VIRTUAL_SECTOR
            specification = struct.pack(
                "<BBBBIHHHHBBB", 19, 0, self._byte(EDX), 0, image.sector, 0, 0, image.segment, count, 0, 0, 0
            )
            self._memory.write(self.cpu.segment(DS).base + self._word(ESI), specification)
            self._carry(False, 0)
        else:
            self._any_drive_service(function, cdrom, el_torito.SECTOR)

    def _any_drive_service(self, function: int, medium: BlockBackend, sector: int) -> None:
        """What is the same for all but the size of their sectors: resets, and the extensions."""
        if function in (0x00, 0x01, 0x0D, 0x11):
            self._carry(False, 0)
        elif function == 0x41 and self._word(EBX) == 0x55AA:
            self._set_word(EBX, 0xAA55)
            self._set_word(ECX, 0b101)  # packet access and EDD
            self._carry(False, 0x30)
        elif function in (0x42, 0x43, 0x44):
            packet_at = self.cpu.segment(DS).base + self._word(ESI)
            packet = self._memory.read(packet_at, 16)
            length, _, count, offset, segment, block = struct.unpack("<BBHHHQ", packet)
            if length < 16 or count > 127:
                self._carry(True, 0x01)
                return
            status = self._transfer(medium, sector, function & 0xF, block, count, (segment << 4) + offset)
            if status:
                self._memory.write(packet_at + 2, bytes(2))  # sectors transferred
            self._carry(status != 0, status)
        else:
            self._carry(True, 0x01)

    def _drive_parameters(self, flags: int, geometry: tuple[int, int, int], total: int, sector: int) -> None:
        target = self.cpu.segment(DS).base + self._word(ESI)
        if int.from_bytes(self._memory.read(target, 2), "little") < 26:
            self._carry(True, 0x01)
            return
        self._memory.write(target, struct.pack("<HHIIIQH", 26, flags, *geometry, total, sector))
        self._carry(False, 0)

    def _transfer(self, medium: BlockBackend, sector: int, function: int, block: int, count: int, target: int) -> int:
        """Move sectors by function 02h (read), 03h (write) or 04h (verify); returns the INT 13h status."""
        start, length = block * sector, count * sector
        if start + length > medium.size:
            return 0x04  # sector not found
        if function == 4:
            return 0
        if function == 3 and (medium.read_only or sector != SECTOR):
            return 0x03
        try:
            if function == 3:
                medium.write(start, self._memory.read(target, length))
                medium.flush()
            else:
                self._memory.write(target, medium.read(start, length))
        except OSError:
            return 0x20  # controller failure
        return 0
