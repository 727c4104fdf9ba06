"""The models: `arch` (axes), `layers`, `attention`, `decoder` (a stage), `families` (formats)."""
