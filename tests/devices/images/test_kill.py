"""Flushed means flushed: a process is killed while it writes, and what it flushed is read again."""

import os
import random
import signal
import struct

import pytest

from hvemu.devices.images import open_image
from hvemu.devices.images.checking import check_vhd
from hvemu.devices.images.creating import create_image, snapshot_image
from hvemu.devices.images.host_file import HostFile
from hvemu.vocabulary.errors import UserError

SIZE = 600 * 512
BLOCK = 4096
KILLS_OF_ONE_IMAGE = 8
RECORD = struct.Struct("=?I")
NAMES = {"raw": "disk.img", "dynamic": "disk.vhd", "differencing": "child.vhd"}


def operation(seed, number):
    """What the process does as its ``number``-th: kind, first sector, sectors, data."""
    source = random.Random(seed << 20 | number)
    kind = source.choices(["write", "discard", "flush"], [12, 3, 3])[0]
    sector = source.randrange(SIZE // 512)
    count = min(source.choice([1, 1, 3, 8, 40]), SIZE // 512 - sector)
    return kind, sector, count, source.randbytes(512) * count if kind == "write" else bytes(512 * count)


def work(path, seed, pipe):
    """For ever: tell what is begun, do it, tell when a flush has returned."""
    image = open_image(path)
    for number in range(1 << 20):
        kind, sector, count, data = operation(seed, number)
        os.write(pipe, RECORD.pack(False, number))
        if kind == "flush":
            image.flush()
            os.write(pipe, RECORD.pack(True, number))
        elif kind == "write":
            image.write(sector * 512, data)
        else:
            image.discard(sector * 512, count * 512)


def killed(path, seed, source):
    """Run ``work`` and kill it at a random moment; the operations begun, and how many of them a flush covers."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reader)
            work(path, seed, writer)
        finally:
            os._exit(1)
    os.close(writer)
    records = b""
    wanted = source.randrange(1, 80) * RECORD.size
    while len(records) < wanted:
        part = os.read(reader, wanted - len(records))
        assert part, "the process ended by itself"
        records += part
    for _ in range(source.randrange(3000)):
        pass  # somewhere inside the next operations
    os.kill(process, signal.SIGKILL)
    while part := os.read(reader, 1 << 16):
        records += part
    os.close(reader)
    assert signal.SIGKILL == os.waitpid(process, 0)[1]
    begun = flushed = 0
    for done, number in RECORD.iter_unpack(records[: len(records) // RECORD.size * RECORD.size]):
        begun = number + 1
        flushed = number if done else flushed
    return [operation(seed, number) for number in range(begun)], flushed


def fresh(kind, folder):
    """A new image and what it reads as."""
    for name in os.listdir(folder):
        os.unlink(folder / name)
    path = str(folder / NAMES[kind])
    if kind == "raw":
        create_image(path, SIZE)
        return path, bytes(SIZE)
    base = str(folder / "disk.vhd")
    create_image(base, SIZE, block_size=BLOCK)
    if kind == "dynamic":
        return path, bytes(SIZE)
    image = open_image(base)
    data = bytes(SIZE // 3) + b"parent.." * (SIZE // 3 // 8)
    image.write(0, data)
    image.close()
    snapshot_image(base, path, block_size=BLOCK)
    return path, data + bytes(SIZE - len(data))


def reopened(path):
    """The image, after check --repair where its refusal asks for that; and whether it did."""
    try:
        return open_image(path, read_only=True), False
    except UserError as error:
        hint = error.hint
    assert hint == f"Type: hvemu disk check --repair {path}."
    file = HostFile.open(path, read_only=False)
    assert [] == check_vhd(file, repair=True).damages
    file.close()
    return open_image(path, read_only=True), True


def kill_often(kind, folder, kills, seed):
    """Kill, look, and go on with the same image, ``kills`` times; how often it had to be repaired."""
    source = random.Random(seed)
    repairs = 0
    for kill in range(kills):
        if kill % KILLS_OF_ONE_IMAGE == 0:
            path, contents = fresh(kind, folder)
        allowed = [[contents[at : at + 512]] for at in range(0, SIZE, 512)]
        operations, flushed = killed(path, source.randrange(1 << 30), source)
        for number, (what, sector, count, data) in enumerate(operations):
            if what == "flush":
                continue
            for values in allowed[sector : sector + count]:
                if number < flushed:
                    values.clear()
                values.append(data[:512])
        image, repaired = reopened(path)
        repairs += repaired
        contents = image.read(0, SIZE)
        image.close()
        wrong = [at for at, values in enumerate(allowed) if contents[at * 512 : at * 512 + 512] not in values]
        assert [] == wrong, f"kill {kill}"
    return repairs


@pytest.mark.parametrize("kind", NAMES)
def test_a_killed_process_loses_nothing_that_it_flushed(kind, tmp_path):
    """Some moments."""
    kill_often(kind, tmp_path, 12, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_process_killed_a_thousand_times_loses_nothing_that_it_flushed(kind, tmp_path):
    """A thousand moments for each format."""
    print(f"{kind}: repaired {kill_often(kind, tmp_path, 1000, seed=2)} times")
