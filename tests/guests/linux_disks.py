"""Debian's kernel with its own drivers on our adapters: an initramfs with modules, and what it is told to do."""

import re
from functools import cache

from tests.guests.packages import initramfs, kernel_package, one_file, unpacked

MODULES = {
    "ide": ("ata_piix", "sd_mod", "sr_mod"),
    "buslogic": ("BusLogic", "sd_mod", "sr_mod"),
    "virtio-scsi": ("virtio_pci", "virtio_scsi", "sd_mod", "sr_mod"),
}
"""Drivers that find a disk at each adapter; what they need is found out from the modules themselves."""
FILE_SYSTEM = ("ext4", "crc32c_generic")
HEAD = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in %s; do insmod /modules/$module.ko || echo FAILED $module; done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/%s ] && break; sleep 1; done
"""
FIRST = """
echo SIZE $(cat /sys/block/sda/size)
echo MODEL $(cat /sys/block/sda/device/vendor /sys/block/sda/device/model)
printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/sda > /dev/null
[ -b /dev/sda1 ] || partprobe /dev/sda
mke2fs -F /dev/sda1 > /dev/null || echo FAILED mke2fs
mount -t ext4 /dev/sda1 /mnt || echo FAILED mount
cp /bin/busybox /mnt/copy
dd if=/dev/urandom of=/mnt/random bs=64k count=16 2> /dev/null
cat /mnt/copy /mnt/random | sha256sum > /mnt/sum
sync
umount /mnt && echo UNMOUNTED
mount -t ext4 /dev/sda1 /mnt
cat /mnt/copy /mnt/random | sha256sum | cmp - /mnt/sum && echo SAME
echo SUM $(cat /mnt/sum)
umount /mnt
echo DONE
reboot -f
"""
SECOND = """
mount -t ext4 -o ro /dev/sda1 /mnt && echo FOUND
cat /mnt/copy /mnt/random | sha256sum | cmp - /mnt/sum && echo SAME
echo SUM $(cat /mnt/sum)
cmp /bin/busybox /mnt/copy && echo COPIED
umount /mnt
echo DONE
reboot -f
"""
CDROM = """
echo SIZE $(cat /sys/block/sr0/size)
dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 conv=notrunc 2> /dev/null && echo FAILED to refuse a write
mount -t iso9660 -o ro /dev/sr0 /mnt || echo FAILED mount
cat /mnt/hello.txt
echo SUM $(sha256sum < /mnt/data.bin)
umount /mnt
echo DONE
reboot -f
"""


@cache
def modules_of(architecture):
    """Every module of the kernel by its name, with dashes as underscores."""
    folder = unpacked(kernel_package(architecture))
    return {path.stem.replace("-", "_"): path for path in folder.glob("lib/modules/*/kernel/**/*.ko")}


def needed(names, architecture="i386"):
    """Modules in the order in which they can be loaded."""
    known, order = modules_of(architecture), []

    def add(name):
        if name in order or name not in known:
            return
        depends = re.search(rb"\0?depends=([^\0]*)\0", known[name].read_bytes())
        for other in depends[1].decode().split(",") if depends else []:
            if other:
                add(other.replace("-", "_"))
        order.append(name)

    for name in names:
        add(name)
    return order


def image(folder, adapter, script, *, extra=FILE_SYSTEM, architecture="i386", wait="sda"):
    """An initramfs whose init loads the drivers of ``adapter`` and then does what ``script`` says."""
    busybox = one_file(f"busybox-static:{architecture}", "bin/busybox").read_bytes()
    order = needed([*MODULES[adapter], *extra], architecture)
    known = modules_of(architecture)
    text = HEAD % (" ".join(order), wait) + script
    folders = ("bin", "dev", "proc", "sys", "mnt", "modules")
    path = folder / f"initramfs-{adapter}"
    path.write_bytes(
        initramfs(
            [
                *((name, 0o40755, b"", (0, 0)) for name in folders),
                ("dev/console", 0o20600, b"", (5, 1)),
                ("bin/busybox", 0o100755, busybox, (0, 0)),
                ("init", 0o100755, text.encode(), (0, 0)),
                *((f"modules/{name}.ko", 0o100644, known[name].read_bytes(), (0, 0)) for name in order),
            ]
        )
    )
    return path
