"""The hypercalls, in one table from number to function.

Each takes its arguments as the guest's EBX, ECX, EDX, ESI and EDI hold them and returns what EAX is to hold; one that
is refused raises HypercallError and has changed nothing, but for what it had already done of a list, which it reports.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

from hvemu.devices.contract import Clock, Timer
from hvemu.memory.direct import DirectPaging, FrameType, Owner
from hvemu.paravirtual.contract import GuestAccess, ParavirtualCpu
from hvemu.paravirtual.event_channels import EventChannels
from hvemu.paravirtual.grant_table import GrantTable
from hvemu.vocabulary import xen
from hvemu.vocabulary.addresses import PAGE_SIZE, Nanoseconds
from hvemu.vocabulary.xen import Errno, Hypercall, HypercallError

_U32: Final = struct.Struct("<I")
_PAIR: Final = struct.Struct("<QQ")
_EXTENDED: Final = struct.Struct("<III")
_CALL: Final = struct.Struct("<8I")
_TRAP: Final = struct.Struct("<BBHI")
_RESERVATION: Final = struct.Struct("<IIIIH")
_MOST_OPERATIONS: Final = 1 << 16
"""Requests that one transition to the hypervisor may ask for, in all."""
_MOST_WORK: Final = 1 << 21
"""Table entries and the like that it may make the hypervisor look at; all tables of a full address space are half."""
_READ_AT_ONCE: Final = 128
_LONGEST_LINE: Final = 4096
_TABLES: Final = {
    xen.MMUEXT_PIN_L1: FrameType.L1,
    xen.MMUEXT_PIN_L2: FrameType.L2,
    xen.MMUEXT_PIN_L3: FrameType.L3,
}

Arguments = tuple[int, int, int, int, int]


class Hypercalls:
    """What one guest can ask for."""

    def __init__(
        self,
        cpu: ParavirtualCpu,
        guest: GuestAccess,
        paging: DirectPaging,
        events: EventChannels,
        grants: GrantTable,
        clock: Clock,
        write_line: Callable[[bytes], None],
    ) -> None:
        self._cpu, self._guest, self._paging = cpu, guest, paging
        self._events, self._grants, self._clock, self._write_line = events, grants, clock, write_line
        self._timer: Timer | None = None
        self._given_back: list[int] = []
        self._budget = 0
        self.batched: Callable[[int, int], None] = lambda number, result: None
        """Told of every call within a multicall."""
        self.updated: Callable[[int], None] = lambda count: None
        """Told how many page-table entries a call has updated."""
        self._table: dict[int, Callable[[Arguments], int]] = {
            Hypercall.SET_TRAP_TABLE: self._set_trap_table,
            Hypercall.MMU_UPDATE: self._mmu_update,
            Hypercall.SET_GDT: self._set_gdt,
            Hypercall.STACK_SWITCH: self._stack_switch,
            Hypercall.SET_CALLBACKS: self._set_callbacks,
            Hypercall.FPU_TASKSWITCH: self._fpu_taskswitch,
            Hypercall.UPDATE_DESCRIPTOR: self._update_descriptor,
            Hypercall.MEMORY_OP: self._memory_op,
            Hypercall.MULTICALL: self._multicall,
            Hypercall.UPDATE_VA_MAPPING: self._update_va_mapping,
            Hypercall.SET_TIMER_OP: self._set_timer_op,
            Hypercall.XEN_VERSION: self._xen_version,
            Hypercall.CONSOLE_IO: self._console_io,
            Hypercall.GRANT_TABLE_OP: lambda a: self._grants.operate(a[0], a[1], self._spend(a[2]), self._guest),
            Hypercall.VM_ASSIST: self._vm_assist,
            Hypercall.IRET: self._iret,
            Hypercall.VCPU_OP: self._vcpu_op,
            Hypercall.MMUEXT_OP: self._mmuext_op,
            Hypercall.SCHED_OP: self._sched_op,
            Hypercall.CALLBACK_OP: self._callback_op,
            Hypercall.EVENT_CHANNEL_OP: lambda a: self._events.operate(a[0], a[1], self._guest),
            Hypercall.PHYSDEV_OP: self._physdev_op,
        }

    def call(self, number: int, arguments: Arguments) -> int:
        """Carry one out; returns the result, negative for an error."""
        self._budget = _MOST_OPERATIONS
        self._paging.work = 0
        return self._carry_out(number, arguments)

    def _carry_out(self, number: int, arguments: Arguments) -> int:
        function = self._table.get(number)
        if function is None:
            return -Errno.ENOSYS
        if self._paging.work > _MOST_WORK:
            return -Errno.E2BIG
        try:
            return function(arguments)
        except HypercallError as refused:
            return -refused.errno

    def _spend(self, count: int) -> int:
        if count > self._budget:
            raise HypercallError(Errno.E2BIG)
        self._budget -= count
        return count

    # ------------------------------------------------------------------ batches

    def _multicall(self, arguments: Arguments) -> int:
        at, count = arguments[:2]
        for index in range(self._spend(count)):
            here = at + index * _CALL.size
            number, _, *given = _CALL.unpack(self._guest.read(here, _CALL.size))
            if number in (Hypercall.MULTICALL, Hypercall.IRET):
                result = -Errno.EINVAL
            else:
                result = self._carry_out(number, (given[0], given[1], given[2], given[3], given[4]))
            self.batched(number, result)
            self._guest.write(here + 4, struct.pack("<i", result))
        return 0

    def _listed(self, at: int, count: int, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
        """A list in the guest's memory, read by the hundred; raises where it cannot be read."""
        size = layout.size
        for start in range(0, count, _READ_AT_ONCE):
            part = min(_READ_AT_ONCE, count - start)
            try:
                data = self._guest.read(at + start * size, part * size)
            except HypercallError:
                for index in range(start, start + part):  # up to the one that cannot be read
                    yield layout.unpack(self._guest.read(at + index * size, size))
            else:
                yield from layout.iter_unpack(data)

    def _report(self, at: int, done: int) -> None:
        if at:
            self._guest.write(at, _U32.pack(done))

    # ------------------------------------------------------------------ page tables

    def _mmu_update(self, arguments: Arguments) -> int:
        at, count, report, domain = arguments[:4]
        _require(domain == xen.DOMID_SELF, Errno.ESRCH)
        done, error = 0, 0
        try:
            update = self._paging.update
            for pointer, value in self._listed(at, self._spend(count), _PAIR):
                _require(self._paging.work <= _MOST_WORK, Errno.E2BIG)
                update(pointer, value)
                done += 1
        except HypercallError as refused:
            error = -refused.errno
        self.updated(done)
        self._report(report, done)
        return error

    def _update_va_mapping(self, arguments: Arguments) -> int:
        linear, low, high, flags = arguments[:4]
        self._paging.update(self._paging.leaf_address(linear), high << 32 | low)
        self.updated(1)
        if flags & xen.UVMF_MASK == xen.UVMF_TLB_FLUSH:
            self._paging.flush()
        elif flags & xen.UVMF_MASK == xen.UVMF_INVLPG:
            self._cpu.invalidate(linear)
        return 0

    def _mmuext_op(self, arguments: Arguments) -> int:
        at, count, report, domain = arguments[:4]
        _require(domain == xen.DOMID_SELF, Errno.ESRCH)
        done, error = 0, 0
        try:
            for command, first, second in self._listed(at, self._spend(count), _EXTENDED):
                _require(self._paging.work <= _MOST_WORK, Errno.E2BIG)
                self._extended(command, first, second)
                done += 1
        except HypercallError as refused:
            error = -refused.errno
        self._report(report, done)
        return error

    def _extended(self, command: int, first: int, second: int) -> None:
        paging = self._paging
        if command in _TABLES:
            paging.pin(first, _TABLES[command])
        elif command == xen.MMUEXT_UNPIN:
            paging.unpin(first)
        elif command == xen.MMUEXT_NEW_BASEPTR:
            paging.load(first)
        elif command in (xen.MMUEXT_TLB_FLUSH_LOCAL, xen.MMUEXT_TLB_FLUSH_ALL, xen.MMUEXT_TLB_FLUSH_MULTI):
            paging.flush()
        elif command in (xen.MMUEXT_INVLPG_LOCAL, xen.MMUEXT_INVLPG_ALL, xen.MMUEXT_INVLPG_MULTI):
            self._cpu.invalidate(first)
        elif command == xen.MMUEXT_SET_LDT:
            _require(second == 0, Errno.ENOSYS)  # no LDT is the only one offered
        elif command != xen.MMUEXT_FLUSH_CACHE:
            raise HypercallError(Errno.EINVAL if command == xen.MMUEXT_PIN_L4 else Errno.ENOSYS)

    def _memory_op(self, arguments: Arguments) -> int:
        command, at = arguments[:2]
        paging = self._paging
        if command == xen.XENMEM_MAXIMUM_RAM_PAGE:
            return paging.frames - 1
        if command in (xen.XENMEM_CURRENT_RESERVATION, xen.XENMEM_MAXIMUM_RESERVATION):
            domain = struct.unpack("<H", self._guest.read(at, 2))[0]
            _require(domain == xen.DOMID_SELF, Errno.ESRCH)
            current = paging.owner.count(Owner.GUEST)
            return current + (len(self._given_back) if command == xen.XENMEM_MAXIMUM_RESERVATION else 0)
        if command == xen.XENMEM_MACHPHYS_MAPPING:
            end = xen.MACHINE_TO_PHYSICAL + 4 * paging.frames
            self._guest.write(at, struct.pack("<III", xen.MACHINE_TO_PHYSICAL, end, paging.frames - 1))
            return 0
        if command in (xen.XENMEM_INCREASE_RESERVATION, xen.XENMEM_DECREASE_RESERVATION, xen.XENMEM_POPULATE_PHYSMAP):
            return self._reservation(command, at)
        raise HypercallError(Errno.ENOSYS)

    def _reservation(self, command: int, at: int) -> int:
        extents, count, order, _, domain = _RESERVATION.unpack(self._guest.read(at, _RESERVATION.size))
        _require(domain == xen.DOMID_SELF, Errno.EPERM)
        _require(order == 0, Errno.EINVAL)
        done = 0
        try:
            for index in range(self._spend(count)):
                here = extents + 4 * index
                if command == xen.XENMEM_DECREASE_RESERVATION:
                    frame = _U32.unpack(self._guest.read(here, 4))[0]
                    self._paging.release(frame)
                    self._given_back.append(frame)
                else:
                    pfn = _U32.unpack(self._guest.read(here, 4))[0] if command == xen.XENMEM_POPULATE_PHYSMAP else 0
                    _require(bool(self._given_back), Errno.ENOMEM)
                    self._guest.write(here, _U32.pack(self._given_back[-1]))
                    self._paging.grant(self._given_back.pop(), pfn)
                done += 1
        except HypercallError:
            pass  # how many could be done is the answer
        self._paging.flush()
        return done

    # ------------------------------------------------------------------ the CPU

    def _set_trap_table(self, arguments: Arguments) -> int:
        at = arguments[0]
        if not at:
            self._cpu.clear_traps()
            return 0
        for index in range(256):
            vector, flags, selector, address = _TRAP.unpack(self._guest.read(at + index * _TRAP.size, _TRAP.size))
            self._paging.work += 8
            if not address:
                break
            self._cpu.set_trap(vector, flags, selector, address)
        return 0

    def _stack_switch(self, arguments: Arguments) -> int:
        self._cpu.set_kernel_stack(arguments[0] & 0xFFFF, arguments[1])
        return 0

    def _set_callbacks(self, arguments: Arguments) -> int:
        self._cpu.set_callback(arguments[0] & 0xFFFF, arguments[1])  # a guest that cannot be entered ends instead
        return 0

    def _callback_op(self, arguments: Arguments) -> int:
        command, at = arguments[:2]
        _require(command == 0, Errno.ENOSYS)  # register
        kind, _, selector, address = struct.unpack("<HHII", self._guest.read(at, 12))
        _require(kind in (0, 1), Errno.ENOSYS)  # event, failsafe
        if kind == 0:
            self._cpu.set_callback(selector & 0xFFFF, address)
        return 0

    def _set_gdt(self, arguments: Arguments) -> int:
        at, entries = arguments[:2]
        _require(entries <= xen.FIRST_RESERVED_GDT_ENTRY, Errno.EINVAL)
        count = -(-entries // 512)
        frames = list(struct.unpack(f"<{count}I", self._guest.read(at, 4 * count))) if count else []
        self._cpu.load_gdt(frames)
        return 0

    def _update_descriptor(self, arguments: Arguments) -> int:
        low, high, first, second = arguments[:4]
        self._paging.update_descriptor(high << 32 | low, second << 32 | first)
        return 0

    def _fpu_taskswitch(self, arguments: Arguments) -> int:
        self._cpu.set_task_switched(bool(arguments[0]))
        return 0

    def _iret(self, _arguments: Arguments) -> int:
        self._cpu.return_from_event()
        return 0

    def _physdev_op(self, arguments: Arguments) -> int:
        command, at = arguments[:2]
        _require(command == xen.PHYSDEV_SET_IOPL, Errno.ENOSYS)
        level = _U32.unpack(self._guest.read(at, 4))[0]
        _require(level <= 3, Errno.EINVAL)
        self._cpu.set_io_privilege(level)
        return 0

    def _vm_assist(self, _arguments: Arguments) -> int:
        raise HypercallError(Errno.EINVAL)  # none of the assists is offered

    # ------------------------------------------------------------------ time and scheduling

    def _set_timer_op(self, arguments: Arguments) -> int:
        self._set_timer(arguments[1] << 32 | arguments[0])
        return 0

    def _set_timer(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at:
            at = min(at, self._clock.now() + (1 << 52))
            self._timer = self._clock.schedule(Nanoseconds(max(at, self._clock.now())), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._events.raise_virq(xen.VIRQ_TIMER)

    def _vcpu_op(self, arguments: Arguments) -> int:
        command, cpu, at = arguments[:3]
        _require(cpu == 0, Errno.ENOENT)
        if command == xen.VCPU_SET_SINGLESHOT_TIMER:
            self._set_timer(struct.unpack("<Q", self._guest.read(at, 8))[0])
        elif command == xen.VCPU_STOP_SINGLESHOT_TIMER:
            self._set_timer(0)
        elif command != xen.VCPU_STOP_PERIODIC_TIMER:
            raise HypercallError(Errno.ENOSYS)
        return 0

    def _sched_op(self, arguments: Arguments) -> int:
        command, at = arguments[:2]
        if command == xen.SCHED_BLOCK:
            self._events.mask(False)
            if not self._events.upcall_due():
                self._cpu.block()
        elif command == xen.SCHED_SHUTDOWN:
            reason = _U32.unpack(self._guest.read(at, 4))[0]
            _require(reason < len(xen.SHUTDOWN_REASONS), Errno.EINVAL)
            self._cpu.shut_down(reason)
        elif command != xen.SCHED_YIELD:  # to nobody
            raise HypercallError(Errno.ENOSYS)
        return 0

    # ------------------------------------------------------------------ the rest

    def _xen_version(self, arguments: Arguments) -> int:
        command, at = arguments[:2]
        if command == xen.XENVER_VERSION:
            return xen.VERSION
        if command == xen.XENVER_PAGESIZE:
            return PAGE_SIZE
        if command == xen.XENVER_EXTRAVERSION:
            self._guest.write(at, b".hvemu".ljust(16, b"\0"))
            return 0
        if command == xen.XENVER_GET_FEATURES:
            _require(_U32.unpack(self._guest.read(at, 4))[0] == 0, Errno.EINVAL)
            self._guest.write(at + 4, _U32.pack(0))
            return 0
        raise HypercallError(Errno.ENOSYS)

    def _console_io(self, arguments: Arguments) -> int:
        command, count, at = arguments[:3]
        if command == xen.CONSOLE_READ:
            return 0
        _require(command == xen.CONSOLE_WRITE, Errno.ENOSYS)
        _require(count <= _LONGEST_LINE, Errno.E2BIG)
        self._paging.work += count
        self._write_line(self._guest.read(at, count))
        return 0

    def reset(self) -> None:
        """As before the guest's first call."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._given_back.clear()


def _require(condition: bool, errno: Errno) -> None:
    if not condition:
        raise HypercallError(errno)
