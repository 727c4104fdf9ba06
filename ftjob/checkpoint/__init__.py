"""Checkpoints: `resolve` (where), `index` (what), `shard` (how it is cut), `load` (the stream)."""
