"""`python -m eval.bench.cpu_translation`: translation on two CPU cores beside the peers.

`rounds` runs the contenders in turn, the greedy ones first; the report goes to
reports/cpu_translation.md. Multi30k is not ours to ship: without `--source` and `--target` the rows
come from where `dataset=multi30k_en_de` reads them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from eval.bench.contender import Contender
from eval.bench.rounds import run
from eval.record import file_facts, provenance

# name, kind, batch or layout, workers, OMP threads
OURS = (
    ("ftjob, one device of two threads (the default)", "ftjob", "t1p1d1", 2),
    ("ftjob, two devices of one thread (cluster.devices_per_node=2)", "ftjob", "t1p1d2", 1),
    ("ftjob, two ranks of one thread (as mpirun -n 2)", "ftjob_ranks", "2", 1),
)
WORKERS = {"1": "", "2": ", two workers of a thread"}
BATCHES = (("32", "1"), ("64", "1"), ("128", "1"), ("32", "2"), ("64", "2"), ("128", "2"))
TEXT = [
    "The first 512 rows of Multi30k's test_2016_flickr, English to German, with the demo T5 in "
    "float32, at most 80 new tokens, from token ids to token ids, without loading, tokenising and "
    "scoring. Tokens are new tokens, the end token included and the start token not. CTranslate2 "
    "sorts rows by length itself; transformers gets them sorted.",
]


def contenders(searches: Sequence[str], data: Sequence[str], *, ours: bool) -> list[Contender]:
    """The contenders of each search; `data` are the two text files, if given."""
    found: list[Contender] = []
    for beams in searches:
        group = "Greedy" if beams == "1" else f"Beam {beams}"

        def add(
            name: str, kind: str, arguments: Sequence[str], threads: int, group: str = group
        ) -> None:
            given = (*arguments, *data)
            found.append(Contender(name, "translation", kind, given, threads, group))

        for name, kind, layout, threads in OURS if ours else ():
            add(name, kind, (layout, beams), threads)
        for size, workers in BATCHES:
            name = f"CTranslate2, batch {size}{WORKERS[workers]}"
            add(name, "ctranslate2", (size, beams, workers), 2 // int(workers))
        add("transformers, batch 64", "transformers", ("64", beams), 2)
    return found


def main() -> int:
    """Run the rounds, write raw JSON and report."""
    command = "python -m eval.bench.cpu_translation"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beams", nargs="+", default=["1", "4"])
    parser.add_argument("--source", type=Path, help="text file of English lines")
    parser.add_argument("--target", type=Path, help="text file of German lines")
    parser.add_argument("--peers-only", action="store_true", help="without ftjob")
    given = parser.parse_args()
    if (given.source is None) != (given.target is None):
        parser.error("--source and --target go together")
    files = [] if given.source is None else [given.source, given.target]
    said = [command, "--rounds", str(given.rounds), "--beams", *given.beams]
    for option, file in zip(("--source", "--target"), files, strict=False):
        said += [option, file.name]
    said += ["--peers-only"] if given.peers_only else []
    about = {
        "title": "CPU translation beside the peers",
        "text": TEXT,
        "quality": "BLEU",
        "peers": [f"{peer} {version(peer.lower())}" for peer in ("CTranslate2", "transformers")],
        "data": [file_facts(file) for file in files],
        **provenance(f"{command} {shlex.join(said[1:])}"),
    }
    paths = [str(file.resolve()) for file in files]
    listed = contenders(given.beams, paths, ours=not given.peers_only)
    run("cpu_translation", about, listed, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
