"""The few C functions and callback types of Unicorn that are used without the Python binding's overhead.

Called by the engine room only. A binding hook costs 0.4 microseconds, an own CFUNCTYPE a third of it.
"""

import ctypes
from typing import Any

from unicorn import unicorn_const, x86_const
from unicorn.unicorn_py3.unicorn import uclib

constants = unicorn_const
registers = x86_const
library: Any = uclib

OUT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
IN_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
INSTRUCTION_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
SYSENTER_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
INTERRUPT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
INVALID_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
BLOCK_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
MEMORY_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
MMIO_READ_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p)
MMIO_WRITE_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p
)


class TranslatedBlock(ctypes.Structure):
    """``uc_tb``: what the edge hook says of a block that has just been translated."""

    _fields_ = (("pc", ctypes.c_uint64), ("icount", ctypes.c_uint16), ("size", ctypes.c_uint16))


EDGE_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(TranslatedBlock), ctypes.POINTER(TranslatedBlock), ctypes.c_void_p
)


def version() -> str:
    """The version of the engine's library itself, as in ``2.1.4``."""
    packed = library.uc_version(None, None)
    return f"{packed >> 24}.{packed >> 16 & 0xFF}.{packed >> 8 & 0xFF}"


def handle_value(uc: Any) -> int:
    """The address of the engine's ``uc_struct``."""
    handle = uc._uch
    return int(handle.value if hasattr(handle, "value") else handle)


def add_hook(handle: int, kind: int, callback: int, user_data: int, begin: int, end: int, *extra: int) -> int:
    """``uc_hook_add`` with a C callback's address; ``begin > end`` means everywhere. Returns the hook's handle."""
    hook = ctypes.c_size_t()
    error = library.uc_hook_add(
        ctypes.c_void_p(handle),
        ctypes.byref(hook),
        ctypes.c_int(kind),
        ctypes.c_void_p(callback),
        ctypes.c_void_p(user_data),
        ctypes.c_uint64(begin),
        ctypes.c_uint64(end),
        *(ctypes.c_int(value) for value in extra),
    )
    if error:
        raise RuntimeError(f"uc_hook_add({kind:#x}) failed with Unicorn's error {error}")
    return hook.value


def callback_address(callback: Any) -> int:
    """The C address of a CFUNCTYPE object, which the caller must keep alive."""
    return int(ctypes.cast(callback, ctypes.c_void_p).value or 0)
