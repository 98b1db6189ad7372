"""Guests of a few bytes that the catalogue has no need of."""

from pathlib import Path

SPIN_ON_A_PORT = bytes.fromhex("e680 ebfc")  # again: out 80h, al / jmp again


def flat(folder: Path, code: bytes) -> list[str]:
    """Words that run 32-bit code at 1 MiB."""
    path = folder / "flat.bin"
    path.write_bytes(code)
    return ["run", str(path), "--loader", "flat"]


def echo(folder: Path) -> list[str]:
    """Words that run a boot sector that says '>', sends back each byte from COM1 and passes at 'q'."""
    start = "b03e baf803 ee"  # mov al, '>' / mov dx, 3F8h / out dx, al
    wait = "fb f4"  # wait: sti / hlt
    look = "bafd03 ec a801 74f6"  # look: mov dx, 3FDh / in al, dx / test al, 1 / jz wait
    answer = "baf803 ec ee 3c71 75ef"  # mov dx, 3F8h / in al, dx / out dx, al / cmp al, 'q' / jne look
    passed = "b010 e6f4 f4"  # mov al, 10h / out 0F4h, al / hlt
    code = bytes.fromhex(start + wait + look + answer + passed)
    path = folder / "echo.img"
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa")
    return ["run", str(path), "--loader", "disk"]
