"""Cases of the ONNX backend suite that pyvm does not pass, by name (or pattern), each with the reason and its date.

Cases whose models use an operator without a converter, or a type that the IR does not have, are not listed: that
reason is found by running them.
"""

from __future__ import annotations

EXCLUSIONS: dict[str, str] = {}
