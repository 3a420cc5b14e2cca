"""The house: what stands where, how big it may be, and what may import what."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from pruning import records
from pruning.methods import BERT_METHODS, LSTM_METHODS
from pruning.tasks import AGNEWS, GLUE

RUNNERS = ("RunLstm4Glue.py", "RunLstm4Agnews.py", "RunBert4Glue.py")
MODEL = "ModifiedModelingBert.py"
SCRIPTS = {
    *("PrepareAgnews4Lstm.py", "PrepareGlue4Lstm.py", "PrepareGlue4Bert.py", "ConvertBert4Torch.py"),
    *(MODEL, *RUNNERS),
}
FOLDERS = {"data", "bert", "cache", "records", "pruning", "studies", "sample", "tests"}
OTHER_FILES = {
    *("README.md", "Makefile"),
    *("requirements.txt", "requirements-dev.txt", "requirements-onnx.txt", "requirements-studies.txt"),
    *("pyproject.toml", "LICENSE", "CITATION.cff"),
}
WITH_A_SAVED_MODEL = {  # the files that a saved model needs
    *("ModifiedModelingBert", "pruning", "pruning.selection", "pruning.losses", "pruning.teachers"),
    *("pruning.pruners", "pruning.student", "pruning.methods", "pruning.layers", "pruning.plan"),
    "pruning.tokens",
}
IN_A_RECORD_FOLDER = (records.RECORD, records.PAGE)


def files_of_git() -> list[Path]:
    """Every file of the tree that git does not ignore."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here, or no checkout")
    return [path for name in found.split("\0") if name and (path := ROOT / name).is_file()]


def code_files() -> list[Path]:
    folders = ("pruning", "studies", "sample")
    return sorted([*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sizes(paths: list[Path], *kinds: type[ast.AST]) -> dict[str, int]:
    """Lines of every function or class in these files, from `def` or `class` to its end."""
    return {
        f"{path.relative_to(ROOT).as_posix()}: {node.name}": node.end_lineno - node.lineno + 1
        for path in paths
        for node in ast.walk(tree_of(path))
        if isinstance(node, kinds)
    }


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def above(limit: int, found: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in found.items() if size > limit}


def modules_of(code: ast.Module) -> Iterator[str]:
    """Every module that some code imports, also inside a function. Relative imports keep their dots."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file())


def own_modules_of(path: Path) -> set[str]:
    """The modules of this project that a file imports, with the packages that they are in."""
    own = {*(script.stem for script in ROOT.glob("*.py")), *FOLDERS, ""}
    found = {module for module in modules_of(tree_of(path)) if module.split(".")[0] in own}
    return found | {module.split(".")[0] for module in found}


# --- What stands where -----------------------------------------------------------------------


def test_the_top_level_holds_the_eight_scripts_the_folders_and_little_else():
    entries = {path.relative_to(ROOT).parts[0] for path in files_of_git()}
    visible = {name for name in entries if not name.startswith(".")}
    assert visible == SCRIPTS | FOLDERS | OTHER_FILES


def test_every_file_in_git_is_under_one_megabyte():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in files_of_git()}
    assert above(999_999, sizes) == {}


# --- Sizes -----------------------------------------------------------------------------------


def test_no_function_is_longer_than_60_lines():
    assert above(60, sizes(code_files(), ast.FunctionDef, ast.AsyncFunctionDef)) == {}


def test_no_class_in_pruning_is_longer_than_150_lines():
    assert above(150, sizes(sorted((ROOT / "pruning").glob("*.py")), ast.ClassDef)) == {}


def test_no_file_in_pruning_is_longer_than_300_lines():
    assert above(300, {path.name: lines_of(path) for path in (ROOT / "pruning").glob("*.py")}) == {}


def test_no_runner_is_longer_than_200_lines_and_the_model_no_longer_than_300():
    assert above(200, {name: lines_of(ROOT / name) for name in RUNNERS}) == {}
    assert lines_of(ROOT / MODEL) <= 300


def test_readme_has_at_most_200_lines_and_14_kilobytes():
    readme = ROOT / "README.md"
    assert lines_of(readme) <= 200
    assert readme.stat().st_size <= 14_000


# --- What imports what -----------------------------------------------------------------------


def test_imports_are_found_wherever_they_stand():
    code = "import a.b, c\nfrom d import e\nfrom pruning import layers\ndef f():\n    from . import g\n"
    assert {*modules_of(ast.parse(code))} == {"a.b", "c", "d", "pruning", "pruning.layers", "."}


def test_no_script_imports_another_but_the_model():
    names = {Path(script).stem for script in SCRIPTS} - {Path(MODEL).stem}
    for script in sorted(SCRIPTS):
        assert own_modules_of(ROOT / script) & names == set(), script


def test_pruning_imports_no_script_but_the_model_and_neither_studies_nor_sample():
    for path in sorted((ROOT / "pruning").glob("*.py")):
        others = {module for module in own_modules_of(path) if module.split(".")[0] != "pruning"}
        assert others <= {Path(MODEL).stem}, path.name


def test_a_saved_model_needs_these_modules_and_installed_packages_only():
    reached: set[str] = set()
    todo = {Path(MODEL).stem}
    while todo:
        reached |= todo
        paths = [ROOT / module.replace(".", "/") for module in todo]
        files = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]
        todo = {module for file in files for module in own_modules_of(file)} - reached
    assert reached == WITH_A_SAVED_MODEL


# --- Names of records ------------------------------------------------------------------------

MIXED = " + ".join([*BERT_METHODS, *BERT_METHODS][:12])  # one method for each of twelve layers
STRANGE = 'CON: a <strange> "name" | with ? and * \\ / ü 漢 ' + "." * 100


@pytest.mark.parametrize("method", [*BERT_METHODS, *LSTM_METHODS, "dense", "bag of words", MIXED, STRANGE])
def test_the_path_of_a_record_is_short_and_windows_takes_it(method):
    for model, task in [
        *(("BERT", task) for task in GLUE),
        *(("LSTM", task) for task in [*GLUE, AGNEWS.name]),
    ]:
        folder = records.folder_of(model, {"task": task, "method": method, "seed": 1234})
        for name in IN_A_RECORD_FOLDER:
            path = (folder / name).as_posix()
            assert path.startswith("records/") and len(path) < 80, f"{len(path)} characters: {path}"
        assert {*folder.as_posix()} <= {*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/"}
        assert not any(part.startswith("-") or part.endswith("-") for part in folder.parts)
