"""The README's example and commands work as written, in child processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def pyvm_commands() -> list[str]:
    """Lines of the shell blocks that begin with `pyvm`, without their comments."""
    lines = (re.sub(r"\s+#.*$", "", line).strip() for block in blocks("sh") for line in block.splitlines())
    return [line for line in lines if line.startswith("pyvm ")]


def test_it_opens_with_the_two_commands() -> None:
    first = [re.sub(r"\s+#.*$", "", line) for line in blocks("sh")[0].splitlines()]
    assert first == ["pip install . && pyvm demo", "pip install '.[test]' && pytest"]


def test_example(tmp_path, run_python) -> None:  # type: ignore[no-untyped-def]
    (example,) = blocks("python")
    child = run_python("-c", example, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert "kernel.softmax" in child.stdout
    # Rows of softmax(relu(x) + x) for x = the first rows of the identity: e^2 against three times e^0.
    assert "0.711" in child.stdout and "0.096" in child.stdout


def test_commands(tmp_path, run_python) -> None:  # type: ignore[no-untyped-def]
    """In the order of the README, in one folder; `model.onnx` is a small model made here."""
    pytest.importorskip("onnxruntime")
    from tests.digits_onnx import digits_onnx

    (tmp_path / "model.onnx").write_bytes(digits_onnx().SerializeToString())
    commands = pyvm_commands()
    assert len(commands) >= 7
    for command in commands:
        arguments = command.split()[1:]
        if arguments[0] == "bench":
            arguments += ["--repeat", "2", "--min-ms", "1"]
        child = run_python("-m", "pyvm", *arguments, cwd=tmp_path)
        assert child.returncode == 0, f"{command}\n{child.stdout}\n{child.stderr}"
        assert child.stdout and not child.stderr, f"{command}\n{child.stderr}"
    assert (tmp_path / "out.npz").exists() and (tmp_path / "model.vmx").exists() and (tmp_path / "passes").is_dir()


def test_console_script(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The installed `pyvm` program; an in-place build has none."""
    script = Path(sys.executable).with_name("pyvm")
    if not script.exists():
        if os.environ.get("PYVM_TEST_INSTALLED") == "1":
            pytest.fail(f"{script} does not exist")
        pytest.skip("pyvm is not installed in this environment")
    child = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0 and re.fullmatch(r"pyvm \d+\.\d+\.\d+\S*\n", child.stdout), child.stderr
