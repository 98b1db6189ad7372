"""A fixed VHD: a raw image with a footer behind it ("Fixed Hard Disk Images")."""

import uuid

from hvemu.devices.images.contract import ImageFile
from hvemu.devices.images.flat import FlatImage
from hvemu.devices.images.vhd_format import Footer


class FixedVhd(FlatImage):
    """The first write after opening gives it a new unique id, which its children notice."""

    format = "vhd-fixed"

    def __init__(self, file: ImageFile, footer: Footer, *, read_only: bool, same_contents: bool = False) -> None:
        super().__init__(file, footer.current_size, read_only=read_only)
        self.footer = footer
        self._identified = same_contents

    def identify(self, unique_id: bytes) -> None:
        """Take another unique id, for good before anything else changes."""
        self.footer = self.footer._replace(unique_id=unique_id)
        self.file.write(self.size, self.footer.pack())
        self.file.sync()
        self._identified = True

    def before_change(self) -> None:
        """Be another image than the one that children were made of."""
        if not self._identified:
            self.identify(uuid.uuid4().bytes)
