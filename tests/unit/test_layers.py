"""The layers of the code: which wing imports which, how many loose modules there are, which names occur twice.

Imports go down only: flows → tasks → reval_core, and inside `reval_core` as `MAY_IMPORT` says. Imports inside
functions count, and so do those under `TYPE_CHECKING`.
"""

import ast
import itertools
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

MAY_IMPORT = {
    # Bottom: modules at the top of reval_core, and wings that need nothing of a run.
    "errors": "",
    "launch": "",
    "atomic_files": "errors",
    "user_code": "atomic_files",
    "answers": "",
    "output": "",
    "config": "errors user_code answers",
    "storage": "errors atomic_files config",
    "rows": "errors config",
    # What a round is made of.
    "model": "errors atomic_files config",
    "engines": "errors launch atomic_files config storage model",
    "verification": "errors user_code answers config",
    "problems": "errors atomic_files answers config storage rows model engines verification",
    "objectives": "errors user_code",
    "replay_buffer": "errors atomic_files config storage model engines problems",
    "planning": "errors launch config model engines problems replay_buffer",
    "learning": "errors launch atomic_files config storage model problems objectives replay_buffer planning",
    # Runs.
    "pipeline": "errors launch atomic_files config storage model engines verification problems replay_buffer "
    "planning learning",
    "evaluation": "errors atomic_files config storage model engines verification problems learning pipeline",
    "stages": "errors atomic_files user_code config storage model engines verification problems objectives "
    "replay_buffer planning learning pipeline evaluation",
    # What is done with runs and problem sets besides training.
    "maintenance": "errors atomic_files config storage replay_buffer learning pipeline",
    "auditing": "answers config rows verification problems",
    "regrading": "errors atomic_files user_code answers config storage verification replay_buffer evaluation "
    "stages",
    "report": "errors atomic_files output config storage replay_buffer evaluation",
    "comparison": "errors atomic_files config storage replay_buffer evaluation report",
    "reproduction": "errors atomic_files config storage problems replay_buffer evaluation report",
}
"""From bottom to top: each wing of reval_core, and all that it imports. A wing imports only wings above it here."""

MOST_LOOSE_MODULES = 8

SAME_NAME = {
    # A section of the config, and what it configures.
    "engine.py": "config engines",
    "learning.py": "config stages",
    "rollouts.py": "config stages",
    "verification.py": "config stages",
    # A stage, and the module that does its work.
    "mismatch.py": "engines stages",
    "noise.py": "model stages",
    "offline.py": "replay_buffer stages",
    "sampling.py": "replay_buffer stages",
    "warm_start.py": "learning stages",
    # A stage, and the command around it.
    "importing.py": "flows stages",
    # A measurement, and its plots in the report.
    "off_policy.py": "learning report",
    # Sections of the two HTML pages.
    "sections.py": "comparison report",
}
"""Each file name that occurs more than once, and where: the same thing, seen from two layers."""


def _module(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("reval") else f"reval.{name}"


MODULES = {
    _module(path): path for layer in ("flows", "tasks", "reval_core") for path in (ROOT / layer).rglob("*.py")
}


def _wing(module):
    """`reval_core.model.lora` → `model`; `reval.flows.cli` → `flows`; `reval_core` itself → ``."""
    layer, *rest = module.removeprefix("reval.").split(".")
    return layer if layer != "reval_core" else rest[0] if rest else ""


def _layer(module):
    return module.removeprefix("reval.").split(".")[0]


def _imports(path):
    """Each module of ours that a file imports, with the line. `from package import name` is `package.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import; write the whole name"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from ((name, node.lineno) for name in named if name in MODULES)


@pytest.fixture(scope="module")
def imports():
    """All imports of ours: (importing module, imported module, place)."""
    return [
        (module, target, f"{path.relative_to(ROOT)}:{line}")
        for module, path in MODULES.items()
        for target, line in _imports(path)
    ]


def test_every_wing_is_in_the_table():
    assert {_wing(module) for module in MODULES} - {"", "flows", "tasks"} == set(MAY_IMPORT)


def test_the_table_reads_from_bottom_to_top():
    order = list(MAY_IMPORT)
    upward = [
        f"{wing} imports {target}"
        for place, wing in enumerate(order)
        for target in MAY_IMPORT[wing].split()
        if target not in order[:place]
    ]
    assert not upward


def test_reval_core_imports_neither_flows_nor_tasks_and_tasks_no_flows(imports):
    height = {"reval_core": 0, "tasks": 1, "flows": 2}
    upward = [
        f"{place} imports {target}"
        for module, target, place in imports
        if height[_layer(module)] < height[_layer(target)]
    ]
    assert not upward


def test_nothing_imports_flows_or_tasks_by_their_directories():
    """`reval.flows` and `reval.tasks` are the names in the wheel; a second name would be a second module."""
    python = [*ROOT.glob("*/**/*.py")]
    bare = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in python
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        for line in re.findall(r"^\s*(?:from|import) (?:flows|tasks)\b.*", path.read_text(), re.MULTILINE)
    ]
    assert not bare


def test_wings_import_what_the_table_allows(imports):
    forbidden = [
        f"{place} imports {target}"
        for module, target, place in imports
        if module.startswith("reval_core.") and target.startswith("reval_core.")
        if _wing(target) not in {_wing(module), *MAY_IMPORT.get(_wing(module), "").split()}
    ]
    assert not forbidden


def test_the_table_allows_no_more_than_is_used(imports):
    used = {(_wing(module), _wing(target)) for module, target, _ in imports}
    unused = [
        f"{wing} does not import {target}"
        for wing, targets in MAY_IMPORT.items()
        for target in targets.split()
        if (wing, target) not in used
    ]
    assert not unused


def _cycle(imports):
    """One cycle of modules, or None."""
    graph = defaultdict(set)
    for module, target in imports:
        if module != target:
            graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # each imports the next


def test_modules_import_each_other_in_no_cycle(imports):
    assert _cycle((module, target) for module, target, _ in imports) is None


def test_at_most_eight_loose_modules_lie_at_the_top_of_reval_core():
    loose = sorted(path.name for path in (ROOT / "reval_core").glob("*.py") if path.name != "__init__.py")
    assert len(loose) <= MOST_LOOSE_MODULES, loose


def test_a_file_name_occurs_twice_only_where_it_means_the_same():
    wings = defaultdict(list)
    for module, path in MODULES.items():
        if path.name != "__init__.py" and not module.startswith(
            "reval.flows.cli."
        ):  # a file per command, named after it
            wings[path.name].append(_wing(module))
    assert {name: " ".join(sorted(at)) for name, at in wings.items() if len(at) > 1} == SAME_NAME


def test_the_unit_tests_mirror_the_wings():
    directories = {path.name for path in (ROOT / "tests" / "unit").iterdir() if (path / "__init__.py").exists()}
    assert directories <= {*MAY_IMPORT, "flows", "tasks"}


def test_one_trajectory_can_be_followed_in_25_files(imports):
    """Each file is imported by an earlier one, or by a module that an earlier one imports. Packages re-export."""
    section = _CONTRIBUTING.partition("## Follow one trajectory\n")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| \d+ \| `([\w/.]+)` \|", section, re.MULTILINE)
    assert 20 <= len(paths) <= 25, "the table was not found, or has become too long"
    assert len(set(paths)) == len(paths)
    modules = [_module(ROOT / path) for path in paths]
    assert not [path for path, module in zip(paths, modules, strict=True) if module not in MODULES]
    direct, imported, reached = defaultdict(set), defaultdict(set), set()
    for module, target, _ in imports:
        direct[module].add(target)
    for module, targets in direct.items():
        packages = [target for target in targets if MODULES[target].name == "__init__.py"]
        imported[module] = targets.union(*(direct[package] for package in packages))
    for module, following in itertools.pairwise(modules):
        reached |= imported[module].union(*(imported[one] for one in imported[module]))
        assert following in reached, f"nothing before {following} leads to it"


def test_contributing_says_what_each_wing_is_for():
    named = set(re.findall(r"`((?:flows|tasks|reval_core|docs|tests|configs)/[\w./-]*)", _CONTRIBUTING))
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
    wings = {
        f"reval_core/{path.name}/" for path in (ROOT / "reval_core").iterdir() if (path / "__init__.py").exists()
    }
    assert not [wing for wing in sorted(wings) if not any(name.startswith(wing) for name in named)]
