"""Whether results of benchmarks/gpu.sh reach what is wanted on an H100: python benchmarks/targets.py FOLDER.

- the AITM preset at MerRec's cardinalities, from Parquet on disk: 2 M examples/s, with the GPU busy 80 % of the time
- a step of STEM in 1.6 times that of AITM, where both have towers and MLPs of the same sizes
- memory at those cardinalities: 1.2 GB for AITM, 3.0 GB for STEM
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from common import markdown_table

EXAMPLES_PER_SECOND = 2_000_000
BUSY = 0.8
STEM_OVER_AITM = 1.6
GB = {"merrec_aitm": 1.2, "merrec_stem": 3.0}
"""Most that PyTorch's allocator may have given out at once."""


@dataclass
class Options:
    """Compare with the targets."""

    folder: tyro.conf.Positional[Path]
    """Where the results are."""


def newest(folder: Path, benchmark: str) -> dict[str, Any]:
    """The results of a benchmark that were written last.

    Raises:
        SystemExit: there are none.
    """
    written = sorted(folder.glob(f"{benchmark}-*.json"), key=lambda path: path.stat().st_mtime)
    if not written:
        sys.exit(f"{folder}: no results of {benchmark} in it; name a folder that benchmarks/gpu.sh wrote to")
    return json.loads(written[-1].read_text())


def main(options: Options) -> None:
    """Print what was measured beside what is wanted."""
    throughput, steps = newest(options.folder, "throughput"), newest(options.folder, "steps")
    aitm = [case for case in throughput["cases"] if case["variant"] == "merrec_aitm"]
    best = max(aitm, key=lambda case: case["examples_per_second"])
    busy = "no GPU" if best["busy"] is None else best["busy"]
    [stem] = [ratio["clock"] for variant, ratio in steps["times_the_first"].items() if variant.startswith("stem")]
    rows = [
        (f"merrec_aitm, batch {best['batch_size']:,}: examples/s", best["examples_per_second"], EXAMPLES_PER_SECOND),
        ("merrec_aitm: GPU busy", busy, BUSY),
        ("a step of STEM / of AITM (at most)", stem, STEM_OVER_AITM),
    ]
    for run in newest(options.folder, "memory")["runs"]:
        allocated = run["measured"]["allocated"] / 1e9 if "allocated" in run["measured"] else "no GPU"
        case = f"{run['preset']}, {run['embedding_rows']:,} rows: GB (at most)"
        rows.append((case, allocated, GB[run["preset"]]))
    print(markdown_table(("target", "measured", "wanted"), rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
