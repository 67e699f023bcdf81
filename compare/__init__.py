"""Theory laid against measurement: paired, judged, drawn."""
