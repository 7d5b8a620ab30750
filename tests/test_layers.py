"""Who may import whom: vmcore never imports pyvm, and the serving half never imports the compiler half."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmcore

ROOT = Path(__file__).resolve().parent.parent

COMPILER = ("pyvm.ir", "pyvm.op", "pyvm.transform", "pyvm.codegen", "pyvm.frontend", "pyvm.compile")
# Explanations are asked for by people: they may load the compiler half, and nothing loads them unasked.
TOOLS = ("pyvm.cli", "pyvm.demo", "pyvm.explain", "pyvm.__main__")
# The IR and the operators are plain data: they know nothing of executables and machines.
PLAIN = ("pyvm.ir", "pyvm.op")


def belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_imports(path: Path) -> Iterator[str]:
    """Absolute names that a Python file imports, inside functions too; not what only a type checker sees."""
    package = module_name(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                yield from walk(child)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            for alias in node.names:
                yield f"{stem}.{alias.name}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def cython_imports(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", text, re.MULTILINE):
        yield match[1] or match[2]


def test_vmcore_imports_nothing_of_pyvm() -> None:
    wrong = []
    for path in sorted((ROOT / "vmcore").rglob("*")):
        if path.suffix in (".py", ".pyi"):
            imports = list(python_imports(path))
        elif path.suffix in (".pyx", ".pxd"):
            imports = list(cython_imports(path))
        else:
            continue
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports if belongs(name, ("pyvm",))]
    assert not wrong, "\n".join(wrong)


def test_serving_modules_import_no_compiler_module() -> None:
    wrong = []
    for path in sorted((ROOT / "pyvm").rglob("*.py")):
        name = module_name(path)
        if belongs(name, COMPILER + TOOLS):
            continue
        wrong += [f"{name} imports {other}" for other in python_imports(path) if belongs(other, COMPILER + TOOLS)]
    assert not wrong, "\n".join(wrong)


def test_ir_and_operators_know_no_executable() -> None:
    wrong = []
    known = (*PLAIN, "pyvm.errors", "pyvm.checked_calls")
    for path in sorted((ROOT / "pyvm").rglob("*.py")):
        name = module_name(path)
        if not belongs(name, PLAIN):
            continue
        wrong += [
            f"{name} imports {other}"
            for other in python_imports(path)
            if belongs(other, ("pyvm",)) and not belongs(other, known) and other != "pyvm"
        ]
    assert not wrong, "\n".join(wrong)


FORBIDDEN = (*COMPILER, *TOOLS, "onnx", "onnxruntime", "Cython", "setuptools")

SERVE = """
import sys
import numpy as np
import pyvm

executable = pyvm.load_executable(sys.argv[1])
result = pyvm.VirtualMachine(executable)["main"](np.load(sys.argv[2]))
np.save(sys.argv[3], np.asarray(result))
print("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, run_python):  # type: ignore[no-untyped-def]
    """The demo model saved here and run in another process: modules loaded there, its result, and ours."""
    import numpy as np

    import pyvm
    from pyvm.demo import load_digits
    from pyvm.demo.model import build_module

    folder = tmp_path_factory.mktemp("serving")
    executable = pyvm.compile(build_module())
    executable.save(folder / "digits.vmx")
    images = load_digits()[1].images[:7]
    np.save(folder / "images.npy", images)
    child = run_python("-c", SERVE, "digits.vmx", "images.npy", "result.npy", cwd=folder)
    assert child.returncode == 0, child.stderr
    ours = np.asarray(pyvm.VirtualMachine(executable)["main"](images))
    return child.stdout.split(), np.load(folder / "result.npy"), ours


def test_serving_process_loads_no_compiler(served) -> None:  # type: ignore[no-untyped-def]
    modules, _, _ = served
    assert "vmcore" in modules
    assert not [name for name in modules if belongs(name, FORBIDDEN)]


def test_another_process_gives_identical_bits(served) -> None:  # type: ignore[no-untyped-def]
    _, theirs, ours = served
    assert theirs.dtype == ours.dtype
    assert theirs.tobytes() == ours.tobytes()


def test_import_pyvm_loads_nothing_else(tmp_path, run_python) -> None:  # type: ignore[no-untyped-def]
    child = run_python("-c", "import sys, pyvm; print('\\n'.join(sys.modules))", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert not [name for name in child.stdout.split() if belongs(name, ("vmcore", "numpy", *FORBIDDEN))]


def test_compile_stays_a_function(tmp_path, run_python) -> None:  # type: ignore[no-untyped-def]
    """Importing the module `pyvm.compile` must not hide the function `pyvm.compile`."""
    code = "import pyvm.compile, pyvm; assert callable(pyvm.compile), pyvm.compile; print(pyvm.compile.__name__)"
    child = run_python("-c", code, cwd=tmp_path)
    assert child.stdout.strip() == "compile", child.stderr


def test_every_public_name_exists() -> None:
    import pyvm

    missing = []
    for name in pyvm.__all__:
        try:
            getattr(pyvm, name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{name}: {error}")
    assert not missing, "\n".join(missing)
    assert set(pyvm.__all__) <= set(dir(pyvm))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pyvm.no_such_name


def test_memory_is_taken_in_one_place() -> None:
    """So that a checked build sees all of it, and can make all of it fail."""
    names = r"malloc|calloc|realloc|posix_memalign|aligned_alloc|mmap|strdup|Py\w*_(?:Raw)?(?:Malloc|Calloc)"
    taken = re.compile(rf"\b({names})\(")
    wrong = []
    for path in sorted((ROOT / "vmcore").rglob("*")):
        if path.suffix not in (".pyx", ".pxd", ".h") or path.name in ("memory.h", "memory_checked.h", "checked.pyx"):
            continue
        wrong += [f"{path.relative_to(ROOT)}: {found[0]}" for found in taken.finditer(path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_library_holds_every_module() -> None:
    sources = {module_name(path) for path in ROOT.glob("vmcore/**/*.pyx")}
    assert {f"vmcore.{name}" for name in vmcore.MODULES} == sources - {"vmcore.checked"}
