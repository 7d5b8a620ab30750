from typing import Any

import numpy as np
import numpy.typing as npt

MAX_FLOW_WORK: int

def verify(executable: Any) -> None: ...
def verify_parts(
    functions: list[Any], n_constants: int, instr_offset: npt.NDArray[np.int64], instr_data: npt.NDArray[np.int64]
) -> int: ...
