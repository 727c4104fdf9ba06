"""Checkpoints: `resolve` (where), `formats` (which), `index` (what), `shard` (how it is cut),
`load` (the stream), `convert` (the other way)."""
