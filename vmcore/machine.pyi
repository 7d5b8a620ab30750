from collections.abc import Callable
from types import TracebackType
from typing import Any, Never, Self, final

from typing_extensions import disjoint_base

@final
class BoundFunction:
    name: str
    param_names: tuple[str, ...]
    @property
    def __name__(self) -> str: ...  # type: ignore[override]
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

@disjoint_base
class Machine:
    executable: Any
    def __init__(
        self,
        executable: Any,
        describe: Callable[[BaseException, list[tuple[int, int]]], None],
        pooled: bool = True,
        gil: str = "auto",
    ) -> None: ...
    def function(self, name: str) -> BoundFunction: ...
    def set_hooks(
        self, instrument: Callable[..., Any] | None = None, profiler: Callable[..., Any] | None = None
    ) -> None: ...
    def hooks(self) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]: ...
    def trim(self) -> int: ...
    def memory_report(self) -> dict[str, int]: ...

class deadline:
    def __init__(self, seconds: float) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None: ...
