"""Theory laid against measurement: paired, judged, drawn."""

# Imported at once, because a submodule of the same name would otherwise hide the function; it needs numpy alone.
from compare.load import load

__all__ = ["load"]
