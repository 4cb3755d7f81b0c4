"""`python -m loopmoe_kernels.twin`: every Ascend C kernel on the twin, and what it counted.

The last column is the largest error; 1 is what the tests allow (README.md)."""

import argparse
import sys
from typing import Optional, Sequence

from loopmoe_kernels.twin.execute import CORES, TwinFault
from loopmoe_kernels.twin.launches import shown
from loopmoe_kernels.twin.library import TwinError, kernels

_HEADER = (
    "kernel", "blocks", "S", "V", "MTE2", "MTE3", "repeats", "DMA", "bursts", "short",
    "in MB", "out MB", "UB peak", "error",
)  # fmt: skip


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loopmoe_kernels.twin", description=__doc__)
    parser.add_argument("kernel", nargs="*", help=f"of {', '.join(kernels())}; all if none")
    parser.add_argument("--cores", type=int, default=CORES, help="vector cores (%(default)s)")
    arguments = parser.parse_args(argv)
    rows = [_HEADER]
    failed = False
    for name in arguments.kernel or kernels():
        launch = shown(name)
        if launch is None:
            raise TwinError(f"no Ascend C kernel {name!r}: there are {', '.join(kernels())}")
        try:
            report = launch.run(cores=arguments.cores)
        except TwinFault as fault:
            print(f"FAULT {fault}", file=sys.stderr)
            failed = True
            continue
        numbers = (
            report.blocks, *report.instructions.values(), report.vector_repeats, report.dma,
            report.bursts, report.short_bursts,
        )  # fmt: skip
        rows.append(
            (
                name,
                *map(str, numbers),
                f"{report.bytes_in / 1e6:.2f}",
                f"{report.bytes_out / 1e6:.2f}",
                str(report.ub_peak),
                f"{max(launch.error(name) for name in launch.wanted):.3f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    for row in rows:
        print("  ".join(f"{text:>{width}}" for text, width in zip(row, widths)))
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TwinError as error:
        sys.exit(f"loopmoe_kernels.twin: {error}")
