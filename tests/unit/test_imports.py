"""The layout's rules, read from the syntax tree of every file under ftjob/ and checked in fresh
interpreters: who may import what, no hidden state, docstrings everywhere, files of readable size.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ftjob

PACKAGE = Path(ftjob.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {str(f.relative_to(PACKAGE)): ast.parse(f.read_text("utf-8")) for f in FILES}
STDLIB_ONLY = (
    "errors.py",
    "keyset.py",
    "pipeline.py",
    "plan.py",
    "plan_generation.py",
    "plan_search.py",
    "predict.py",
    "rates.py",
    "stage_times.py",
    "checkpoint/shard.py",
    "model/arch.py",
    "model/families/",
    "bench/roofline.py",
    "launch/advice.py",
    "launch/nvml.py",
    "launch/topology.py",
    "config/__init__.py",
    "config/bench.py",
    "config/build.py",
    "config/cluster.py",
    "config/convert.py",
    "config/dataset.py",
    "config/decode.py",
    "config/doctor.py",
    "config/groups.py",
    "config/keys.py",
    "config/old_names.py",
    "config/options.py",
    "config/plan.py",
    "config/old_settings.py",
    "config/pbtxt.py",
    "config/shape.py",
    "config/words.py",
    "__main__.py",
    "__init__.py",
)
# package -> where alone it may be imported, and whether only inside functions
ONLY_IN = {
    "mpi4py": (("launch/mpi.py",), True),
    "submitit": (("launch/slurm.py",), True),
    "hydra": (("config/compose.py", "commands/hydra_app.py"), True),
    "transformers": ((), True),
    "datasets": (("tasks/rows.py",), True),
    "sacrebleu": (("tasks/bleu.py", "tasks/pairs.py"), True),
    "sentencepiece": (("spiece.py",), True),
    "pytest": ((), True),
}
# calls that change torch for the whole process
PROCESS_WIDE = (
    "set_default_dtype",
    "set_default_device",
    "set_default_tensor_type",
    "set_num_threads",
    "set_num_interop_threads",
    "set_float32_matmul_precision",
    "set_grad_enabled",
    "use_deterministic_algorithms",
    "manual_seed",
    "manual_seed_all",
)
IMMUTABLE_CALLS = ("MappingProxyType", "frozenset", "tuple")
MUTABLE_CALLS = (
    *("list", "dict", "set", "bytearray", "defaultdict", "deque", "OrderedDict", "Counter"),
    *("ChainMap", "SimpleNamespace", "WeakKeyDictionary", "WeakValueDictionary", "local"),
    *("Lock", "RLock", "Condition", "Event", "Queue", "SimpleQueue"),
)
MODULES = pytest.mark.parametrize("name", TREES)


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module a tree imports, at any depth, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield str(node.module), node


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run at import, those below if, try and class included."""
    found: list[ast.stmt] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.stmt):
            found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            if isinstance(node, ast.Try):
                waiting += [s for handler in node.handlers for s in handler.body]
    return found


@MODULES
def test_imports_are_where_they_may_be(name: str) -> None:
    early = top_level(TREES[name])
    for module, statement in imports(TREES[name]):
        package = module.split(".")[0]
        where = f"{name}:{statement.lineno} imports {module}"
        if name.startswith(STDLIB_ONLY):
            assert package in sys.stdlib_module_names or package == "ftjob", where
        if name.startswith(("tasks/", "results/")):
            assert package not in ("torch", "mpi4py", "hydra"), where
        if package in ONLY_IN:
            allowed, only_inside = ONLY_IN[package]
            assert name in allowed, where
            assert not (only_inside and statement in early), f"{where} at its top"
        if name.startswith("model/") and not name.startswith("model/families/"):
            assert not module.startswith("ftjob.checkpoint"), where
        if name.startswith("model/families/") and name != "model/families/__init__.py":
            assert not module.startswith("ftjob.model.families"), where


def loaded_by(*modules: str) -> set[str]:
    """The packages a fresh interpreter holds after importing `modules`, its own start-up apart."""
    code = (
        "import importlib, json, sys\n"
        "before = set(sys.modules)\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout))


def modules_of(*prefixes: str) -> list[str]:
    names = [n for n in TREES if n.startswith(prefixes)]
    dotted = [n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in names]
    return ["ftjob" if n == "__init__" else f"ftjob.{n}" for n in dotted]


def test_configuration_and_plan_load_the_standard_library_only() -> None:
    modules = modules_of(*STDLIB_ONLY)
    assert {"ftjob.plan", "ftjob.config.groups", "ftjob.model.families.gpt2"} <= set(modules)
    assert not loaded_by(*modules) - set(sys.stdlib_module_names) - {"ftjob"}


def test_tasks_and_results_never_load_the_heavy_packages() -> None:
    loaded = loaded_by(*modules_of("tasks/", "results/"))
    assert "ftjob" in loaded
    assert not loaded & {"torch", "mpi4py", "hydra", "datasets", "transformers"}


def test_commands_load_torch_only_when_they_run() -> None:
    loaded = loaded_by(*modules_of("__main__", "commands/", "launch/", "job.py"))
    assert not loaded & {"torch", "mpi4py", "hydra", "datasets", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["model.seed=x"], 2), (["models"], 0)], ids=str
)
def test_help_and_refusals_do_without_torch(arguments: list[str], code: int) -> None:
    probe = (
        "import sys\n"
        "from ftjob.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def called(node: ast.AST) -> str:
    """The last part of a called name, or nothing."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def mutable(value: ast.AST) -> bool:
    """Whether an assigned value could be changed in place."""
    if called(value) in IMMUTABLE_CALLS:
        return False
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    if isinstance(value, ast.Tuple):
        return any(map(mutable, value.elts))
    return isinstance(value, literals) or called(value) in MUTABLE_CALLS


@MODULES
def test_no_state_outside_of_objects(name: str) -> None:
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Global), f"{name}:{node.lineno} global"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator).split("(")[0].split(".")[-1]
                assert text not in ("cache", "lru_cache"), f"{name}:{node.lineno} {text}"
    for node in top_level(TREES[name]):
        if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) or node.value is None:
            continue
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            continue
        assert not mutable(node.value), f"{name}:{node.lineno} {ast.unparse(node)[:80]}"


@MODULES
def test_torch_is_not_changed_for_the_whole_process(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            assert called(node) not in PROCESS_WIDE, f"{name}:{node.lineno} {called(node)}"
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in map(ast.unparse, targets):
                assert not target.startswith("torch."), f"{name}:{node.lineno} sets {target}"


@MODULES
def test_everything_public_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name]), f"{name}: no module docstring"
    waiting: list[tuple[str, ast.AST]] = [("", TREES[name])]
    while waiting:
        prefix, owner = waiting.pop()
        for node in ast.iter_child_nodes(owner):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if node.name.startswith("_"):
                continue
            assert ast.get_docstring(node), f"{name}:{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                waiting.append((f"{node.name}.", node))


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 350
    assert max(map(len, lines), default=0) <= 100


def test_the_rules_see_the_whole_package() -> None:
    assert {"rank.py", "model/families/gpt2.py", "tasks/rows.py"} <= set(TREES)
    assert len(TREES) > 40
    for rule in STDLIB_ONLY:
        assert any(n.startswith(rule) for n in TREES), rule
