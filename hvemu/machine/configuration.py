"""MachineConfiguration: the one frozen, validated, versioned value that every way of building a machine starts from."""

import dataclasses
import stat
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hvemu.cpu.cpuid import FEATURE_BITS
from hvemu.cpu.hypervisor_leaves import HYPERVISOR_LEAVES
from hvemu.machine.drives import check_boot_order, check_drives
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.svm import EXIT_NESTED_PAGE_FAULT, exit_code

VERSION: Final = 1
MINIMUM_MEMORY: Final = 1 << 20
MAXIMUM_MEMORY: Final = 3 << 30
MAXIMUM_SCRATCH_DISK: Final = 1 << 30
DEFAULT_RTC: Final = 946_684_800
"""2000-01-01 00:00:00 UTC, so that a run without ``--rtc`` is the same every day."""
_DEFAULT_LOAD_ADDRESS: Final = 0x10_0000
PC_MODES: Final = ("native", "trap", "bt", "svm")
"""Techniques for guests that take the machine for a PC."""
MODES: Final = (*PC_MODES, "pv")
MMUS: Final = {
    "native": ("none",), "trap": ("shadow",), "bt": ("shadow",), "svm": ("nested", "nested-2", "shadow"),
    "pv": ("direct",),
}  # fmt: skip
"""Paging techniques that a mode can use, its own choice first; ``nested-2`` has tables of two levels."""
SHADOWS: Final = ("cached", "flush", "trace", "simple")
"""Variants of shadow paging: with all refinements, flushed on every CR3 load, tracing every write, or both."""
CPU_MODELS: Final = (
    "conroe", "penryn", "nehalem", "westmere", "sandybridge", "core2duo", "pentium3",
    "opteron-g1", "opteron-g2", "opteron-g3", "phenom", "epyc", "qemu32",
)  # fmt: skip
SVM_CPU_MODELS: Final = ("opteron-g3", "opteron-g2", "phenom", "epyc")
LOADERS: Final = ("auto", "multiboot", "bzimage", "disk", "flat", "xen")
_LONGEST_FILE: Final = 1 << 20


@dataclass(frozen=True)
class MachineConfiguration:
    """A machine before power-on. Sizes are bytes; ``rtc`` is seconds since 1970 UTC."""

    image: str = ""
    """What is booted; unless given, the boot sector of the first disk."""
    disks: tuple[str, ...] = ()
    """Drives, each as FILE[,adapter=NAME][,read-only][,nonpersistent][,cdrom]."""
    boot_order: str = ""
    """Kinds of drives that the BIOS tries: c for hard disks, d for CD-ROMs; unless given, cd."""
    parents_in: tuple[str, ...] = ()
    """Folders in which images that ``disks`` build on may lie, besides their own."""
    scratch_disk: int = 0
    """Bytes of a disk of zeros in memory, behind ``disks``, that is forgotten at the end; 0 is none."""
    name: str = "guest"
    identifier: str = ""
    mode: str = "native"
    mmu: str = ""
    """Paging technique; unless given, the mode's own choice."""
    intercept: tuple[str, ...] = ()
    """What is to exit besides what has to, in mode ``svm``; by the names of exits."""
    shadow: str = "cached"
    """Variant of shadow paging, for modes that use it."""
    audit: bool = False
    """Whether mode ``trap`` looks out for sensitive instructions whose result is wrong; slow."""
    memory: int = 64 << 20
    cpu: str = ""
    """CPU model; unless given, one with AMD-V in mode ``svm`` and ``penryn`` in the others."""
    cpu_without: tuple[str, ...] = ()
    hypervisor_leaves: str = ""
    """Whose leaves CPUID has from 0x40000000 on; unless given, Xen's in mode ``pv`` and none in the others, which show
    a guest the same machine."""
    append: str = ""
    initrd: str = ""
    modules: tuple[str, ...] = ()
    loader: str = "auto"
    load_address: int = _DEFAULT_LOAD_ADDRESS
    serial: str = "stdio"
    second_serial: str = "none"
    display: str = "none"
    clock: str = "virtual"
    rtc: int = DEFAULT_RTC
    strict: bool = False
    reboot: bool = False
    """Whether a reset restarts the guest; otherwise it ends the run."""
    count_instructions: bool = False
    version: int = VERSION

    @property
    def runs_long_mode(self) -> bool:
        """Whether the technique does; that the CPU model has it is another thing. Shadow tables have three levels."""
        return self.mmu not in ("shadow", "direct")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _text(field.name, getattr(self, field.name))
        if not self.identifier:
            object.__setattr__(self, "identifier", str(uuid.uuid5(uuid.NAMESPACE_URL, f"hvemu:{self.name}")))
        try:
            uuid.UUID(self.identifier)
        except ValueError:
            raise UserError(f"The identifier '{self.identifier}' is not a UUID", "Leave it out to get one.") from None
        _choice("mode", self.mode, MODES)
        check_drives(self.disks, self.mode)
        if self.boot_order:
            check_boot_order(self.boot_order)
            if self.image:
                hint = "Leave out -boot, or give the image with --disk."
                raise UserError("What is booted is IMAGE, and no drive", hint)
        if not 0 <= self.scratch_disk <= MAXIMUM_SCRATCH_DISK:
            hint = f"Choose 0 to {MAXIMUM_SCRATCH_DISK}."
            raise UserError(f"A scratch disk of {self.scratch_disk} bytes is not possible", hint)
        _choice("shadow variant", self.shadow, SHADOWS)
        if not self.mmu:
            object.__setattr__(self, "mmu", MMUS[self.mode][0])
        if self.mmu not in MMUS[self.mode]:
            raise UserError(f"Mode {self.mode} has no paging technique '{self.mmu}'", _alternatives(MMUS[self.mode]))
        if self.shadow != SHADOWS[0] and self.mmu != "shadow":
            hint = f"Use --shadow {self.shadow} with --mode trap, --mode bt, or --mode svm --mmu shadow."
            raise UserError(f"Mode {self.mode} has no shadow page tables", hint)
        for name in self.intercept:
            if exit_code(name) == EXIT_NESTED_PAGE_FAULT:
                raise UserError("Nested page faults exit unasked", "Leave npf out of --intercept.")
        if self.intercept and self.mode != "svm":
            raise UserError(f"Mode {self.mode} has no intercepts to choose", "Use --intercept with --mode svm.")
        if not self.cpu:
            object.__setattr__(self, "cpu", "opteron-g3" if self.mode == "svm" else "penryn")
        if self.audit and self.mode != "trap":
            raise UserError(f"Mode {self.mode} does not look for lies of the kernel's", "Use --audit with --mode trap.")
        if not self.hypervisor_leaves:
            object.__setattr__(self, "hypervisor_leaves", "xen" if self.mode == "pv" else "none")
        _choice("hypervisor interface", self.hypervisor_leaves, tuple(HYPERVISOR_LEAVES))
        if self.mode == "pv" and self.hypervisor_leaves not in ("xen", "none"):
            hint = "Use --hypervisor-leaves xen or none with --mode pv."
            raise UserError(f"Mode pv cannot show the leaves of {self.hypervisor_leaves}: its interface is Xen's", hint)
        _choice("cpu", self.cpu, CPU_MODELS)
        if self.mode == "svm" and self.cpu not in SVM_CPU_MODELS:
            hint = f"Use one of {', '.join(SVM_CPU_MODELS)}, as in --cpu {SVM_CPU_MODELS[0]}."
            raise UserError(f"Mode svm needs a CPU with AMD-V, and {self.cpu} has none", hint)
        _choice("clock", self.clock, ("virtual", "host"))
        _choice("display", self.display, ("none", "text"))
        _choice("loader", self.loader, LOADERS)
        for feature in self.cpu_without:
            _choice("CPU feature", feature, tuple(FEATURE_BITS))
        if self.version != VERSION:
            raise UserError(f"Configuration version {self.version} is unknown", f"This hvemu reads version {VERSION}.")
        if not MINIMUM_MEMORY <= self.memory <= MAXIMUM_MEMORY or self.memory % 4096:
            raise UserError(
                f"Memory of {self.memory} bytes is not possible",
                "Choose 1M to 3G in multiples of 4K, as in --memory 64M.",
            )
        if not 0 <= self.rtc < 1 << 32:
            raise UserError(f"The time {self.rtc} is out of range", "Give --rtc as 2000-01-01T00:00:00 or seconds.")
        unused = self.loader != "flat" and self.load_address == _DEFAULT_LOAD_ADDRESS
        if not unused and not 0 <= self.load_address < self.memory:
            raise UserError(f"Load address {self.load_address:#x} is outside memory", "Choose one below --memory.")
        if len(self.append.encode()) > 4000:
            raise UserError("The kernel command line is longer than 4000 bytes", "Shorten --append.")


def _alternatives(names: tuple[str, ...]) -> str:
    return f"It has {' and '.join(names)}." if names != ("none",) else "Leave out --mmu."


def from_toml(text: str, **overrides: Any) -> MachineConfiguration:
    """A configuration from TOML text; ``overrides`` win. Raises UserError."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits, of thousands of brackets
        raise UserError(f"The configuration is not TOML: {error}", "See hvemu run --help for its keys.") from None
    known = {field.name: field for field in dataclasses.fields(MachineConfiguration)}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"Unknown key '{key}' in the configuration", f"Known keys: {', '.join(sorted(known))}.")
        default = known[key].default
        wanted = str if default is dataclasses.MISSING else type(default)
        if wanted is tuple:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UserError(f"'{key}' must be a list of strings", "As in: modules = ['a', 'b'].")
            values[key] = tuple(value)
        elif key == "memory" and isinstance(value, str):
            values[key] = parse_size(value)
        elif type(value) is not wanted:
            raise UserError(f"'{key}' must be of type {wanted.__name__}", "See hvemu run --help.")
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise UserError(f"'{key}' has more than 64 bits", "See hvemu run --help.")
    merged = {**values, **overrides}
    if "image" not in merged and not merged.get("disks"):
        raise UserError("The configuration names no image", "Add a line like: image = 'kernel.elf'.")
    return MachineConfiguration(**merged)


def to_toml(configuration: MachineConfiguration) -> str:
    """The TOML text that ``from_toml`` reads back to an equal value."""
    lines = []
    for field in dataclasses.fields(configuration):
        value = getattr(configuration, field.name)
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, int):
            text = str(value)
        elif isinstance(value, tuple):
            text = "[" + ", ".join(_quote(item) for item in value) + "]"
        else:
            text = _quote(value)
        lines.append(f"{field.name} = {text}")
    return "\n".join(lines) + "\n"


def from_file(path: Path, **overrides: Any) -> MachineConfiguration:
    """A configuration from a TOML file; raises UserError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"The configuration {path} is not a regular file", "Check the path given to --config.")
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        text = data.decode("utf-8") if len(data) <= _LONGEST_FILE else ""
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the configuration {path}: {error}", "Check the path given to --config.") from None
    if len(data) > _LONGEST_FILE:
        raise UserError(f"The configuration {path} is longer than 1 MiB", "Check the path given to --config.")
    return from_toml(text, **overrides)


def parse_size(text: str) -> int:
    """``64M``, ``1G``, ``4096K`` or plain MiB as in QEMU's ``-m``; raises UserError."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "B": 1}
    body, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "M")
    if unit not in units or not body.isascii() or not body.isdecimal() or len(body) > 12:
        raise UserError(f"'{text}' is not a memory size", "Write it as 64M or 1G.")
    return int(body) * units[unit]


def _quote(text: str) -> str:
    """A basic string of TOML. Surrogates cannot be written, which is why a configuration refuses them."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(ord(c)) for c in escaped) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def _text(name: str, value: object) -> None:
    """Refuse what is not Unicode: bytes of a file name or a command line that were not UTF-8."""
    for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
        if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            raise UserError(f"The {name.replace('_', ' ')} {text!a} is not UTF-8", "Rename the file, or type it again.")


def _choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"There is no {what} '{value}'", f"Choose one of: {', '.join(choices)}.")
