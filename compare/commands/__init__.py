"""One file per sub-command of `compare`."""
