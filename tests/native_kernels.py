"""The native kernels as functions for the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vmcore.kernels.direct import call_kernel


class _Kernels(Mapping[str, Callable[..., Any]]):
    """Answers for every name that begins with "kernel."; the kernel is looked up when it is called."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("kernel."):
            raise KeyError(name)
        return lambda *args: call_kernel(name, *args)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith("kernel.")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


NATIVE: Mapping[str, Callable[..., Any]] = _Kernels()
