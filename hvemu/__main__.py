"""``python -m hvemu``."""

import sys

from hvemu.cli import main

sys.exit(main())
