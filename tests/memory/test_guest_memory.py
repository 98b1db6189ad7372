"""Guest-physical memory and the machine memory behind it."""

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory

SIZE = 0x4000


def ram(size: int = SIZE) -> GuestPhysicalMemory:
    """Zeroed memory."""
    return GuestPhysicalMemory(MachineMemory(size))


addresses = st.one_of(st.integers(0, SIZE + 64), st.integers(SIZE - 64, SIZE + 64), st.integers(0, (1 << 52) - 1))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), addresses, st.binary(max_size=5000)),
        st.tuples(st.just("bits"), addresses, st.integers(0, 0xFFFF_FFFF)),
        st.tuples(st.just("clear"), st.just(0), st.just(b"")),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(operations, st.lists(st.tuples(addresses, st.integers(0, 5000)), max_size=8))
def test_memory_behaves_like_a_row_of_bytes(
    changes: list[tuple[str, int, object]], looks: list[tuple[int, int]]
) -> None:
    """Writes outside RAM are dropped, reads outside give ones, in every size and across the end."""
    memory, model = ram(), bytearray(SIZE)
    for what, address, value in changes:
        if what == "write":
            assert isinstance(value, bytes)
            memory.write(address, value)
            for index, byte in enumerate(value[: max(0, SIZE - address)]):
                model[address + index] = byte
        elif what == "bits":
            assert isinstance(value, int)
            memory.set_bits_u32(address, value)
            if address + 4 <= SIZE:
                old = int.from_bytes(model[address : address + 4], "little")
                model[address : address + 4] = (old | value).to_bytes(4, "little")
        else:
            memory.clear()
            model[:] = bytes(SIZE)
    assert bytes(model) == bytes(memory.view)

    def expected(address: int, length: int) -> bytes:
        return bytes(model[address + index] if address + index < SIZE else 0xFF for index in range(length))

    for address, length in looks:
        assert expected(address, length) == memory.read(address, length)
        assert expected(address, 4) == memory.read_u32(address).to_bytes(4, "little")
        assert expected(address, 8) == memory.read_u64(address).to_bytes(8, "little")
        assert memory.read_u64(address) == memory.descriptor(address)


def test_clearing_gives_zeros_again() -> None:
    """As after power-on, in every page, and the memory can be used again."""
    memory = ram(1 << 20)
    memory.write(0, b"\xaa" * (1 << 20))
    memory.clear()
    assert bytes(1 << 20) == bytes(memory.view)
    memory.write(0x8_0000, b"again")
    assert b"again" == memory.read(0x8_0000, 5)


def test_the_engine_shares_the_buffer() -> None:
    """What is written here is seen at the host address, and the other way round, also after clearing."""
    memory = ram()
    host = (ctypes.c_char * SIZE).from_address(memory.machine.host_address)
    memory.write(0x1234, b"from python")
    assert b"from python" == host[0x1234 : 0x1234 + 11]
    memory.clear()
    host[0x2000:0x2004] = b"back"
    assert (bytes(11), b"back") == (memory.read(0x1234, 11), memory.read(0x2000, 4))


def test_two_machines_do_not_share() -> None:
    """Each has its own buffer."""
    first, second = ram(), ram()
    first.write(0, b"\xff")
    assert b"\0" == second.read(0, 1)


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [
        (0x2000, 1, 1),
        (0x2FFF, 1, 1),
        (0x1FFF, 1, 0),
        (0x3000, 1, 0),
        (0x1FFF, 2, 1),
        (0x2FFF, 2, 1),
        (0x0000, SIZE, 1),
        (0x0FFF, 0x1001, 0),
        (0x2000, 0, 0),
        (0x1000, 0x1000, 0),
        (SIZE, 16, 0),
        (1 << 40, 16, 0),
    ],
)
def test_a_write_to_a_frame_with_code_is_told(address: int, length: int, expected: int) -> None:
    """Once, for exactly the frames that are touched."""
    memory = ram()
    told: list[bool] = []
    memory.forget_code = lambda: told.append(True)
    memory.code_frames.add(2)
    memory.write(address, bytes(length))
    assert expected == len(told)
    assert (set() if expected else {2}) == memory.code_frames


def test_what_was_forgotten_is_not_told_twice() -> None:
    """All code is forgotten at once, so every frame is free of it."""
    memory = ram()
    told: list[set[int]] = []
    memory.forget_code = lambda: told.append(set(memory.code_frames))
    memory.code_frames |= {0, 1, 2}
    memory.write(0x1000, b"x")
    memory.write(0x2000, b"x")
    assert [set()] == told


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097])
def test_a_size_that_is_no_number_of_pages_is_refused(size: int) -> None:
    """A host bug, not a user's."""
    with pytest.raises(ValueError, match="multiple of 4096"):
        MachineMemory(size)
