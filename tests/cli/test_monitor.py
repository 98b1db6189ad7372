"""The monitor's commands, on a machine nobody runs but the monitor."""

import io
import re
from pathlib import Path
from typing import Any

import pytest

from hvemu.cli.disk import main as disk
from hvemu.cli.monitor import Monitor
from hvemu.machine.builder import build
from hvemu.machine.machine import Machine
from hvemu.testing.catalog import catalog
from hvemu.testing.running import guest_configuration


class Desk:
    """A paused machine with a monitor that talks to us."""

    def __init__(self, name: str = "hello", until: int = 0, **settings: Any) -> None:
        self.machine: Machine = build(guest_configuration(catalog()[name], **settings))
        if until:
            self.machine.run(until)
        self._output = io.StringIO()
        self.monitor = Monitor(self.machine, self._output)

    def say(self, line: str) -> str:
        """What the monitor answers."""
        start = self._output.tell()
        self.monitor.obey(line)
        return self._output.getvalue()[start:]

    def talk(self, *lines: str) -> tuple[str, list[str]]:
        """All that is said in a conversation, and the lines nobody asked for."""
        rest = iter(lines)
        self.monitor.interact(rest)
        return self._output.getvalue(), list(rest)


@pytest.fixture
def desk() -> Desk:
    """A guest before its first instruction."""
    return Desk()


def test_help_lists_every_command(desk: Desk) -> None:
    """And an unknown command is answered with the same list."""
    names = [line.split()[0] for line in desk.say("help").splitlines()]
    assert set("info x step screendump sendkey system_powerdown system_reset nmi cont quit".split()) < set(names)
    assert f"There is no command 'fly'. Commands are: {', '.join(names)}.\n" == desk.say("fly away")


def test_step_after_hlt_sleeps_until_something_happens() -> None:
    """Not for as many steps as there are nanoseconds; and the registers say so."""
    desk = Desk("preempt")
    while not desk.machine.mode.halted:
        assert desk.machine.run(desk.machine.mode.position() + 100) is None
    asleep, deadline = desk.machine.mode.position(), desk.machine.clock.deadline()
    assert asleep + 1 < deadline
    assert "halted: the CPU sleeps until an interrupt comes" in desk.say("info registers")
    desk.say("step")
    assert deadline == desk.machine.mode.position()
    awake = ["halted" not in desk.say("step") for _ in range(10)]
    assert any(awake), "an event or two later comes the tick"


def test_mode_says_what_runs_the_guest_and_changes_it() -> None:
    """With the paging technique; what cannot be is a sentence, and nothing has changed."""
    desk = Desk("processes", until=1_000_000, cpu="opteron-g3")
    position = desk.machine.mode.position()
    assert f"mode native, the guest's own page tables, at position {position}\n" == desk.say("mode")
    assert f"mode svm, nested paging, at position {position}\n" == desk.say("mode svm")
    assert f"mode svm, shadow paging, at position {position}\n" == desk.say("mode svm/shadow")
    assert desk.say("mode trap").startswith("A running guest cannot be switched between 'trap' and others. ")
    assert desk.say("mode fly").startswith("There is no mode 'fly'. ")
    assert "Say: mode [NAME], as in mode svm.\n" == desk.say("mode bt please")
    assert desk.say("mode").startswith("mode svm, shadow paging, ")
    assert desk.say("mode bt").startswith("mode bt, shadow paging, ")
    assert 33 == desk.machine.run().status


@pytest.mark.parametrize("line", ["", "   ", "\n"])
def test_an_empty_line_does_nothing(desk: Desk, line: str) -> None:
    """Enter is no mistake."""
    assert "" == desk.say(line)


def test_info_registers_shows_the_cpu(desk: Desk) -> None:
    """General registers, segments, tables, control registers, and the next instruction."""
    text = desk.say("info registers")
    assert "EAX=2badb002" in text
    assert f"EIP={desk.machine.register_values()['eip']:08x}" in text
    for name in ("CS=", "GDT=", "IDT=", "CR0=", "CR3=", "EFER=", "next: ", "CPL=0"):
        assert name in text


def test_info_registers_works_where_no_memory_is() -> None:
    """A guest that jumped to nowhere can still be looked at."""
    desk = Desk("jump_nowhere")
    desk.machine.run()
    assert "EIP=d0000000" in desk.say("info registers")


def test_info_mem_says_that_paging_is_off(desk: Desk) -> None:
    """And how much RAM there is."""
    assert "paging is off; RAM is 00000000-00ffffff\n" == desk.say("info mem")


def test_info_mem_shows_the_mapped_ranges() -> None:
    """Ranges with user and write rights, in ascending order."""
    desk = Desk("paging")
    while not desk.machine.registers().paging().enabled:
        assert desk.machine.run(desk.machine.mode.position() + 2000) is None
    lines = desk.say("info mem").splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{8} [u-]r[w-]", line)
    assert sorted(lines) == lines


def test_info_irq_shows_both_chips_and_what_was_delivered() -> None:
    """The 8259 pair by register in hexadecimal, then deliveries by vector."""
    desk = Desk("preempt")
    desk.machine.run()
    text = desk.say("info irq")
    for name, vectors in (("master", "20-27"), ("slave", "28-2f")):
        registers = r"IRR=[0-9a-f]{2}  ISR=00  IMR=ff  ELCR=[0-9a-f]{2}"
        assert re.search(rf"^8259 {name}: {registers}  vectors {vectors}$", text, re.MULTILINE)
    assert re.search(r"vector 0x20: \d+ delivered", text)


def test_info_exits_is_the_ledger() -> None:
    """Kinds with their counts and details."""
    desk = Desk()
    assert "exits: none\nhardware assists: none\n" == desk.say("info exits")
    desk.machine.run()
    assert re.search(r"io_out +\d+  0x3f8: \d+", desk.say("info exits"))


def test_info_block_shows_drives_their_files_and_what_these_take(tmp_path: Path) -> None:
    """As the guest finds them, with all images that a snapshot builds on."""
    base, top = tmp_path / "base.vhd", tmp_path / "top.vhd"
    for command in (["create", str(base), "8M"], ["snapshot", str(base), str(top)]):
        assert 0 == disk(command)
    desk = Desk("hello", disks=(f"{top},adapter=buslogic", f"{base},read-only,cdrom"))
    lines = desk.say("info block").splitlines()
    assert "HVEMU00000: disk at buslogic, 8 MiB, BIOS drive 80h" == lines[0]
    assert re.fullmatch(rf"  {top}: vhd differencing, [\d.]+ (bytes|[KM]iB) allocated by the host", lines[1])
    assert lines[2].startswith(f"  {base}: vhd, ")
    assert "HVEMU00001: CD-ROM at ide, 8 MiB, BIOS drive E0h, read-only" == lines[3]
    assert lines[4].startswith(f"  {base}: vhd, ")
    assert "HVEMU00000: disk at ide, 8 MiB, BIOS drive 80h, what is written is forgotten\n" == Desk("disk").say(
        "info block"
    )
    image = catalog()["boot_counter"].image
    assert f"  {image}: a copy of it in memory\n" in Desk("boot_counter").say("info block")
    assert "This machine has no drives. Give it one with --disk FILE.\n" == Desk().say("info block")


@pytest.mark.parametrize("line", ["info", "info weather", "i"])
def test_info_about_nothing_says_what_there_is(desk: Desk, line: str) -> None:
    """The topics are the answer."""
    assert "Say: info registers|mem|irq|exits|block|balloon.\n" == desk.say(line)


def test_x_shows_memory(desk: Desk) -> None:
    """Sixteen bytes a line, in hexadecimal and as letters."""
    desk.machine.memory.write(0x5000, b"the quick brown fox\0")
    assert [
        "00005000  74 68 65 20 71 75 69 63 6b 20 62 72 6f 77 6e 20  the quick brown ",
        "00005010  66 6f 78 00                                      fox.",
    ] == desk.say("x 0x5000 20").splitlines()
    assert 4 == len(desk.say("x 20480").splitlines())


@pytest.mark.parametrize("line", ["x", "x here", "x 0x100 many", "x 0x100 1.5"])
def test_x_without_an_address_says_how_it_is_written(desk: Desk, line: str) -> None:
    """A mistake is answered with an example."""
    assert desk.say(line).startswith("Say: x ADDRESS [BYTES], as in x 0x100000 32")


@pytest.mark.parametrize("line", ["x 0xfee00000 16", "x 0xfffffff8 16", "x -1 4", "x 0x100000 -4", "x 0x1ffffffff 1"])
def test_x_of_a_strange_address_is_no_accident(desk: Desk, line: str) -> None:
    """Devices, the end of the address space, negative numbers: some answer, and the monitor goes on."""
    desk.say(line)
    assert "EIP=" in desk.say("info registers")


def test_step_executes_exactly_as_many_instructions() -> None:
    """step N and --max-instructions agree on what an instruction is."""
    desk = Desk()
    before = desk.machine.mode.position()
    assert "EIP=" in desk.say("step")
    assert desk.machine.mode.position() > before
    other = build(guest_configuration(catalog()["hello"], count_instructions=True))
    other.mode.limit_instructions(26)
    other.run()
    desk.say("s 25")
    assert other.register_values() == desk.machine.register_values()


def test_step_ends_where_the_guest_ends() -> None:
    """No registers of a guest that is no more, and no further steps."""
    desk = Desk("jump_nowhere")
    text, rest = desk.talk("step 100000", "never read")
    assert desk.machine.stop is not None
    assert 64 == desk.machine.stop.status
    assert ["never read"] == rest
    assert "EIP=" not in text


def test_screendump_shows_the_text_screen_or_writes_it(desk: Desk, tmp_path: Path) -> None:
    """25 rows; a file that cannot be written is a sentence."""
    desk.machine.memory.write(0xB8000, b"".join(bytes((letter, 7)) for letter in b"Look here"))
    assert "Look here" in desk.say("screendump").splitlines()[0]
    assert "" == desk.say(f"screendump {tmp_path / 'screen'}")
    assert 25 == len((tmp_path / "screen").read_text().splitlines())
    assert "Cannot write /no/such/folder: No such file or directory. Give another path.\n" == desk.say(
        "screendump /no/such/folder"
    )


def test_sendkey_types_on_the_keyboard() -> None:
    """The guest's driver hears every letter."""
    desk = Desk("keyboard", until=200_000)
    assert "" == desk.say("sendkey hi\\n")
    stop = desk.machine.run()
    assert stop is not None
    assert 33 == stop.status


def test_sendkey_of_a_letter_that_no_key_has_is_answered(desk: Desk) -> None:
    """A US keyboard has no such key; the monitor says so and goes on."""
    assert "no key of the US layout types '\N{SNOWMAN}'" in desk.say("sendkey \N{SNOWMAN}")
    assert "EIP=" in desk.say("info registers")


def test_system_powerdown_presses_the_button_and_lets_the_guest_see_it(desk: Desk) -> None:
    """The ACPI event is up to the guest; the monitor closes so that it can be."""
    _, rest = desk.talk("system_powerdown", "left")
    assert ["left"] == rest
    assert desk.machine.stop is None


def test_system_reset_resets(desk: Desk) -> None:
    """Without --reboot that is the end, with status 0."""
    _, rest = desk.talk("system_reset", "left")
    assert ["left"] == rest
    stop = desk.machine.run()
    assert stop is not None
    assert (0, "the guest reset the machine") == (stop.status, stop.reason)


def test_nmi_reaches_the_guest() -> None:
    """It is delivered at the next boundary, and counted."""
    desk = Desk("preempt", until=300_000)
    desk.say("nmi")
    desk.machine.run(desk.machine.mode.position() + 100)
    assert 1 == desk.machine.statistics()["assists"]["nmi"]


def test_a_balloon_is_asked_for_in_mode_pv_alone() -> None:
    """Sizes that make no sense are answered with what does."""
    desk = Desk("hello", until=1_000)
    for line in ("balloon 8M", "info balloon"):
        assert "This guest has no balloon." in desk.say(line)
    desk = Desk("processes_pv", until=1_000)
    assert "the guest has 16384 KiB, of 16384 KiB asked for\n" == desk.say("info balloon")
    for line in ("balloon", "balloon x", "balloon 0", "balloon 17M", "balloon 1K"):
        assert "Say: balloon SIZE, from 1M to the 16M that this guest was started with.\n" == desk.say(line)
    assert desk.say("balloon 8M").startswith("asked for 8192 KiB; the guest obeys as it runs")
    assert "the guest has 16384 KiB, of 8192 KiB asked for\n" == desk.say("info balloon")
    assert desk.machine.balloon is not None
    assert b"8192" == desk.machine.mode.domain.store.read("memory/target")  # type: ignore[attr-defined]


def test_info_irq_shows_event_channels_in_mode_pv() -> None:
    """There are no chips for such a guest."""
    desk = Desk("processes_pv", until=2_000_000)
    text = desk.say("info irq")
    assert "port 1: pending=1  masked=1  interdomain\n" in text
    assert "port 3: pending=0  masked=0  virq 0\n" in text
    assert "upcalls are held off: " in text
    assert "8259" not in text
    for line, what in (("sendkey a", "keyboard"), ("screendump", "screen"), ("system_powerdown", "power button")):
        assert f"A paravirtual guest has no {what}. Type at its console.\n" == desk.say(line)


@pytest.mark.parametrize("line", ["quit", "q"])
def test_quit_ends_the_run(desk: Desk, line: str) -> None:
    """With the status of a machine that was switched off."""
    text, rest = desk.talk(line, "left")
    assert desk.machine.stop is not None
    assert (0, ["left"], "(hvemu) ") == (desk.machine.stop.status, rest, text)


@pytest.mark.parametrize("line", ["cont", "c", "\x01c"])
def test_cont_lets_the_guest_go_on(desk: Desk, line: str) -> None:
    """Also the key that opened the monitor."""
    text, rest = desk.talk("help", line, "left")
    assert (None, ["left"]) == (desk.machine.stop, rest)
    assert text.startswith("(hvemu) help")


def test_looking_does_not_change_the_guest() -> None:
    """A guest looked at from all sides ends with the same ledger as one left alone."""
    looked, alone = Desk("ring3", until=50_000), Desk("ring3", until=50_000)
    for line in ("info registers", "info irq", "info exits", "x 0x100000 64", "screendump", "info mem"):
        looked.say(line)
    ends = []
    for desk in (looked, alone):
        desk.machine.run()
        ends.append({**desk.machine.statistics(), "wall_s": 0})
    assert ends[0] == ends[1]


def test_a_monitor_without_output_talks_to_todays_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Not to the one there was when the module was imported."""
    Monitor(build(guest_configuration(catalog()["hello"]))).obey("nonsense")
    assert "There is no command" in capsys.readouterr().out
