"""A raw image: the medium's bytes and nothing else."""

from hvemu.devices.images.contract import SECTOR, ImageFile
from hvemu.devices.images.flat import FlatImage
from hvemu.vocabulary.errors import UserError


class RawImage(FlatImage):
    """The whole file is the medium; raises UserError unless it has whole sectors."""

    format = "raw"

    def __init__(self, file: ImageFile, *, read_only: bool) -> None:
        super().__init__(file, file.size(), read_only=read_only)
        if self.size % SECTOR or not self.size:
            rounded = self.size // SECTOR * SECTOR + SECTOR
            hint = f"Type: truncate -s {rounded} {file.name}."
            if not self.size or file.name.lower().endswith(".iso"):
                hint = "It is not all there: fetch or make it again."
            raise UserError(f"'{file.name}' has {self.size} bytes, and a disk has whole sectors of {SECTOR}", hint)
