"""`python -m ftjob [COMMAND] ...`: takes the command off and calls its module.

Nothing heavy is imported here; an error of the user's ends as one message and an exit code.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from types import MappingProxyType

from ftjob.errors import DONE, INTERRUPTED, JobError, nearest

# name -> (module, one line of help)
COMMANDS = MappingProxyType(
    {
        "run": ("ftjob.commands.run", "run a job and write its report (the default command)"),
        "plan": (
            "ftjob.commands.plan",
            "print layout, memory, largest batch and predicted times, or rank all layouts",
        ),
        "bench": ("ftjob.commands.bench", "time chosen sizes of batch, input and output"),
        "convert": ("ftjob.commands.convert", "rewrite a checkpoint in another format or split"),
        "doctor": (
            "ftjob.commands.doctor",
            "look at this machine: devices, links, libraries, Slurm and MPI",
        ),
        "models": ("ftjob.commands.models", "list the models of conf/model"),
        "report": ("ftjob.commands.report", "RUN: rebuild a report; PARENT: tabulate its runs"),
        "compare": ("ftjob.commands.compare", "RUN_A RUN_B: are the answers the same?"),
    }
)
PATHS = frozenset({"report", "compare"})  # take folders, and compose nothing
HELP = frozenset({"--help", "-h"})
HYDRA_FLAGS = frozenset(
    {
        "--help",
        "-h",
        "--hydra-help",
        "--cfg",
        "-c",
        "--multirun",
        "-m",
        "--info",
        "-i",
        "--resolve",
        "--package",
        "-p",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except JobError as error:
        print(f"ftjob: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        return DONE
    except KeyboardInterrupt:
        print("ftjob: interrupted before the run began", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    command = "run"
    if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
        command = arguments.pop(0)
    if command not in COMMANDS:
        print(
            f"ftjob: {command}: no such command. {nearest(command, COMMANDS)}\nOverrides are "
            "written key=value.",
            file=sys.stderr,
        )
        return 2
    world = importlib.import_module("ftjob.launch.world").detect_world(os.environ)
    if world.rank > 0 and (command != "run" or HYDRA_FLAGS.intersection(arguments)):
        return DONE  # what only prints is rank 0's to print
    if HELP.intersection(arguments):
        print(usage())
        if command in PATHS:
            return DONE
    module = importlib.import_module(COMMANDS[command][0])
    if command in PATHS:
        return int(module.main(arguments))
    if HYDRA_FLAGS.intersection(arguments):
        hydra_app = importlib.import_module("ftjob.commands.hydra_app")
        return int(hydra_app.main(command, arguments))
    arguments, config_dirs = take_config_dirs(arguments)
    return int(module.main(arguments, config_dirs))


def usage() -> str:
    """What can be typed: the commands, a line each."""
    lines = ["python -m ftjob [COMMAND] key=value ...", ""]
    lines += [f"  {name:8}  {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join([*lines, "", "What each key means: README.md, Configuration."])


def take_config_dirs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split `--config-dir DIR` off the overrides; DIR may hold groups like those of conf/."""
    rest: list[str] = []
    found: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found.append(value if equals else next(waiting, ""))
        else:
            rest.append(argument)
    return rest, found


def cli() -> None:
    """Run the process's command line and leave. Where device threads still compute, or GPUs were
    used, leave without Python's own shutdown: it would wait for them, or take memory from under
    them, and CUDA's libraries wait for ranks that are gone."""
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `ftjob ... | head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.flush()
    torch = sys.modules.get("torch")
    gpus = torch is not None and torch.cuda.is_initialized()
    if gpus or any(t.name.startswith("device") for t in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    cli()
