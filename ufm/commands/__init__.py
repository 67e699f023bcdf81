"""The commands of `ufm`, one file each."""
