"""Unmodified kernels from Debian's packages boot and work: memtest86+ and Linux, of 32 and of 64 bits."""

import hashlib
import re

import pytest

from hvemu.devices.contract import NoBackend
from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from tests.techniques import settings
from hvemu.testing.running import Recording, run_guest
from hvemu.vocabulary.errors import UserError
from hvemu.vocabulary.machine_map import LAPIC_BASE
from tests.guests.packages import kernel_package, linux, one_file

pytestmark = pytest.mark.slow

MEMTEST_LIMIT = 12_000_000_000
LINUX_LIMIT = 30_000_000_000


@pytest.mark.parametrize(
    ("kind", "megabytes", "technique"),
    [
        ("ia32", 64, "native"), ("ia32", 256, "native"), ("ia32", 64, "bt"), ("ia32", 64, "svm"),
        ("ia32", 64, "svm/shadow"), ("x64", 64, "native"), ("x64", 64, "svm"),
    ],
)  # fmt: skip
def test_memtest86_tests_memory_without_an_error(kind, megabytes, technique):
    """It shows the right memory size, gets through its first tests, and says so on the screen and on the serial line."""
    recording = Recording()
    without = ("lm",) if technique in ("bt", "svm/shadow") else ()  # also the 32-bit one would run in long mode, in compatibility mode
    image = one_file("memtest86+", f"boot/*{kind}.bin")
    configuration = MachineConfiguration(
        image=str(image), memory=megabytes << 20, append="console=ttyS0", serial="none", cpu_without=without,
        **settings(technique),
    )
    machine = build(configuration, backends=Backends(recording, NoBackend(), NoBackend()))
    tests = set()
    while machine.mode.position() < MEMTEST_LIMIT * megabytes // 64 and len(tests) < 3:
        assert None is machine.run(machine.mode.position() + 20_000_000)
        screen = machine.screen()
        text = "\n".join(screen)
        tests |= set(re.findall(r"Test #(\d+)", text))
    assert len(tests) >= 3, text
    assert f"{megabytes}MB" in next(row for row in screen if row.startswith("Memory"))
    assert "Status: Testing" in text
    assert "Errors: 0 " in text
    serial = recording.text()
    for words in ("Memtest86+ v", f"{megabytes}MB", "Testing", "Errors: 0"):
        assert words in serial


def test_linux_in_mode_trap_is_fooled_and_told_by_what():
    """An ordinary kernel saves IF by PUSHF, which lies at ring 1; the sentence names the instruction."""
    kernel = one_file(kernel_package(), "boot/vmlinuz-*")
    command_line = "console=ttyS0 noapic nolapic acpi=off pci=off panic=-1"
    configuration = MachineConfiguration(
        image=str(kernel), memory=128 << 20, append=command_line, serial="none", mode="trap", audit=True
    )
    result = run_guest(configuration)
    assert result.stop is not None
    assert 0 != result.status
    assert re.search(r"fooled it in \d+ places, last at EIP 0xc[0-9a-f]{7} 'pushfd' pushes IF=1", result.stop.reason)


def boot_linux(command_line, technique, architecture="i386", **changes):
    """Boot Debian's kernel with an initramfs made of busybox; returns the result."""
    kernel, path, busybox = linux(architecture)
    memory = 128 << 20 if architecture == "i386" else 256 << 20
    configuration = MachineConfiguration(
        image=str(kernel), initrd=str(path), memory=memory, append=command_line, serial="none",
        **settings(technique), **changes
    )
    return run_guest(configuration, position=LINUX_LIMIT), hashlib.sha256(busybox).hexdigest()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("command_line", "controller", "mode"),
    [
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "native"),
        ("console=ttyS0 panic=-1", "IO-APIC", "native"),
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "bt"),
        ("console=ttyS0 panic=-1", "IO-APIC", "svm"),
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "svm/shadow"),
    ],
    ids=["minimal-pc", "apic-acpi-pci", "translated", "nested-paging", "shadow-paging-under-svm"],
)
def test_debian_kernel_boots_to_user_programs_and_reboots(command_line, controller, mode):
    """uname, a sum and a checksum are right, interrupts come the way the command line says, and reboot is clean."""
    result, checksum = boot_linux(command_line, mode)
    console = result.console
    assert "Linux i686" in console, (result.stop, console[-3000:])
    assert "sum 42000" in console
    assert checksum in console
    assert controller in console
    assert "user programs are done" in console
    assert "Kernel panic" not in console
    assert "unchecked MSR access" not in console
    assert 0 == result.status, console[-2000:]
    assert "reset" in result.stop.reason
    if controller == "IO-APIC":
        assert "ACPI: Interpreter enabled" in console
        assert "PCI: Using configuration type 1" in console


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("command_line", "controller", "technique", "model"),
    [
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "native", "penryn"),
        ("console=ttyS0 panic=-1", "IO-APIC", "native", "penryn"),
        ("console=ttyS0 panic=-1 earlyprintk=ttyS0", "IO-APIC", "native", "opteron-g3"),
        ("console=ttyS0 panic=-1 earlyprintk=ttyS0", "IO-APIC", "svm", "opteron-g3"),
    ],
    ids=["minimal-pc", "apic-acpi-pci", "amd", "amd-nested-paging"],
)
def test_debian_kernel_of_64_bits_boots_to_user_programs_and_reboots(command_line, controller, technique, model):
    """Entered in 32-bit code, it goes to long mode by itself; programs come into the kernel by SYSCALL."""
    result, checksum = boot_linux(command_line, technique, "amd64", cpu=model)
    console = result.console
    for words in ("Linux x86_64", "sum 42000", checksum, controller, "user programs are done"):
        assert words in console, console[-3000:]
    for words in ("Kernel panic", "unchecked MSR access", "BUG", "WARNING"):
        assert words not in console
    assert result.statistics["assists"]["syscall"] > 500
    assert 0 == result.status, console[-2000:]
    assert "reset" in result.stop.reason


@pytest.mark.parametrize("mode", ["trap", "bt"])
def test_a_kernel_of_64_bits_is_refused_where_it_cannot_run(mode):
    """By name, before anything runs."""
    kernel = one_file(kernel_package("amd64"), "boot/vmlinuz-*")
    with pytest.raises(UserError, match=f"vmlinuz-.*is a 64-bit kernel, which mode {mode} cannot run"):
        build(MachineConfiguration(image=str(kernel), memory=256 << 20, serial="none", mode=mode))


def test_grub_for_xen_boots_and_obeys_in_mode_pv():
    """A paravirtual kernel that was made for Xen itself: its own page tables, its console, its store, its power-off."""
    image = one_file("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen.bin")
    recording = Recording()
    machine = build(
        MachineConfiguration(image=str(image), memory=64 << 20, mode="pv", serial="none"),
        backends=Backends(recording, NoBackend(), NoBackend()),
    )
    recording.when("grub>", lambda: machine.send_serial(b"echo this is $grub_platform on $grub_cpu\r"))
    while "this is xen on i386" not in recording.text():
        assert machine.run(machine.mode.position() + 20_000_000) is None
        assert machine.mode.position() < LINUX_LIMIT
    machine.send_serial(b"halt\r")
    stop = machine.run(LINUX_LIMIT)
    assert stop is not None
    assert (0, "the guest powered off") == (stop.status, stop.reason)
    calls = machine.statistics()["exits_by_detail"]["hypercall"]
    assert {"mmu_update", "mmuext_op", "update_va_mapping", "event_channel_op", "sched_op"} <= set(calls)


@pytest.mark.timeout(1500)
def test_debian_kernel_uses_what_kvm_offers():
    """It takes the clock, ends interrupts in memory instead of by the local APIC's register, and works."""
    result, checksum = boot_linux("console=ttyS0 panic=-1", "native", hypervisor_leaves="kvm")
    console = result.console
    for words in (
        "Hypervisor detected: KVM",
        "kvm-clock: Using msrs 4b564d01 and 4b564d00",
        "clocksource: Switched to clocksource kvm-clock",
        "Booting paravirtualized kernel on KVM",
        checksum,
        "user programs are done",
    ):
        assert words in console, console[-3000:]
    assert "unchecked MSR access" not in console
    ticks = int(re.search(r"LOC: +(\d+)", console)[1])
    assert ticks > 1000
    assert result.statistics["exits_by_detail"]["mmio_write"][f"{LAPIC_BASE + 0xB0:#x}"] < ticks // 100
    assert 0 == result.status
