"""Builds guests/ with the C compiler that the ziglang wheel carries; ``python -m hvemu.labs.build_guests``.

Called by people who changed a guest and by tests/guests/test_images.py; nobody else needs a compiler, because the
images are committed. Must not know any guest: a folder with main.c or main.S is a multiboot guest, one with boot.S a
flat disk image, one with native.ld a multiboot guest that with paravirt.ld is built a second time, for a hypervisor's
interface, one with long.ld a 64-bit guest with little of the library; each file of misbehave/ is a guest of its own.
images.lock says from which sources an image was built, so that a stale one is found without a toolchain. Not done
here: the catalogue, guests/catalog.toml, is written by hand. Spec: Multiboot 0.6.96.
"""

import hashlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hvemu.vocabulary import machine_map
from hvemu.vocabulary.errors import UserError

GUESTS = Path(__file__).resolve().parents[2] / "guests"
COMMAND = "python -m hvemu.labs.build_guests"
HEADER = Path("abi/machine_map.h")
LOCK = Path("images.lock")

# zig traps: `-Wl,-Ttext` and `--oformat` are refused, hence linker scripts and objcopy; -g breaks reproducibility.
COMPILER = (sys.executable, "-m", "ziglang")
TARGET = ("-target", "x86-freestanding-none", "-mcpu=i686", "-mno-sse", "-mno-mmx", "-mno-80387")
LONG_TARGET = (
    "-target", "x86_64-freestanding-none", "-mcpu=x86_64", "-mno-sse", "-mno-mmx", "-mno-80387", "-mno-red-zone",
    "-Wno-int-to-pointer-cast",
)  # fmt: skip
LONG_LIBRARY = ("irq.c", "report.c")
"""What of the library is fit for 64 bits."""
CODE = (
    "-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror",
    "-ffreestanding", "-fno-builtin", "-fno-pic", "-fno-stack-protector", "-fno-sanitize=undefined",
    "-fno-asynchronous-unwind-tables", "-fno-strict-aliasing", "-fomit-frame-pointer",
    "-ffunction-sections", "-fdata-sections",
)  # fmt: skip
MACHINES = {"native": "", "paravirt": "_pv"}
"""What a kernel may be built for, by the stem of its linker script; files whose names begin so belong to it alone.
With the end of the image's name."""
LINK = ("-nostdlib", "-static", "-Wl,--gc-sections", "-Wl,--build-id=none")


@dataclass(frozen=True)
class Guest:
    """What one image is made of; paths are relative to guests/."""

    name: str
    image: Path
    sources: tuple[Path, ...]
    script: Path
    flat: bool = False
    long: bool = False
    definitions: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file whose change makes the image stale."""
        folder = [] if self.name.startswith("misbehave/") else sorted_code(self.sources[0].parent)
        shared = [] if self.flat else sorted_code(Path("lib"))
        return tuple(dict.fromkeys((*self.sources, self.script, *folder, *shared, HEADER)))


def sorted_code(folder: Path) -> list[Path]:
    """The C, assembly, header and linker-script files of a folder, in an order that no file system decides."""
    return sorted(
        path.relative_to(GUESTS) for path in (GUESTS / folder).iterdir() if path.suffix in {".c", ".S", ".h", ".ld"}
    )


def compiled(folder: Path) -> list[Path]:
    """The files of a folder that the compiler is given."""
    return [path for path in sorted_code(folder) if path.suffix in {".c", ".S"}]


def discover() -> Iterator[Guest]:
    """Every guest there is, in the order of their numbers."""
    library = compiled(Path("lib"))
    script = Path("lib/l.ld")
    for folder in sorted(path for path in GUESTS.iterdir() if re.match(r"\d\d_", path.name)):
        inside = Path(folder.name)
        name = folder.name[3:]
        if (folder / "boot.S").exists():
            yield Guest(folder.name, inside / "boot.img", (inside / "boot.S",), inside / "boot.ld", flat=True)
        elif (folder / "long.ld").exists():
            sources = (*compiled(inside), *(Path("lib", part) for part in LONG_LIBRARY))
            yield Guest(folder.name, inside / f"{name}.elf", sources, inside / "long.ld", long=True)
        elif any((folder / f"{machine}.ld").exists() for machine in MACHINES):
            yield from built_for_machines(inside, library)
        elif compiled(inside):
            yield Guest(folder.name, inside / f"{name}.elf", (*compiled(inside), *library), script)
    for source in compiled(Path("misbehave")):
        yield Guest(f"misbehave/{source.stem}", source.with_suffix(".elf"), (source, *library), script)


def built_for_machines(folder: Path, library: list[Path]) -> Iterator[Guest]:
    """One guest for each machine that the folder has a linker script for."""
    for machine, ending in MACHINES.items():
        script = folder / f"{machine}.ld"
        if machine == "native" and not (GUESTS / script).exists():
            script = Path("lib/l.ld")
        if (GUESTS / script).exists():
            own = [path for path in compiled(folder) if path.stem.split("_")[0] not in MACHINES.keys() - {machine}]
            name = f"{folder.name}{ending}"
            image = folder / f"{name[3:]}.elf"
            yield Guest(name, image, (*own, *library), script, definitions=(f"-D{machine.upper()}",))


def machine_map_header() -> str:
    """machine_map.py as #define lines, which C and the assembler's preprocessor both read."""
    lines = [
        f"/* Generated from hvemu/vocabulary/machine_map.py by `{COMMAND}`: do not edit. */",
        "#ifndef HVEMU_MACHINE_MAP_H",
        "#define HVEMU_MACHINE_MAP_H",
    ]
    for line in inspect.getsource(machine_map).splitlines():
        if constant := re.fullmatch(r"([A-Z][A-Z0-9_]*): Final = (\w+)(?:\s*#.*)?", line):
            lines.append(f"#define {constant[1]} {constant[2].replace('_', '')}")
        elif line.startswith("# "):
            lines += ["", f"/* {line[2:]} */"]
    return "\n".join([*lines, "", "#endif", ""])


def compiler_version() -> str:
    """Other versions of the compiler make other, equally good, bytes."""
    return f"ziglang {version('ziglang')}"


def has_compiler() -> bool:
    """Whether the [build] extra is installed."""
    return importlib.util.find_spec("ziglang") is not None


def build(guest: Guest, out: Path) -> Path:
    """Compiles and links one guest into ``out``, at the same relative path as in guests/."""
    image = out / guest.image
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        linked = Path(scratch) / "linked.elf"
        code = (*CODE, *guest.definitions)
        target = LONG_TARGET if guest.long else TARGET
        zig("cc", *target, *code, *LINK, "-T", str(guest.script), *map(str, guest.sources), "-o", str(linked))
        if guest.flat:
            zig("objcopy", "-O", "binary", str(linked), str(image))
        else:
            image.write_bytes(linked.read_bytes())
    return image


def zig(*arguments: str) -> None:
    """Runs the compiler in guests/, with relative names only: absolute ones would end up in the image."""
    done = subprocess.run([*COMPILER, *arguments], cwd=GUESTS, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{done.stderr}The compiler refused {' '.join(arguments)}", "Mend the source and build again.")


def build_all(out: Path) -> dict[str, Path]:
    """Builds every guest into ``out`` and returns the images by guest name."""
    return {guest.name: build(guest, out) for guest in discover()}


def sources_digest(guest: Guest) -> str:
    """One hash over the names and contents of everything the image was made from."""
    digest = hashlib.sha256()
    for path in guest.inputs:
        content = (GUESTS / path).read_bytes().replace(b"\r\n", b"\n")  # git on Windows
        digest.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def image_digest(guest: Guest, out: Path = GUESTS) -> str:
    """The hash of an image as it lies on disk; empty if there is none."""
    path = out / guest.image
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def lock_text() -> str:
    """images.lock for the present sources and images."""
    lines = [
        f"# Generated by `{COMMAND}`: which sources each image was built from (SHA-256).",
        f'compiler = "{compiler_version()}"',
    ]
    for guest in discover():
        lines += ["", f'["{guest.name}"]', f'sources = "{sources_digest(guest)}"', f'image = "{image_digest(guest)}"']
    return "\n".join([*lines, ""])


def read_lock() -> dict[str, dict[str, str]]:
    """images.lock by guest name; the compiler's version is under ``compiler`` as {"version": ...}."""
    table = tomllib.loads((GUESTS / LOCK).read_text())
    return {"compiler": {"version": table.pop("compiler")}, **table}


def main() -> None:
    """Rebuilds the ABI header, every image and images.lock, and says what changed."""
    if not has_compiler():
        raise UserError("The compiler is not installed", "Try: pip install -e '.[build]'")
    (GUESTS / HEADER).write_text(machine_map_header())
    before = {guest.name: image_digest(guest) for guest in discover()}
    images = build_all(GUESTS)
    for guest in discover():
        was, size = before[guest.name], images[guest.name].stat().st_size
        word = "new" if not was else "same" if was == image_digest(guest) else "changed"
        print(f"{word:8}{guest.image.as_posix()}  {size} bytes")
    (GUESTS / LOCK).write_text(lock_text())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
