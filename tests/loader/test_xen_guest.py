"""The domain builder: what a paravirtual kernel finds, and images that are wrong."""

import struct
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.cpu.state import CS, ESI, ESP, SS
from hvemu.loader.contract import BootRequest
from hvemu.loader.select import detect
from hvemu.loader.xen_guest import DomainBuilder, read_notes
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.memory.walk import PageFault, walk
from hvemu.vocabulary.errors import UserError
from tests.paravirtual.small_domain import BASE, kernel_image

FIRST, COUNT = 64, 2048
CODE = b"\x90" * 100
SHARED = 0x5000


def built(image, *, frames=range(FIRST, FIRST + COUNT), append="", initrd=b""):
    """A guest of 8 MiB on frames that are not its own numbers; returns memory, CPU and layout."""
    memory = GuestPhysicalMemory(MachineMemory((FIRST + COUNT) << 12))
    builder = DomainBuilder(memory, frames, BootRequest(image, "kernel", append, initrd))
    return memory, *builder.build(SHARED, 2, 1)


def linear(memory, cpu, address, length):
    """Bytes where the kernel sees them."""
    physical = walk(memory, cpu.paging(), address, mark=False)
    assert isinstance(physical, int)
    return memory.read(physical, length)


@pytest.mark.parametrize("frames", [range(FIRST, FIRST + COUNT), range(FIRST + COUNT - 1, FIRST - 1, -1)])
def test_a_kernel_finds_its_pages_wherever_their_frames_are(frames):
    """Code, the list of frames, start_info; linear addresses are page numbers, machine frames are not."""
    memory, cpu, layout = built(kernel_image(CODE), frames=frames, append="a=1", initrd=b"disk")
    assert CODE == linear(memory, cpu, BASE, len(CODE))
    assert BASE == cpu.instruction_pointer
    info = struct.unpack("<32s12I1024sII", linear(memory, cpu, cpu.gprs[ESI], 32 + 48 + 1024 + 8))
    assert b"xen-3.0-x86_32p" == info[0].rstrip(b"\0")
    pages, shared, flags, store, store_port, console, console_port, tables, count, list_at, module, size = info[1:13]
    assert (COUNT, SHARED, 0, 2, 1) == (pages, shared, flags, store_port, console_port)
    assert (frames[layout.store], frames[layout.console]) == (store, console)
    assert (len(layout.tables), layout.tables[0] << 12) == (count, tables)
    assert struct.pack("<3I", *frames[:3]) == linear(memory, cpu, list_at, 12)
    assert (b"disk", 4) == (linear(memory, cpu, module, 4), size)
    assert b"a=1" == info[13].rstrip(b"\0")
    assert (0xE019, 0xE021) == (cpu.segments[CS].selector, cpu.segments[SS].selector)
    assert not cpu.flags & 0x200
    assert cpu.gprs[ESP] % 4096 == 0


def test_everything_is_mapped_up_to_a_border_and_tables_are_read_only():
    """Half a MiB more than the stack at least; the kernel's alone."""
    memory, cpu, layout = built(kernel_image(CODE))
    end = next(
        at for at in range(0, 1 << 30, 4096) if isinstance(walk(memory, cpu.paging(), at, mark=False), PageFault)
    )
    assert 0 == end % (4 << 20)
    assert cpu.gprs[ESP] + (512 << 10) <= end
    for page in range(end >> 12):
        write = walk(memory, cpu.paging(), page << 12, write=True, mark=False)
        assert isinstance(write, PageFault) is (page in layout.tables)
        assert isinstance(walk(memory, cpu.paging(), page << 12, user=True, mark=False), PageFault)


def test_a_kernel_may_be_linked_high():
    """VIRT_BASE is where pseudo-physical 0 is seen; PADDR_OFFSET is taken off the file's addresses."""
    image = kernel_image(CODE, entry=0xC010_0000, notes={3: struct.pack("<I", 0xC000_0000), 4: bytes(4)})
    memory, cpu, _ = built(image)
    assert CODE == linear(memory, cpu, 0xC000_0000 + BASE, len(CODE))
    assert cpu.gprs[ESI] > 0xC000_0000


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({9: b"no\0"}, "none that says PAE"),
        ({9: b""}, "none that says PAE"),
        ({1: b""}, "no entry point"),
        (
            {3: struct.pack("<I", 0xF580_0000)},
            "there is not enough room below the hypervisor. Give it a lower VIRT_BASE",
        ),
        ({3: struct.pack("<I", 0xFFFF_F000)}, "there is not enough room below the hypervisor"),
    ],
)
def test_notes_that_cannot_be_obeyed_are_a_mistake(notes, words):
    """One sentence."""
    with pytest.raises(UserError, match=words):
        built(kernel_image(CODE, notes=notes))


@pytest.mark.parametrize("size", [COUNT << 12, 1 << 30, 0xFFFF_0000])
def test_a_kernel_that_is_larger_than_memory_is_a_mistake(size):
    """It says what to do."""
    with pytest.raises(UserError, match="Start with more --memory"):
        built(kernel_image(CODE, size=size))


def test_an_elf_file_without_notes_is_none_of_ours():
    """Nor is one with the notes of somebody else."""
    image = kernel_image(CODE).replace(b"Xen\0", b"GNU\0")
    assert read_notes(image, "kernel") is None
    with pytest.raises(UserError, match="no Xen notes"):
        built(image)
    assert "xen" == detect(kernel_image(CODE), "kernel")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8), st.integers(0, 500))
@example([], 0)
def test_a_damaged_kernel_is_built_or_refused_with_a_sentence(changes, cut):
    """Any byte of the headers and the notes may be wrong, and the end may be missing."""
    image = bytearray(kernel_image(CODE))
    for at, value in changes:
        if at < len(image):
            image[at] = value
    with suppress(UserError):
        built(bytes(image[: len(image) - min(cut, len(image))]))
