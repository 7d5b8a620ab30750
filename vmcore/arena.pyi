import numpy as np

MAX_BUFFERS: int

def place_in_order(
    order: np.ndarray, begins: np.ndarray, ends: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, int]: ...
