"""The core of the virtual machine. Its extension modules are in one library, where a finder of their names looks."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from os.path import exists

MODULES = (
    "arena blas builtins.checks builtins.shapes builtins.table builtins.tensors builtins.values clears isa "
    "kernels.binary kernels.cast kernels.conv kernels.direct kernels.elementwise kernels.fused kernels.gemm "
    "kernels.indexing kernels.matmul kernels.movement kernels.norm kernels.pool kernels.reduce kernels.resize "
    "kernels.window kernels.winograd kernels.workspace library loop machine objects program registry status storage "
    "threads verify"
).split()


class LibraryFinder:
    """Finds the modules of MODULES in the library, each by its initialisation function (PEP 489, "Multiple modules in
    one library")."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names = {f"vmcore.{name}" for name in MODULES}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The specification of one of the modules; None for all others."""
        if name not in self.names:
            return None
        spec = ModuleSpec(name, ExtensionFileLoader(name, self.path), origin=self.path)
        spec.has_location = True
        return spec


def _library() -> str:
    for suffix in EXTENSION_SUFFIXES:
        path = f"{__path__[0]}/_core{suffix}"
        if exists(path):
            return path
    if not exists(__path__[0]):
        raise ImportError(f"vmcore: {__path__[0]} is no folder, and a library cannot be loaded from an archive")
    raise ImportError(
        f"vmcore is not built: {__path__[0]} has no _core{EXTENSION_SUFFIXES[0]}; "
        "install it, or run `python setup.py build_ext --inplace`"
    )


def _install(finder: LibraryFinder) -> None:
    """Puts the finder first, in place of that of a vmcore that was imported before, or is loaded again."""
    for old in [f for f in sys.meta_path if type(f).__module__ == __name__]:
        sys.meta_path.remove(old)
    sys.meta_path.insert(0, finder)


_install(LibraryFinder(_library()))
