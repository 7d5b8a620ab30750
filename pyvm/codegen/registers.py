"""Register allocation: a register is used again once its variable is dead."""

from __future__ import annotations

import heapq

from pyvm.ir import Var


class RegisterFile:
    """Registers of one function: which are free, and which variable has which.

    Bindings are visited in order of execution. A branch starts from the state at its If, so both branches use the same
    registers; `enter_branch` and `restore` do that.
    """

    def __init__(self, n_params: int) -> None:
        self.size = n_params
        self._free: list[int] = []
        self._register_of: dict[Var, int] = {}

    def __getitem__(self, var: Var) -> int:
        return self._register_of[var]

    def __contains__(self, var: Var) -> bool:
        return var in self._register_of

    def bind(self, var: Var, register: int) -> None:
        """Gives `var` a register that the caller owns."""
        self._register_of[var] = register

    def take(self) -> int:
        """A free register, the lowest; a new one if there is none."""
        if self._free:
            return heapq.heappop(self._free)
        self.size += 1
        return self.size - 1

    def allocate(self, var: Var) -> int:
        """A register for `var`."""
        register = self._register_of[var] = self.take()
        return register

    def release(self, var: Var) -> None:
        """`var` is dead: its register is free."""
        heapq.heappush(self._free, self._register_of[var])

    def give_back(self, register: int) -> None:
        """A register from `take` is free."""
        heapq.heappush(self._free, register)

    def save(self) -> tuple[list[int], int]:
        """The free registers now, for `restore`."""
        return list(self._free), self.size

    def restore(self, state: tuple[list[int], int]) -> None:
        """The free registers of `save`, and those that came into being since."""
        free, size = state
        self._free = [*free, *range(size, self.size)]
        heapq.heapify(self._free)
