"""Bochs for ``hvemu bench --boot``: the same kernel and command line, timed without Bochs' BIOS and boot loader.

Bochs starts no kernel by itself: 2.7 knows load32bitOSImage only to say that it is no longer supported. Its BIOS boots
a CD-ROM, on which ISOLINUX loads the kernel and its initial RAM disk and says so on the serial line; the kernel's time
is from there to its reset or power-off. The serial line, Bochs' log and its complaints come through one pipe, a line at
a time, so that both moments are seen as they happen. Debian's Bochs is the one with a debugger, which waits for a
command: a file has it. Its display is the terminal's, which nobody looks at.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from hvemu.loader.bzimage import is_bzimage
from hvemu.vocabulary.errors import UserError

PACKAGES: Final = {
    "bochs": "usr/bin/bochs",
    "bochs-term": "usr/lib/*/bochs/plugins/libbx_term_gui.so",
    "bochsbios": "usr/share/bochs/BIOS-bochs-latest",
    "vgabios": "usr/share/vgabios/vgabios.bin",
    "isolinux": "usr/lib/ISOLINUX/isolinux.bin",
    "syslinux-common": "usr/lib/syslinux/modules/bios/ldlinux.c32",
    "xorriso": "usr/bin/xorriso",
}
"""Debian's packages that it takes, and the file of each that is used."""
_ROOT: Final = Path("/")
_SPEED: Final = 50_000_000
"""Instructions to a second of the guest's time: about what Bochs does on a host of today, as its manual asks for."""
_LOADED: Final = re.compile(rb"Loading initrd\.* ?ok")
_RESET: Final = b"bx_pc_system_c::Reset("
_PANIC: Final = b">>PANIC<<"
_POWER_OFF: Final = b"soft power off"
_HINT: Final = "Try hvemu run: the guest has to come to a reboot or a power-off."


class Booted(NamedTuple):
    """Host seconds."""

    kernel: float
    """From the end of the boot loader to the guest's reset or power-off."""
    before: float
    """For the BIOS and the boot loader."""


def missing(root: Path = _ROOT) -> list[str]:
    """The packages that have to be installed first."""
    return [package for package, pattern in PACKAGES.items() if not any(root.glob(pattern))]


def boot(kernel: str, initrd: str, append: str, memory: int) -> Booted:
    """Boot once, with ``memory`` in MiB; raises UserError if it does not come to its end."""
    with Path(kernel).open("rb") as file:
        if not is_bzimage(file.read(4096)):
            raise UserError(f"{kernel} is no bzImage, which is what ISOLINUX loads", "Give Bochs a Linux kernel.")
    with tempfile.TemporaryDirectory() as folder:
        image = _image(Path(folder), kernel, initrd, append)
        reading, writing = os.pipe()
        Path(folder, "bochsrc").write_text(configuration(image, f"/dev/fd/{writing}", memory))
        Path(folder, "commands").write_text("continue\n")
        started = time.perf_counter()
        with (
            open(reading, "rb") as pipe,
            subprocess.Popen(
                [_ROOT / PACKAGES["bochs"], "-q", "-f", "bochsrc", "-rc", "commands"],
                cwd=folder,
                env=os.environ | {"TERM": "vt100"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writing,
                pass_fds=[writing],
            ) as process,
        ):
            os.close(writing)
            try:
                return times_of(_timed(pipe, started))
            finally:
                process.kill()


def configuration(image: Path, output: str, memory: int) -> str:
    """What Bochs is told: a PC with a CD-ROM drive that says what its first serial line does, resets, and panics."""
    return f"""\
config_interface: textconfig
display_library: term
romimage: file=/{PACKAGES["bochsbios"]}
vgaromimage: file=/{PACKAGES["vgabios"]}
memory: guest={memory}, host={memory}
cpu: ips={_SPEED}
ata0-master: type=cdrom, path="{image}", status=inserted
boot: cdrom
speaker: enabled=0
com1: enabled=1, mode=file, dev={output}
log: {output}
panic: action=fatal
error: action=ignore
info: action=ignore, pc_system=report
"""


def times_of(output: Iterable[tuple[float, bytes]]) -> Booted:
    """From lines and when they came, in seconds since the start; raises UserError if they end before the kernel."""
    loaded = 0.0
    for now, line in output:
        if _LOADED.search(line):
            loaded = now
        if loaded and (_RESET in line or _POWER_OFF in line):
            return Booted(now - loaded, loaded)
        if _PANIC in line:
            reason = line.partition(_PANIC)[2].decode(errors="replace").strip()
            raise UserError(f"Bochs gave up: {reason}", _HINT)
    raise UserError("Bochs ended before the kernel did", _HINT)


def _timed(lines: Iterable[bytes], started: float) -> Iterator[tuple[float, bytes]]:
    for line in lines:
        yield time.perf_counter() - started, line


def _image(folder: Path, kernel: str, initrd: str, append: str) -> Path:
    """A CD-ROM that boots a kernel. A loader that fails hands over to the next boot device, of which there is none."""
    tree = folder / "tree"
    tree.mkdir()
    for package in ("isolinux", "syslinux-common"):
        shutil.copy(_ROOT / PACKAGES[package], tree)
    for name, path in (("kernel", kernel), ("initrd", initrd)):
        (tree / name).symlink_to(Path(path).resolve())
    (tree / "isolinux.cfg").write_text(
        "SERIAL 0 115200\nDEFAULT guest\nTIMEOUT 1\nONTIMEOUT nothing\n"
        f"LABEL guest\nKERNEL kernel\nINITRD initrd\nAPPEND {append}\n"
        "LABEL nothing\nLOCALBOOT -1\n"
    )
    image = folder / "boot.iso"
    command = [
        str(_ROOT / PACKAGES["xorriso"]), "-as", "mkisofs", "-quiet", "-f", "-o", str(image), "-b", "isolinux.bin",
        "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", str(tree),
    ]  # fmt: skip
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        raise UserError(f"xorriso made no CD-ROM: {made.stderr.strip()[-300:]}", "Look at what it says.")
    return image
