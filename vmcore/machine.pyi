from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Never, Self, final

from typing_extensions import disjoint_base

from vmcore.library import Library

@final
class BoundFunction:
    name: str
    param_names: tuple[str, ...]
    @property
    def __name__(self) -> str: ...  # type: ignore[override]
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

@final
class ProgramOwner:
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...

@disjoint_base
class Machine:
    executable: Any
    profile_lock: Any
    def __new__(
        cls,
        executable: Any,
        describe: Any,
        pooled: bool = True,
        gil: str = "auto",
        libraries: Iterable[Library] = (),
        memory_limit: int | None = None,
    ) -> Self: ...
    def function(self, name: str) -> BoundFunction: ...
    def callee(self, index: int) -> Callable[..., Any]: ...
    def set_instrument(self, instrument: Callable[..., Any] | None) -> Callable[..., Any] | None: ...
    def set_profiler(self, profiler: Callable[..., Any] | None) -> Callable[..., Any] | None: ...
    def trim(self) -> int: ...
    def memory_report(self) -> dict[str, Any]: ...

class deadline:
    def __init__(self, seconds: float) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None: ...
