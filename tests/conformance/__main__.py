"""`python -m tests.conformance [--frontend | --text] [pattern]`: the ONNX backend suite, counted.

Prints how many of its cases pass, why the others are excluded, and which fail; exits with 1 if any fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.conformance.suite import compiled, evaluated, run_suite, through_text


def main() -> int:
    """Runs the suite and prints the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="only cases whose names match, e.g. 'test_conv_*'")
    parser.add_argument("--frontend", action="store_true", help="run the imported modules with numpy, not in the VM")
    parser.add_argument("--text", action="store_true", help="write and read the module as text after every pass")
    parser.add_argument("-v", "--verbose", action="store_true", help="list every excluded case")
    arguments = parser.parse_args()
    start = time.perf_counter()
    engine = evaluated if arguments.frontend else through_text if arguments.text else compiled
    report = run_suite(engine, pattern=arguments.pattern)
    for outcome in report.of("failed"):
        print(f"FAILED   {outcome.case}: {outcome.reason}")
    if arguments.verbose:
        for outcome in report.of("excluded"):
            print(f"excluded {outcome.case}: {outcome.reason}")
    reasons = Counter(outcome.reason for outcome in report.of("excluded"))
    print(f"\nexcluded, by reason ({len(reasons)}):")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {count:4d}  {reason}")
    counts = ", ".join(f"{report.count(status)} {status}" for status in ("passed", "excluded", "failed"))
    print(f"\n{len(report.outcomes)} cases: {counts} ({time.perf_counter() - start:.0f} s)")
    return 1 if report.count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
