"""One file per sub-command of `empirical`; importing one imports no torch."""
