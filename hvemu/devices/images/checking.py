"""What is wrong with an image, and putting it right without losing what was flushed.

Called by ``hvemu disk check``. Repair changes what describes the disk, never what is in it, with one exception that it
names: blocks whose places cannot be true are given up.
"""

import sys
import uuid
from dataclasses import dataclass, field

from hvemu.devices.images.contract import SECTOR, ImageFile
from hvemu.devices.images.vhd_format import FIXED, UNUSED, Footer
from hvemu.devices.images.vhd_layout import Damage, Layout, examine


@dataclass
class Findings:
    """``damages`` is what is still wrong, ``repaired`` says what was done, ``leaked`` counts bytes nothing uses."""

    damages: list[Damage] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    leaked: int = 0

    @property
    def sound(self) -> bool:
        """Whether the image can be used."""
        return not self.damages


def check_vhd(file: ImageFile, *, repair: bool = False) -> Findings:
    """Examine the VHD in ``file``, and with ``repair`` put right what can be; raises OSError."""
    layout = examine(file)
    repaired = _repair(file, layout) if repair else []
    if repaired:
        layout = examine(file)
    return Findings(layout.damages, repaired, layout.leaked())


def _repair(file: ImageFile, layout: Layout) -> list[str]:
    """Each step leaves an image that can be repaired again, wherever it is interrupted."""
    footer = layout.footer
    if footer is None or footer.disk_type == FIXED or any(not damage.repairable for damage in layout.damages):
        return []
    if not layout.damages and layout.file_size == layout.end + SECTOR:
        return []
    done = []
    modified = file.modified()
    if layout.lost_blocks:
        footer = footer._replace(unique_id=uuid.uuid4().bytes)  # what its children saw has changed
    packed = footer.pack()
    if layout.at_start != packed:
        file.write(0, packed)
        file.sync()
        done.append("wrote the copy of the footer at the start")
    if layout.lost_blocks:
        _forget(file, layout)
        done.append(f"gave up {len(layout.lost_blocks)} blocks: {_listed(layout.lost_blocks)}")
    if layout.file_size != layout.end + SECTOR or Footer.parse(layout.at_end) != footer:
        file.truncate(layout.end)
        file.write(layout.end, packed)
        file.sync()
        cut = layout.file_size - layout.end - SECTOR
        done.append("wrote the footer at the end" + (f", {cut} bytes nearer to the start" if cut > 0 else ""))
    if not layout.lost_blocks:
        file.restore_modified(modified)
    return done


def _forget(file: ImageFile, layout: Layout) -> None:
    assert layout.header is not None
    for index in layout.lost_blocks:
        layout.table[index] = UNUSED
    table = layout.table[:]
    if sys.byteorder == "little":
        table.byteswap()
    file.write(layout.header.table_offset, table.tobytes())
    file.sync()


def _listed(blocks: list[int]) -> str:
    shown = ", ".join(map(str, blocks[:8]))
    return f"{shown} and others" if len(blocks) > 8 else shown
