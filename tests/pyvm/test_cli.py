"""The `pyvm` command: what it prints, what it writes, its exit codes and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pyvm
from pyvm.cli import COMMANDS, common, main
from pyvm.demo import load_digits, load_weights
from pyvm.demo.train import forward

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli(*args)`: exit code, standard output, standard error of one command in this process."""

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def fails(outcome: tuple[int, str, str], code: int, *words: str) -> None:
    """The command failed with this code and one line of error that contains these words."""
    got, _, err = outcome
    assert got == code, err
    assert err.startswith("pyvm: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits.vmx, digits.onnx, images.npy (n = 3) and the expected result of the demo's network."""
    from pyvm.demo.model import build_module
    from tests.digits_onnx import digits_onnx

    path = tmp_path_factory.mktemp("cli")
    pyvm.compile(build_module()).save(path / "digits.vmx")
    (path / "digits.onnx").write_bytes(digits_onnx().SerializeToString())
    np.save(path / "images.npy", load_digits()[1].images[:3])
    return path


# The command itself -------------------------------------------------------------------------------------------------


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"pyvm {pyvm.__version__}\n", "")


def test_help(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0 and "exit codes" in out
    for name, module in COMMANDS.items():
        assert name in out and module.HELP in out
        code, text, _ = cli(name, "--help")
        assert code == 0 and text.startswith(f"usage: pyvm {name}")


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["run"], ["run", "x.vmx", "--repeat", "0"], ["compile"]])
def test_wrong_usage(cli: Cli, args: list[str]) -> None:
    code, out, err = cli(*args)
    assert code == 2 and not out and err.startswith("usage: pyvm") and "pyvm" in err.splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "dis", "verify", "bench"])
def test_unusable_files(cli: Cli, command: str, tmp_path: Path, folder: Path) -> None:
    fails(cli(command, tmp_path / "none.vmx"), 2, "none.vmx", "no such file")
    fails(cli(command, tmp_path), 2, str(tmp_path))
    (tmp_path / "text.vmx").write_text("hello, this is not an executable")
    fails(cli(command, tmp_path / "text.vmx"), 2, "text.vmx")
    data = (folder / "digits.vmx").read_bytes()
    (tmp_path / "cut.vmx").write_bytes(data[: len(data) // 2])
    fails(cli(command, tmp_path / "cut.vmx"), 2, "cut.vmx")
    (tmp_path / "empty.vmx").write_bytes(b"")
    fails(cli(command, tmp_path / "empty.vmx"), 2, "empty.vmx")


def test_traceback_on_request(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVM_TRACEBACK", "1")
    code, _, err = cli("run", tmp_path / "none.vmx")
    assert code == 2 and err.startswith("pyvm: error: ") and "Traceback (most recent call last)" in err


def test_unexpected_error_is_one_line(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> object:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(pyvm, "load_executable", broken)
    fails(cli("dis", folder / "digits.vmx"), 1, "RuntimeError: first line second line")


def test_interrupt(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(pyvm, "load_executable", interrupted)
    assert cli("dis", folder / "digits.vmx") == (130, "", "pyvm: interrupted\n")


def test_reader_that_goes_away(folder: Path, run_python: Callable[..., object], tmp_path: Path) -> None:
    """`pyvm dis | head -0` ends quietly, with buffered output left over."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'pyvm', 'dis', '--python', sys.argv[1]],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "child.stdout.close()\n"
        "sys.stdout.write(child.stderr.read().decode())\n"
        "sys.exit(child.wait())\n"
    )
    child: subprocess.CompletedProcess[str] = run_python(  # type: ignore[assignment]
        "-c", code, str(folder / "digits.vmx"), cwd=tmp_path
    )
    assert (child.returncode, child.stdout) == (0, "")


# run ----------------------------------------------------------------------------------------------------------------


def test_run_with_file(cli: Cli, folder: Path, tmp_path: Path) -> None:
    code, out, err = cli(
        "run", folder / "digits.vmx", "--input", f"image={folder / 'images.npy'}", "--output", tmp_path / "out.npz"
    )
    assert (code, err) == (0, "")
    assert "float32[3, 10]" in out and re.search(r"time .* \(first call", out)
    (result,) = np.load(tmp_path / "out.npz").values()
    images = np.load(folder / "images.npy")
    np.testing.assert_allclose(result, forward(load_weights(), images), rtol=1e-4, atol=1e-6)


def test_run_with_npz_and_unnamed_npy(cli: Cli, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.load(folder / "images.npy"))
    outputs = []
    for source in (tmp_path / "in.npz", folder / "images.npy"):
        code, out, err = cli("run", folder / "digits.vmx", "--input", source)
        assert (code, err) == (0, "")
        outputs.append([line for line in out.splitlines() if line.startswith("out ")])
    assert outputs[0] == outputs[1]


def test_random_inputs_follow_seed_and_dim(cli: Cli, folder: Path, tmp_path: Path) -> None:
    results = []
    for seed in (1, 1, 2):
        path = tmp_path / "out.npz"
        assert cli("run", folder / "digits.vmx", "--dim", "n=4", "--seed", seed, "--output", path)[0] == 0
        results.append(next(iter(np.load(path).values())))
    assert results[0].shape == (4, 10)
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])


def test_run_repeat_and_threads(cli: Cli, folder: Path) -> None:
    before = pyvm.get_num_threads()
    try:
        code, out, _ = cli("run", folder / "digits.vmx", "--repeat", 5, "--threads", 1)
        assert code == 0 and re.search(r"time min .*, median .* of 5 calls, first .* \(1 thread\(s\)\)", out)
    finally:
        pyvm.set_num_threads(before)


def test_run_wrong_inputs(cli: Cli, folder: Path, tmp_path: Path) -> None:
    model, images = folder / "digits.vmx", folder / "images.npy"
    fails(cli("run", model, "--input", f"picture={images}"), 2, "picture", "image")
    fails(cli("run", model, "--input", images, "--input", images), 2, "twice")
    fails(cli("run", model, "--input", tmp_path / "none.npy"), 2, "none.npy", "No such file")
    (tmp_path / "text.npy").write_text("not an array")
    fails(cli("run", model, "--input", tmp_path / "text.npy"), 2, "text.npy", "not a .npy or .npz file")
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    fails(cli("run", model, "--input", tmp_path / "objects.npy"), 2, "objects.npy")
    fails(cli("run", model, "--dim", "n"), 2, "--dim n")
    fails(cli("run", model, "--dim", "n=-1"), 2, "--dim n=-1")
    fails(cli("run", model, "--dim", "m=2"), 2, "--dim m", "there is n")
    fails(cli("run", model, "--function", "nain"), 2, "nain", "main")
    fails(cli("run", model, "--output", tmp_path / "out.txt"), 2, ".npz")
    np.save(tmp_path / "small.npy", np.zeros((2, 1, 7, 7), np.float32))
    fails(cli("run", model, "--input", tmp_path / "small.npy"), 1, "7", "8")
    np.save(tmp_path / "double.npy", np.zeros((2, 1, 8, 8), np.float64))
    fails(cli("run", model, "--input", tmp_path / "double.npy"), 1, "float64", "float32")


def test_check(cli: Cli, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import numpy_helper

    code, out, err = cli("run", folder / "digits.onnx", "--check", "--dim", "n=2")
    assert (code, err) == (0, "") and "check probabilities: ok" in out and "check ok against ONNX Runtime" in out
    code, out, _ = cli("run", folder / "digits.vmx", "--check", folder / "digits.onnx")
    assert code == 0 and "check ok" in out

    model = onnx.load(folder / "digits.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "fc.b":
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) + np.arange(10, dtype=np.float32), "fc.b")
            )
    onnx.save(model, tmp_path / "other.onnx")
    code, out, err = cli("run", folder / "digits.vmx", "--check", tmp_path / "other.onnx")
    assert (code, err) == (1, "") and "differ, by up to" in out and "check FAILED" in out


def test_check_needs_a_reference(cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(cli("run", folder / "digits.vmx", "--check"), 2, "digits.vmx", "not an .onnx model")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fails(cli("run", folder / "digits.onnx", "--check"), 2, "onnxruntime", "pip install")
    monkeypatch.setitem(sys.modules, "onnx", None)
    fails(cli("run", folder / "digits.onnx"), 2, "onnx", "pip install")


def test_bad_onnx(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xfe not a model")
    outcome = cli("run", tmp_path / "bad.onnx")
    fails(outcome, outcome[0], "bad.onnx")
    assert outcome[0] in (1, 2)


# compile, dis, asm, verify ------------------------------------------------------------------------------------------


def test_compile(cli: Cli, folder: Path, tmp_path: Path) -> None:
    target, dump = tmp_path / "out.vmx", tmp_path / "passes"
    code, out, err = cli("compile", folder / "digits.onnx", "-o", target, "--dump", dump)
    assert (code, err) == (0, "")
    assert (
        "instructions" in out and "constants" in out and "compile time" in out and "image: (n, 1, 8, 8) float32" in out
    )
    assert list(dump.iterdir())
    assert pyvm.load_executable(target).signature("main").params[0].shape == ("n", 1, 8, 8)


def test_compile_a_program_in_text_form(cli: Cli, tmp_path: Path) -> None:
    program = tmp_path / "program.pyvm"
    program.write_text("def main(x: Tensor((n,), float32)):\n    return add(relu(x), x)\n", encoding="utf-8")
    code, out, err = cli("compile", program)
    assert (code, err) == (0, "") and "main(x: (n) float32)" in out.replace("(n,)", "(n)")
    x = np.arange(-3, 4, dtype=np.float32)
    result = pyvm.VirtualMachine(tmp_path / "program.vmx")["main"](x)
    np.testing.assert_array_equal(result.numpy(), np.maximum(x, 0) + x)
    program.write_text("def main(x: Tensor((n,), float32)):\n    return rleu(x)\n", encoding="utf-8")
    fails(cli("compile", program), 1, "program.pyvm", "line 2, column 12", "relu")


def test_compile_with_shape(cli: Cli, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.vmx"
    for option, value in (("--shape", "image=5,1,8,?"), ("--dim", "n=5")):
        code, out, _ = cli("compile", folder / "digits.onnx", "-o", target, option, value)
        assert code == 0 and re.search(r"arena +[\d.]+ KiB", out)
        assert pyvm.load_executable(target).signature("main").params[0].shape == (5, 1, 8, 8)
    fails(cli("compile", folder / "digits.onnx", "-o", target, "--shape", "image=5,1,8,n"), 2, "image=5,1,8,n")
    fails(cli("compile", folder / "digits.onnx", "-o", target, "--shape", "5,1"), 2, "NAME=")
    outcome = cli("compile", folder / "digits.onnx", "-o", target, "--shape", "picture=5,1,8,8")
    fails(outcome, outcome[0], "picture")
    assert outcome[0] in (1, 2)


def test_program_in_text_form(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """The printed form of a module can be compiled and run like a model."""
    from pyvm.demo.model import build_module

    (tmp_path / "digits.pyvm").write_text(build_module().script())
    assert cli("compile", tmp_path / "digits.pyvm", "-o", tmp_path / "out.vmx")[0] == 0
    results = []
    for model in (tmp_path / "out.vmx", tmp_path / "digits.pyvm", folder / "digits.vmx"):
        assert cli("run", model, "--dim", "n=3", "--output", tmp_path / "out.npz")[0] == 0
        results.append(next(iter(np.load(tmp_path / "out.npz").values())))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    (tmp_path / "bad.pyvm").write_text("this is no program")
    fails(cli("run", tmp_path / "bad.pyvm"), 1)


def test_compile_to_tvm_format(cli: Cli, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.ro"
    assert cli("compile", folder / "digits.onnx", "-o", target, "--tvm")[0] == 0
    assert target.read_bytes()[:8] == pyvm.load_executable(folder / "digits.vmx").to_bytes()[:8]
    np.save(tmp_path / "images.npy", np.load(folder / "images.npy"))
    assert cli("verify", target)[0] == 0


def test_compile_refuses(cli: Cli, folder: Path, tmp_path: Path) -> None:
    fails(cli("compile", folder / "digits.vmx"), 2, "neither an .onnx model nor a .pyvm program")
    fails(cli("compile", tmp_path / "none.onnx"), 2, "no such file")
    fails(cli("compile", folder / "digits.onnx", "-o", tmp_path / "no" / "out.vmx"), 2, "no such folder")


def test_dis_and_asm_are_inverse(cli: Cli, folder: Path, tmp_path: Path) -> None:
    executable = pyvm.load_executable(folder / "digits.vmx")
    code, text, err = cli("dis", folder / "digits.vmx", "--asm")
    assert (code, err) == (0, "")
    (tmp_path / "digits.vmasm").write_text(text)
    code, out, _ = cli("asm", tmp_path / "digits.vmasm")
    assert code == 0 and "digits.vmx" in out
    assert pyvm.load_executable(tmp_path / "digits.vmx") == executable


def test_dis_layouts(cli: Cli, folder: Path) -> None:
    executable = pyvm.load_executable(folder / "digits.vmx")
    assert cli("dis", folder / "digits.vmx")[1].strip() == executable.as_text().strip()
    assert cli("dis", folder / "digits.vmx", "--stats")[1].strip() == executable.stats().strip()
    code, program, _ = cli("dis", folder / "digits.vmx", "--python")
    names: dict[str, object] = {}
    exec(compile(program, "program", "exec"), names)
    assert code == 0 and names["executable"] == executable
    assert cli("dis", folder / "digits.onnx")[0] == 0


def test_asm_refuses(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.vmasm").write_text("func @main(%0) regs=1\n  frobnicate %0\n")
    outcome = cli("asm", tmp_path / "bad.vmasm")
    fails(outcome, outcome[0], "frobnicate")
    assert outcome[0] in (1, 2) and not (tmp_path / "bad.vmx").exists()
    (tmp_path / "latin.vmasm").write_bytes(b"\xff\xfe\xfd")
    fails(cli("asm", tmp_path / "latin.vmasm"), 2, "not a text file")
    fails(cli("asm", "-"), 2, "-o")


def test_verify(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("verify", folder / "digits.vmx")[0] == 0
    code, out, _ = cli("verify", "--full", folder / "digits.vmx")
    assert code == 0 and "ok" in out and "checksum" in out

    executable = pyvm.load_executable(folder / "digits.vmx")
    executable.function("main").register_file_size = 1
    executable.save(tmp_path / "broken.vmx")
    fails(cli("verify", tmp_path / "broken.vmx"), 1, "main")
    fails(cli("run", tmp_path / "broken.vmx"), 1, "main")

    data = bytearray((folder / "digits.vmx").read_bytes())
    weight = load_weights()["fc.w"].tobytes()[:64]
    data[data.index(weight)] ^= 1
    (tmp_path / "flipped.vmx").write_bytes(data)
    fails(cli("verify", "--full", tmp_path / "flipped.vmx"), 2, "flipped.vmx", "checksum")


# bench and demo -----------------------------------------------------------------------------------------------------


def test_bench(cli: Cli, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, out, err = cli("bench", folder / "digits.onnx", "--compare", "--repeat", 2, "--min-ms", 1, "--dim", "n=2")
    assert (code, err) == (0, "")
    assert re.search(r"^pyvm .*(ns|us|ms)", out, re.MULTILINE) and re.search(
        r"^onnxruntime .*(ns|us|ms)", out, re.MULTILINE
    )
    assert re.search(r"pyvm / onnxruntime: \d+\.\d+", out)
    fails(cli("bench", folder / "digits.vmx", "--compare"), 2, "digits.vmx")


def test_profile(cli: Cli, folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "calls.json", tmp_path / "trace.json"
    code, out, err = cli(
        "profile", folder / "digits.vmx", "--dim", "n=2", "--limit", 3, "--json", files[0], "--trace", files[1]
    )
    assert (code, err) == (0, "")
    assert "self us" in out.splitlines()[0] and len(out.splitlines()) == 4 and "kernel.conv" in out
    calls = json.loads(files[0].read_text())
    assert {"pc", "name", "start_ns", "end_ns", "allocated_bytes", "args"} <= set(calls[0])
    events = json.loads(files[1].read_text())["traceEvents"]
    assert events[0]["name"] == "main" and len(events) == len(calls) + 1
    fails(cli("profile", folder / "digits.vmx", "--function", "missing"), 2, "missing")
    fails(cli("profile", folder / "digits.vmx", "--json", tmp_path / "no" / "folder"), 2, "folder")


def test_demo(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("demo", "--save", tmp_path / "digits.vmx")
    assert (code, err) == (0, "")
    accuracy = re.search(r"accuracy on 500 held-out images: ([\d.]+)%", out)
    assert accuracy is not None and float(accuracy[1]) >= 97
    assert "@main" in out and "kernel.conv" in out and "whole call:" in out and "##" in out or "@@" in out
    assert pyvm.load_executable(tmp_path / "digits.vmx").functions


# Parts ---------------------------------------------------------------------------------------------------------------


def test_evaluate_dim() -> None:
    dims = {"n": 5, "h": 32}
    assert common.evaluate_dim(7, dims) == 7
    assert common.evaluate_dim("n", dims) == 5
    assert common.evaluate_dim("2*n + 1", dims) == 11
    assert common.evaluate_dim("(h - 1)//2 % 4", dims) == 3
    assert common.evaluate_dim("max(n, min(h, 6)) + -1", dims) == 5
    assert common.evaluate_dim("unknown", dims) == 1
    for bad in ("n.real", "n**2", "n //", "f(n)", "1.5", "n // (n - 5)", "'a'"):
        with pytest.raises(common.UsageError, match="dimension"):
            common.evaluate_dim(bad, dims)


def test_parse_shapes() -> None:
    assert common.parse_shapes(["x=1,3,?,7", "a=b=2", "s="]) == {"x": (1, 3, None, 7), "a=b": (2,), "s": ()}


def test_random_values_of_every_kind() -> None:
    from pyvm.signature import ObjectSpec, ScalarSpec, ShapeSpec, TensorSpec, TupleSpec

    rng = np.random.default_rng(0)
    spec = TupleSpec(
        "t", (TensorSpec("a", ("n", 3), "float16"), TensorSpec("i", (64,), "int64"), ShapeSpec("s", ("n", 4)))
    )
    assert common.symbols_of([spec, TensorSpec("x", ("2*k + max(n, 3)", 4), "float32"), ObjectSpec("o")]) == ["n", "k"]
    a, i, s = common.random_value(spec, {"n": 2}, rng)
    assert a.shape == (2, 3) and a.dtype == np.float16
    assert i.dtype == np.int64 and set(i) == {0, 1}
    assert s == (2, 4)
    assert isinstance(common.random_value(ScalarSpec("f", "float64"), {}, rng), float)
    assert common.random_value(ScalarSpec("k", "int64"), {}, rng) in (0, 1)
    assert common.random_value(TensorSpec("b", (8,), "bool"), {}, rng).dtype == np.bool_
    for unknown in (ObjectSpec("o"), TensorSpec("u", None, "float32"), ShapeSpec("v")):
        with pytest.raises(common.UsageError, match=unknown.name):
            common.random_value(unknown, {}, rng)
    with pytest.raises(common.UsageError, match="n - 3"):
        common.random_value(TensorSpec("neg", ("n - 3",), "float32"), {"n": 2}, rng)


def test_texts() -> None:
    assert [common.bytes_text(n) for n in (0, 1023, 1536, 3 << 20, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert [common.seconds_text(s) for s in (5e-9, 1.5e-6, 0.0123, 2.5)] == ["5 ns", "1.5 us", "12.3 ms", "2.50 s"]


def test_progress_only_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with common.Progress("work") as progress:
        progress.update("1/2")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with common.Progress("work") as progress:
        progress.update("1/2")
    shown = capsys.readouterr().err
    assert "work: 1/2" in shown and shown.endswith("\r")
