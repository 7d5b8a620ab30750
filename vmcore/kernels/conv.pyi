from collections.abc import Sequence

def way(
    x: Sequence[int],
    w: Sequence[int],
    out: Sequence[int],
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> str: ...
