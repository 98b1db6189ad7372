"""SCSI in three layers that know nothing of each other: host bus adapters, the bus with its units, targets."""
