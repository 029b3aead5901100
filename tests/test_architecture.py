"""Who may import whom, what a command may load before it runs, and facts with one home."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from captionbeam import STAGES

ROOT = Path(__file__).parents[1]
FOLDERS = ("model", "pipelines", "export", "serving", "demo", "benchmarks")
COMMANDS = {stage.module for stage in STAGES.values()}

# A folder or file → what it may import of ours: modules, or folders with all their modules.
FOR_ALL = {"model.errors", "model.progress", "model.startup"}
MAY_IMPORT = {
    "captionbeam.py": FOR_ALL,
    "model": FOR_ALL | {"model"},
    "pipelines": FOR_ALL
    | {"pipelines", "serving.client", "serving.contract", "serving.errors", "serving.flags"}
    | {"serving.retry"}
    | {
        f"model.{name}"
        for name in ("image_bytes", "preprocessing", "encoder", "resnet50", "runtimes")
    }
    | {f"model.{name}" for name in ("vocabulary", "records", "record_check")},
    # Draws records for a person.
    "pipelines/records_view.py": FOR_ALL
    | {"pipelines", "model.photographs", "model.vocabulary", "model.records"}
    | {"model.record_check", "model.record_figures", "model.places"},
    # Draws attention.
    "pipelines/attention_strips.py": {
        f"model.{name}" for name in ("photographs", "sheet", "strips")
    },
    "export": FOR_ALL
    | {"export", "model"}
    | {f"serving.{name}" for name in ("contract", "batching_parameters", "labels", "layout")},
    "serving": FOR_ALL | {"serving", "model.image_bytes", "model.figures"},
    # The one guarded way to read a URL.
    "serving/caption.py": FOR_ALL
    | {"serving", "model.image_bytes", "model.figures"}
    | {"pipelines.fetch", "pipelines.fetch_settings"},
    "demo": FOR_ALL | {"demo", "model.vocabulary"},
}

# Loading one of these takes longer than an answer to --help may.
HEAVY = {
    "apache_beam",
    "grpc",
    "keras",
    "matplotlib",
    "numpy",
    "PIL",
    "pyarrow",
    "pycocoevalcap",
    "pycocotools",
    "requests",
    "tensorflow",
    "tensorflow_serving",
}

# A fact → the only file that states it, once.
HOMES: dict[str | float, str] = {
    224: "model/encoder.py",
    103.939: "model/preprocessing.py",
    "<pad>": "model/vocabulary.py",
    "<start>": "model/vocabulary.py",
    "<end>": "model/vocabulary.py",
    "<unk>": "model/vocabulary.py",
    "serving_default": "serving/contract.py",
    "image_bytes": "serving/contract.py",
    "token_ids": "serving/contract.py",
    "log_probs": "serving/contract.py",
    "nbest": "serving/contract.py",
    "manifest.json": "model/records.py",
    "vocabulary.json": "model/records.py",
}


@dataclass(frozen=True)
class Import:
    """An import statement.

    Attributes:
      module: what is imported, as far as it is a module of ours, else its full name.
      line: where.
      at_load: it runs when the importing module is loaded.
    """

    module: str
    line: int
    at_load: bool


def sources() -> list[Path]:
    """Our modules, tests left out."""
    return [
        ROOT / "captionbeam.py",
        *(path for folder in FOLDERS for path in sorted((ROOT / folder).glob("**/*.py"))),
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> list[Import]:
    """Every import of a file, wherever it stands, importlib's with a literal name included."""
    return list(_imports(tree_of(path), path, at_load=True))


def _imports(node: ast.AST, path: Path, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_load)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            for alias in child.names:
                full = f"{base}.{alias.name}"
                yield Import(full if _file_of(full) else base, child.lineno, at_load)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            for argument in child.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield Import(str(argument.value), child.lineno, at_load)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        only_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, path, at_load and not inside and not only_types)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return str(node.module)
    package = path.parent.relative_to(ROOT).parts
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _file_of(module: str) -> Path | None:
    """The file of a module of ours, a package's __init__.py included."""
    stem = ROOT.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {*FOLDERS, "tests", "captionbeam"}


def allowed(path: Path) -> set[str] | None:
    """What a file may import of ours; None where there is no rule."""
    name = name_of(path)
    return MAY_IMPORT.get(name, MAY_IMPORT.get(name.partition("/")[0]))


def loaded_with(path: Path) -> dict[str, str]:
    """What loading a file loads: top package outside ours → the file that imports it."""
    found: dict[str, str] = {}
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for imported in imports_of(file):
            if not imported.at_load:
                continue
            if not is_ours(imported.module):
                found.setdefault(imported.module.partition(".")[0], name_of(file))
                continue
            package, _, _ = imported.module.partition(".")
            waiting += filter(None, (_file_of(package), _file_of(imported.module)))
    return found


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_imports_only_what_its_folder_may(path: Path) -> None:
    rule = allowed(path)
    if rule is None:
        pytest.skip("benchmarks measure whatever they like")
    offences = [
        f"{name_of(path)}:{imported.line} imports {imported.module}"
        for imported in imports_of(path)
        if is_ours(imported.module)
        and imported.module not in rule
        and imported.module.partition(".")[0] not in rule
    ]
    assert not offences


def test_nobody_imports_a_command() -> None:
    offences = [
        f"{name_of(path)}:{imported.line} imports {imported.module}"
        for path in sources()
        for imported in imports_of(path)
        if imported.module in COMMANDS
    ]
    assert not offences


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_loads_nothing_heavy(command: str) -> None:
    path = _file_of(command)
    assert path is not None, f"stage module {command} is missing"
    heavy = {name: file for name, file in loaded_with(path).items() if name in HEAVY}
    assert not heavy


def test_every_module_of_ours_exists() -> None:
    """An import inside a function is run by few tests; a typing error there must not hide."""
    missing = [
        f"{name_of(path)}:{imported.line} imports {imported.module}"
        for path in sources()
        for imported in imports_of(path)
        if is_ours(imported.module) and _file_of(imported.module) is None
    ]
    assert not missing


@pytest.mark.parametrize("fact", HOMES, ids=str)
def test_a_fact_has_one_home(fact: str | float) -> None:
    places = [
        f"{name_of(path)}:{constant.lineno}"
        for path in sources()
        for constant in _constants(tree_of(path))
        if constant.value == fact and type(constant.value) is type(fact)
    ]
    assert [place.rpartition(":")[0] for place in places] == [HOMES[fact]], places


def _constants(tree: ast.Module) -> Iterator[ast.Constant]:
    """Literals, without docstrings and other strings that stand as statements."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            yield node


def test_the_tree_names_no_machine() -> None:
    machine_paths = ("/" + "work/", "/" + "home/", "/" + "root/")
    offences = [
        f"{path.relative_to(ROOT)} has {marker}"
        for path in [
            *sources(),
            *sorted((ROOT / "tests").glob("*.py")),
            *sorted((ROOT / "docs").glob("**/*.md")),
            *(ROOT / name for name in ("README.md", "Makefile", "setup.py", "pyproject.toml")),
        ]
        for marker in machine_paths
        if marker in path.read_text(encoding="utf-8")
    ]
    assert not offences


@pytest.mark.parametrize(
    ("code", "module", "at_load"),
    [
        ("import pipelines.bulk", "pipelines.bulk", True),
        ("from model import search", "model.search", True),
        ("from model.search import beam", "model.search", True),
        ("from . import errors", "serving.errors", True),
        ("from .errors import CallFailed", "serving.errors", True),
        ("def run():\n    import numpy", "numpy", False),
        ("class A:\n    import numpy", "numpy", True),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", "numpy", True),
        ("if TYPE_CHECKING:\n    import numpy", "numpy", False),
        ("import importlib\nx = importlib.import_module('model.train')", "model.train", True),
    ],
)
def test_no_way_to_write_an_import_is_overlooked(code: str, module: str, at_load: bool) -> None:
    found = list(_imports(ast.parse(code), ROOT / "serving" / "client.py", at_load=True))
    assert (module, at_load) in [(item.module, item.at_load) for item in found]
