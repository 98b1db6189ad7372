"""The options of ``hvemu run``, with QEMU's spellings beside our own.

An option of QEMU's that hvemu lacks is refused by name, never ignored.
"""

import argparse
import calendar
import re
import time
from pathlib import Path
from typing import Any, NoReturn

from hvemu.cpu.hypervisor_leaves import HYPERVISOR_LEAVES
from hvemu.machine.configuration import (
    CPU_MODELS,
    LOADERS,
    MODES,
    SHADOWS,
    MachineConfiguration,
    from_file,
    parse_size,
)
from hvemu.machine.drives import escaped
from hvemu.vocabulary.errors import UserError

_QEMU_LACKING = frozenset(
    "accel audio audiodev bios blockdev chardev d D daemonize debugcon device drive dtb enable-kvm "
    "fda fdb fsdev full-screen fw_cfg g incoming k L loadvm machine M mem-path mon monitor "
    "msg name net netdev nic numa object only-migratable option-rom parallel pflash pidfile plugin preconfig qmp "
    "readconfig runas sandbox sd semihosting seed set smbios snapshot spice tpmdev trace usb usbdevice uuid "
    "vga virtfs vnc watchdog".split()
)
"""Options of qemu-system-i386 that hvemu does not have (yet)."""
_INSTEAD = {
    "d D": "Use --trace FILE, which writes every exit and event.",
    "mon monitor qmp": "Press Ctrl-A C for hvemu's monitor, or start in it with -S.",
    "debugcon": "The debug console is built in at port 0xE9; leave the option out.",
    "device": "Every device hvemu has is built in, isa-debug-exit at port 0xF4 too; leave the option out.",
    "blockdev drive": "Use --disk FILE[,adapter=ide|buslogic|virtio-scsi|pv][,read-only][,nonpersistent][,cdrom].",
    "fda fdb": "There are no floppies; give the image to boot as IMAGE, as a hard disk.",
    "accel enable-kvm": "Choose a technique with --mode.",
    "net netdev nic": "There is no network yet; leave the option out.",
    "vga vnc": "Use --display text, which shows the text screen on the terminal.",
}
"""What hvemu has in place of options it lacks."""


class Once(argparse.Action):
    """An option that stands for one drive, so that a second file would only hide the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Keep the value; raises UserError for a second one."""
        if getattr(namespace, self.dest) is not None:
            raise UserError(f"The option {option} is given twice", "Give the others with --disk.")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Its complaints are ours: one sentence, status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message[0].upper() + message[1:], f"See {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The parser of ``hvemu run``."""
    result = Parser(
        prog="hvemu run",
        allow_abbrev=False,
        description="Boot a guest. The process status is the guest's verdict; see the README.",
    )
    add_image_options(result)
    add = result.add_argument
    add("--mode", choices=MODES, help="the virtualization technique")
    add("--mmu", metavar="TECHNIQUE", help="paging technique; mode svm has nested, nested-2 and shadow")
    add("--intercept", metavar="NAMES", action="append", help="more that is to exit in mode svm, as in rdtsc,cr3_write")
    add("--shadow", choices=SHADOWS, help="shadow paging: cached, flushed on CR3 loads, tracing all writes, or simple")
    add("--audit", action="store_true", default=None, help="warn when a sensitive instruction lies (mode trap, slow)")
    add(
        "--hypervisor-leaves",
        choices=tuple(HYPERVISOR_LEAVES),
        help="whose interface CPUID shows and the machine offers (default: xen in mode pv, else none)",
    )
    add("--serial", "-serial", metavar="WHERE", help="COM1: stdio, none, FILE, tcp:PORT or pty")
    add("--display", "-display", choices=("none", "text"), help="show the VGA text screen")
    add("-nographic", action="store_true", help="same as --display none --serial stdio")
    add("--clock", choices=("virtual", "host"), help="virtual is deterministic, host is interactive")
    add("--rtc", metavar="TIME", help="what the RTC says at power-on: 2000-01-01T00:00:00 or seconds since 1970")
    add("--max-instructions", type=positive, metavar="N", help="count instructions and end after N")
    add("--count-instructions", action="store_true", default=None, help="count instructions exactly (slower)")
    add("--timeout", type=seconds, metavar="S", help="end after S seconds of host time")
    add("--ledger", metavar="FILE", help="write counts of all exits as JSON")
    add("--trace", metavar="FILE", help="write every event as a line of JSON")
    add("--translation-log", metavar="FILE", help="write every unit as it is translated, side by side (mode bt)")
    add("--strict", action="store_true", default=None, help="an unclaimed port or address ends the guest")
    add("--reboot", dest="reboot", action="store_true", default=None, help="a reset restarts the guest")
    add("-no-reboot", "--no-reboot", dest="reboot", action="store_false", help="a reset ends the run (the default)")
    add("--name", metavar="NAME", help="what the machine is called")
    add("--print-config", action="store_true", help="print the configuration as TOML and do not run")
    add("-S", dest="paused", action="store_true", help="start in the monitor, or held for gdb if it is to connect")
    add("-s", dest="gdb", action="store_const", const=("127.0.0.1", 1234), help="same as -gdb tcp::1234")
    add("-gdb", dest="gdb", type=_gdb_address, metavar="DEVICE", help="tcp:[HOST]:PORT: let gdb connect; 127.0.0.1")
    add("-smp", "--smp", metavar="N", help="number of CPUs; only 1 so far")
    return result


def add_image_options(result: argparse.ArgumentParser) -> None:
    """What is loaded, and into what: the options that commands beside ``hvemu run`` share with it."""
    add = result.add_argument
    add(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="multiboot ELF, Linux bzImage, disk or CD-ROM image, or a guest's name",
    )
    add("-kernel", dest="kernel", metavar="IMAGE", help="the same, as QEMU spells it")
    add("--config", metavar="FILE", help="a machine configuration in TOML; options given here win over it")
    add("--memory", "-m", metavar="SIZE", help="64M, 1G; a plain number is MiB")
    add("--cpu", "-cpu", metavar="MODEL[,-FEATURE...]", help=f"one of {', '.join(CPU_MODELS)}")
    add("--append", "-append", metavar="TEXT", help="kernel command line")
    add("--initrd", "-initrd", metavar="FILE", help="initial RAM disk")
    add("--module", action="append", metavar="FILE [ARGS]", help="multiboot module; may be repeated")
    add("--loader", choices=LOADERS, help="how to load IMAGE; auto looks at it")
    add(
        "--disk",
        action="append",
        metavar="FILE[,OPTION...]",
        help="a drive, with adapter=ide, buslogic, virtio-scsi or pv, "
        "read-only, nonpersistent, cdrom; may be repeated; without IMAGE the first hard disk that can be booted is, "
        "else the first CD-ROM",
    )
    add(
        "--parents-in",
        metavar="FOLDER",
        action="append",
        help="what the image of a --disk builds on may lie there too, not only in its own folder or below",
    )
    for letter in "abcd":
        add(f"-hd{letter}", action=Once, metavar="FILE", help="the same as --disk, as QEMU spells it, without options")
    add("-cdrom", action=Once, metavar="FILE", help="the same as --disk FILE,cdrom")
    add(
        "-boot",
        metavar="[order=]LETTERS",
        help="which drives are tried, as in dc: CD-ROMs, then hard disks (default: cd)",
    )
    add("--load-address", metavar="ADDRESS", help="where --loader flat puts the image")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, MachineConfiguration]:
    """Options and the configuration they describe; raises UserError."""
    refuse_lacking(arguments)
    options = parser().parse_args(arguments)
    if options.smp not in (None, "1"):
        raise UserError(f"-smp {options.smp} is not possible", "hvemu has one CPU per machine so far; use -smp 1.")
    values: dict[str, Any] = {}
    for key in (
        "mode",
        "mmu",
        "shadow",
        "audit",
        "hypervisor_leaves",
        "serial",
        "display",
        "clock",
        "strict",
        "reboot",
        "name",
    ):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    if options.intercept:
        values["intercept"] = tuple(name for text in options.intercept for name in text.split(","))
    if options.nographic:
        values.update(display="none", serial=values.get("serial", "stdio"))
    if options.display == "text" and options.serial is None:
        values["serial"] = "none"
    if options.rtc is not None:
        values["rtc"] = _time(options.rtc)
    if options.count_instructions or options.max_instructions is not None:
        values["count_instructions"] = True
    configuration = image_configuration(options, "run", **values)
    if options.translation_log and configuration.mode != "bt":
        raise UserError(f"Mode {configuration.mode} translates nothing", "Use --translation-log with --mode bt.")
    return options, configuration


def image_configuration(options: argparse.Namespace, command: str, **others: Any) -> MachineConfiguration:
    """The configuration that the options of ``add_image_options`` and ``others`` describe; raises UserError."""
    values: dict[str, Any] = {}
    image = options.image or options.kernel
    if options.image and options.kernel:
        raise UserError("Two images are given", "Give either IMAGE or -kernel IMAGE.")
    if image:
        values["image"] = image
        _from_catalog(image, values)
    for key in ("append", "initrd", "loader"):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    if options.memory is not None:
        values["memory"] = parse_size(options.memory)
    if options.cpu is not None:
        values["cpu"], values["cpu_without"] = _cpu(options.cpu)
    if options.module:
        values["modules"] = tuple(options.module)
    disks = [*(options.disk or ())]
    disks += [escaped(path) for path in (options.hda, options.hdb, options.hdc, options.hdd) if path]
    disks += [f"{escaped(options.cdrom)},cdrom"] if options.cdrom else []
    if disks:
        forgotten = ",nonpersistent" if command != "run" else ""  # who runs a guest several times begins anew
        values["disks"] = tuple(disk + forgotten for disk in disks)
        values.pop("scratch_disk", None)
    if options.boot is not None:
        values["boot_order"] = _boot_order(options.boot)
    if options.parents_in:
        values["parents_in"] = tuple(options.parents_in)
    if options.load_address is not None:
        values["load_address"] = number(options.load_address)
    values.update(others)
    if options.config:
        return from_file(Path(options.config), **values)
    if not image and not disks:
        hint = f"Type: hvemu {command} IMAGE; hvemu list guests shows what comes with hvemu."
        raise UserError("No image is given", hint)
    return MachineConfiguration(**values)


def _boot_order(text: str) -> str:
    order = text.removeprefix("order=")
    if "=" in order or "," in order or not order:
        raise UserError(f"'{text}' is not supported by hvemu", "Write -boot order=dc or -boot dc; there is no menu.")
    return order


def _from_catalog(image: str, values: dict[str, Any]) -> None:
    """A name that is no file may be a guest of the catalogue, with its own memory and command line."""
    if Path(image).exists() or "/" in image:
        return
    from hvemu.testing.catalog import catalog

    guest = catalog().get(image)
    if guest is None:
        guests = "hvemu list guests shows them" if "." in image else f"these are {', '.join(catalog())}"
        raise UserError(f"There is no image {image}", f"Give a file, or a guest: {guests}.")
    values.update(image=str(guest.image), name=guest.name, memory=guest.memory << 20, append=guest.command_line)
    if guest.disk:
        values["scratch_disk"] = guest.disk << 20
    if guest.format == "disk":
        values["loader"] = "disk"
    if guest.modes[0] != MODES[0]:
        values["mode"] = guest.modes[0]


def refuse_lacking(arguments: list[str]) -> None:
    for argument in arguments:
        if any(0xD800 <= ord(character) < 0xE000 for character in argument):
            raise UserError(f"The argument {argument!r} is not text in UTF-8", "Write it in UTF-8, file names too.")
        bare = argument.lstrip("-").split("=")[0]
        known = argument in ("--trace", "--name") or argument.startswith(("--trace=", "--name="))
        if argument.startswith("-") and bare in _QEMU_LACKING and not known:
            advice = (text for options, text in _INSTEAD.items() if bare in options.split())
            raise UserError(
                f"QEMU's option -{bare} is not supported by hvemu", next(advice, "See hvemu run --help for what is.")
            )


def _gdb_address(text: str) -> tuple[str, int] | None:
    """Host and port of QEMU's tcp:[HOST]:PORT[,OPTION...]; its options are about waiting, which -S decides here."""
    if text == "none":
        return None
    match = re.fullmatch(r"tcp:([^:]*):(\d{1,5})(,.*)?", text, re.ASCII)
    if match is None or int(match[2]) > 65535:
        raise UserError(f"gdb cannot connect to '{text}'", "Write it as -gdb tcp::1234 or -gdb tcp:127.0.0.1:1234.")
    return match[1] or "127.0.0.1", int(match[2])


def _cpu(text: str) -> tuple[str, tuple[str, ...]]:
    from hvemu.cpu.cpuid import FEATURE_BITS

    model, *changes = text.split(",")
    without = []
    for change in changes:
        feature = change[1:]
        if not change.startswith("-") or feature not in FEATURE_BITS:
            raise UserError(
                f"'{change}' is not a feature that can be taken away",
                f"Write -FEATURE with one of: {', '.join(FEATURE_BITS)}.",
            )
        without.append(feature)
    return model.lower(), tuple(without)


def number(text: str) -> int:
    """A number as people write it; raises UserError."""
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"'{text}' is not a number", "Write it as 1048576 or 0x100000.") from None


def positive(text: str) -> int:
    """A number above zero; raises UserError."""
    value = number(text)
    if value <= 0:
        raise UserError(f"{text} is not positive", "Give a number above zero.")
    return value


def seconds(text: str) -> float:
    """A number of seconds above zero; raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UserError(f"'{text}' is not a number of seconds", "Write it as --timeout 10.")
    return value


def _time(text: str) -> int:
    if text.isdecimal():
        return int(text)
    for layout in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"):
        try:
            return calendar.timegm(time.strptime(text, layout))
        except ValueError:
            continue
    raise UserError(f"'{text}' is not a time", "Write it as 2000-01-01T00:00:00 or as seconds since 1970.")
