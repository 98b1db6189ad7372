"""The monitor: a prompt into a paused machine (Ctrl-A C, or run -S). Its commands are a table that prints itself."""

import io
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from hvemu.cpu.decoder import MAXIMUM_LENGTH, decode
from hvemu.cpu.state import GPR_NAMES, LONG_GPR_NAMES, SEGMENT_NAMES
from hvemu.machine.configuration import MMUS, parse_size
from hvemu.machine.drives import boot_devices
from hvemu.machine.machine import Machine
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.outcomes import Stop

_FLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"))

_OF_A_PC = {"screendump": "screen", "sendkey": "keyboard", "system_powerdown": "power button"}
"""Commands that need what only a PC has."""
_OF_GDB = {"c": "continue", "cont": "continue", "s": "stepi", "step": "stepi", "q": "kill", "quit": "kill"}
"""What gdb does itself, and would not notice if the monitor did."""
_NO_BALLOON = "This guest has no balloon. Those of mode pv have one, as in: hvemu run processes_pv."


class Monitor:
    """Reads commands until one lets the guest go on."""

    def __init__(self, machine: Machine, output: TextIO | None = None) -> None:
        self._machine, self._output = machine, output or sys.stdout
        self._resume = False
        self._commands: dict[str, tuple[str, Callable[[list[str]], None]]] = {
            "help": ("this list", self._help),
            "info": ("info registers|mem|irq|exits|block|balloon", self._info),
            "x": ("x ADDRESS [BYTES]: guest memory at a linear address", self._examine),
            "step": ("step [N]: execute N instructions; after HLT, sleep until something happens", self._step),
            "screendump": ("screendump [FILE]: the text screen", self._screendump),
            "sendkey": ("sendkey TEXT: type on the guest's keyboard", self._sendkey),
            "system_powerdown": ("press the power button and let the guest go on", self._power_down),
            "system_reset": ("press the reset button and let the guest go on", self._reset),
            "mode": (
                "mode [NAME]: what runs the guest, or switch to native, bt, svm, svm/nested-2 or svm/shadow",
                self._mode,
            ),
            "nmi": ("raise a non-maskable interrupt", self._nmi),
            "balloon": ("balloon SIZE: ask a paravirtual guest to make do with so much memory", self._balloon),
            "cont": ("let the guest go on", self._continue),
            "quit": ("end the run", self._quit),
        }

    def interact(self, lines: Iterable[str]) -> None:
        """Obey commands from ``lines`` until the guest may go on or the run has ended."""
        self._resume = False
        self._prompt()
        for line in lines:
            self.obey(line)
            if self._resume or self._machine.stop is not None:
                self._output.flush()
                return
            self._prompt()

    def _prompt(self) -> None:
        self._output.write("(hvemu) ")
        self._output.flush()

    def obey(self, line: str) -> None:
        """One command; a mistake is answered with what exists."""
        words = line.replace("\x01c", "cont").split()
        if not words:
            return
        name = {"c": "cont", "q": "quit", "s": "step", "i": "info"}.get(words[0], words[0])
        command = self._commands.get(name)
        if command is None:
            self._say(f"There is no command '{words[0]}'. Commands are: {', '.join(self._commands)}.")
            return
        if name in _OF_A_PC and self._machine.channels is not None:
            self._say(f"A paravirtual guest has no {_OF_A_PC[name]}. Type at its console.")
            return
        command[1](words[1:])

    def _say(self, text: str) -> None:
        self._output.write(text + "\n")

    def _help(self, _words: list[str]) -> None:
        for name, (text, _) in self._commands.items():
            self._say(f"{name:18} {text}")

    def _info(self, words: list[str]) -> None:
        topics = {
            "registers": self._registers,
            "mem": self._memory,
            "irq": self._interrupts,
            "exits": self._exits,
            "block": self._block,
            "balloon": self._balloon_info,
        }
        topic = topics.get(words[0] if words else "")
        if topic is None:
            self._say(f"Say: info {'|'.join(topics)}.")
            return
        topic()

    def _registers(self) -> None:
        cpu = self._machine.registers()
        flags = " ".join(name for bit, name in _FLAGS if cpu.flags >> bit & 1)
        if cpu.is_64_bit():
            for row in range(0, 16, 4):
                names = LONG_GPR_NAMES[row : row + 4]
                values = cpu.gprs[row : row + 4]
                self._say("  ".join(f"{n.upper():3}={v:016x}" for n, v in zip(names, values, strict=True)))
            self._say(f"RIP={cpu.instruction_pointer:016x}  RFLAGS={cpu.flags:08x} [{flags}]  CPL={cpu.cpl()}")
        else:
            for row in (0, 4):
                self._say("  ".join(f"{GPR_NAMES[i].upper()}={cpu.gpr(i):08x}" for i in range(row, row + 4)))
            self._say(f"EIP={cpu.instruction_pointer:08x}  EFLAGS={cpu.flags:08x} [{flags}]  CPL={cpu.cpl()}")
        if cpu.halted:
            self._say("halted: the CPU sleeps until an interrupt comes")
        for name, segment in zip(SEGMENT_NAMES, cpu.segments, strict=True):
            self._say(
                f"{name.upper()}={segment.selector:04x}  base={segment.base:08x}  limit={segment.limit:08x}"
                f"  attributes={segment.attributes:06x}"
            )
        self._say(f"GDT={cpu.gdtr.base:08x}:{cpu.gdtr.limit:04x}  IDT={cpu.idtr.base:08x}:{cpu.idtr.limit:04x}")
        self._say(f"CR0={cpu.cr0:08x}  CR2={cpu.cr2:08x}  CR3={cpu.cr3:08x}  CR4={cpu.cr4:08x}  EFER={cpu.efer:08x}")
        try:
            code = self._machine.read_memory(cpu.linear_ip(), MAXIMUM_LENGTH)
        except ValueError as error:
            self._say(f"next: {error}")
            return
        self._say(f"next: {decode(code, cpu.bits(), cpu.instruction_pointer) or 'undecodable ' + code[:4].hex(' ')}")

    def _memory(self) -> None:
        """Mapped linear ranges with their rights, one a line."""
        from hvemu.cli.page_ranges import mapped_ranges

        machine = self._machine
        paging = machine.registers().paging()
        if not paging.enabled:
            self._say(f"paging is off; RAM is 00000000-{machine.memory.size - 1:08x}")
            return
        for first, last, rights in mapped_ranges(machine.memory, paging):
            self._say(f"{first:08x}-{last:08x} {rights}")

    def _interrupts(self) -> None:
        if self._machine.channels is not None:
            for line in self._machine.channels():
                self._say(line)
            return
        board = self._machine.board
        for name, chip in (("8259 master", board.pic.master), ("8259 slave", board.pic.slave)):
            self._say(
                f"{name}: IRR={chip.requests():02x}  ISR={chip.in_service:02x}  IMR={chip.interrupt_mask:02x}"
                f"  ELCR={chip.edge_level_control:02x}  vectors {chip.vector_base:02x}-{chip.vector_base + 7:02x}"
            )
        self._say(f"local APIC asks for an interrupt: {'yes' if board.interrupt.level else 'no'}")
        counts = self._machine.ledger.as_dict()["assists_by_detail"].get("external_interrupt", {})
        for vector, count in counts.items():
            self._say(f"vector {int(vector):#04x}: {count} delivered")

    def _exits(self) -> None:
        from hvemu.cli.report import ledger_lines

        for line in ledger_lines(self._machine.statistics()):
            self._say(line)

    def _block(self) -> None:
        """Drives, the file of each, and those that it builds on."""
        from hvemu.cli.disk_images import size_words
        from hvemu.devices.images.describing import describe_open

        drives = self._machine.media.drives
        numbers = {id(device.medium): device.number for device in boot_devices(drives)}
        if not drives:
            self._say("This machine has no drives. Give it one with --disk FILE.")
        for each in drives:
            kind = "CD-ROM" if each.drive.cdrom else "disk"
            forgotten = not each.drive.cdrom and (each.image is None or each.drive.nonpersistent)
            marks = "".join(
                f", {text}"
                for text, applies in (
                    (f"BIOS drive {numbers[id(each.medium)]:X}h", self._machine.channels is None),
                    ("read-only", each.medium.read_only or each.drive.cdrom),
                    ("what is written is forgotten", forgotten),
                )
                if applies
            )
            self._say(f"{each.serial}: {kind} at {each.drive.adapter}, {size_words(each.medium.size)}{marks}")
            for fact in describe_open(each.image) if each.image is not None else ():
                self._say(f"  {fact.path}: {fact.format}, {size_words(fact.stored)} allocated by the host")
            if each.image is None and each.drive.path:
                self._say(f"  {each.drive.path}: a copy of it in memory")

    def _examine(self, words: list[str]) -> None:
        try:
            address = int(words[0], 0)
            length = min(int(words[1], 0) if len(words) > 1 else 64, 4096)
        except (ValueError, IndexError):
            self._say("Say: x ADDRESS [BYTES], as in x 0x100000 32.")
            return
        try:
            data = self._machine.read_memory(address, length)
        except ValueError as error:
            self._say(f"There is nothing to show: {error}. info mem shows what is mapped.")
            return
        for at in range(0, len(data), 16):
            row = data[at : at + 16]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            self._say(f"{address + at:08x}  {row.hex(' '):47}  {text}")

    def _step(self, words: list[str]) -> None:
        if len(words) > 1 or (words and not words[0].isdecimal()):
            self._say("Say: step [N], as in step 10.")
            return
        count = int(words[0]) if words else 1
        for _ in range(min(count, 100_000)):
            if self._machine.step() is not None:
                return
        self._registers()

    def _screendump(self, words: list[str]) -> None:
        text = "\n".join(self._machine.screen())
        if not words:
            self._say(text)
            return
        try:
            with open(words[0], "w", encoding="utf-8") as file:
                file.write(text + "\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            self._say(f"Cannot write {words[0]}: {reason}. Give another path.")

    def _sendkey(self, words: list[str]) -> None:
        try:
            self._machine.type_text(" ".join(words).replace("\\n", "\n"))
        except ValueError as error:
            self._say(f"Say: sendkey TEXT, as in sendkey hello\\n ({error}).")

    def _power_down(self, _words: list[str]) -> None:
        self._machine.press_power_button()
        self._resume = True

    def _reset(self, _words: list[str]) -> None:
        self._machine.board.request_reset()
        self._resume = True

    def _nmi(self, _words: list[str]) -> None:
        self._machine.board.nmi.raise_nmi()

    def _mode(self, words: list[str]) -> None:
        if len(words) > 1:
            self._say("Say: mode [NAME], as in mode svm.")
            return
        if words:
            try:
                self._machine.switch_mode(words[0])
            except UserError as error:
                self._say(str(error))
                return
        configuration = self._machine.configuration
        paging = configuration.mmu or MMUS[configuration.mode][0]
        tables = "the guest's own page tables" if paging == "none" else f"{paging} paging"
        self._say(f"mode {configuration.mode}, {tables}, at position {self._machine.mode.position()}")

    def _balloon(self, words: list[str]) -> None:
        if self._machine.balloon is None:
            self._say(_NO_BALLOON)
            return
        memory = self._machine.configuration.memory
        try:
            size = parse_size(words[0] if words else "")
        except UserError:
            size = 0
        if not 1 << 20 <= size <= memory:
            self._say(f"Say: balloon SIZE, from 1M to the {memory >> 20}M that this guest was started with.")
            return
        self._machine.balloon.set_balloon(size)
        self._say(f"asked for {size >> 10} KiB; the guest obeys as it runs, if it looks at memory/target at all")

    def _balloon_info(self) -> None:
        balloon = self._machine.balloon
        if balloon is None:
            self._say(_NO_BALLOON)
        else:
            self._say(f"the guest has {balloon.balloon() >> 10} KiB, of {balloon.balloon_target() >> 10} KiB asked for")

    def _continue(self, _words: list[str]) -> None:
        self._resume = True

    def _quit(self, _words: list[str]) -> None:
        self._machine.stop = Stop(ExitStatus.POWER_OFF, "ended from the monitor")


def for_gdb(machine: Machine) -> Callable[[str], str]:
    """gdb's command ``monitor``: one line of it in, what the monitor says out. It neither moves the guest nor writes
    files, as whoever reaches the port may say it.
    """

    def obey(line: str) -> str:
        words = line.split()
        if words and words[0] in _OF_GDB:
            return f"Say {_OF_GDB[words[0]]} to gdb.\n"
        if words[:1] == ["screendump"] and len(words) > 1:
            return "gdb writes no files here. Leave the name out.\n"
        output = io.StringIO()
        Monitor(machine, output).obey(line)
        return output.getvalue()

    return obey
