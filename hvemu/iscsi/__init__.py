"""An iSCSI target (RFC 7143): SCSI targets of the devices room served on a TCP port. The protocol does no I/O."""
