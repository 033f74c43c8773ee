"""torchrun for recmtl: ``python -m recmtl.launch TORCHRUN-OPTIONS -- train CONFIG ...``.

Two things that plain torchrun gets in the way of: it takes recmtl's ``--run`` for an abbreviation of its own
``--run-path``, and it follows a rank's one-line error, or that of a machine it cannot reach, with pages of traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys

from recmtl.runtime.exit import BUG, EXIT_USER_ERROR, exit_process
from recmtl.runtime.warnings import silent_torch

with silent_torch():
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
    from torch.distributed.run import main as torchrun
    from torch.distributed.run import parse_args

MOST = 4096
"""Largest number of ranks on a machine, of machines and of restarts: torchrun would make a list of them."""


def main() -> None:
    """Start the ranks and exit with the first failed one's code; its own message says what went wrong."""
    arguments = sys.argv[1:]
    if "--" not in arguments:
        exit_process(
            "error: the '--' is missing in python -m recmtl.launch TORCHRUN-OPTIONS -- COMMAND ...", EXIT_USER_ERROR
        )
    dashes = arguments.index("--")
    options, command = arguments[:dashes], arguments[dashes + 1 :]
    parsed = _parse(options)
    if parsed.nproc_per_node.isdecimal():
        # torchrun itself would give every rank one thread, whatever the number of cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(parsed.nproc_per_node))))
    alone = parsed.standalone or parsed.nnodes in ("1", "1:1")
    if alone:
        # Ranks of one machine need no name of it, which in a container or on a laptop may lead nowhere.
        options = ["--local-addr", "localhost", *options]
    if not alone or parsed.max_restarts:
        # The store that torchrun shares with the ranks keeps, over a restart, the addresses of ranks that are gone. So
        # rank 0 makes one of its own, on a port that may be taken between torchrun's choice and the rank's start.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # How long ranks may take to save after SIGTERM; schedulers have limits of their own.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    logging.disable(logging.ERROR)
    try:
        torchrun([*options, "-m", "--", "recmtl", *command])
    except (ValueError, AssertionError) as error:  # of its options: other words for ranks, GPUs that are not there
        exit_process(f"error: recmtl.launch: {error}", EXIT_USER_ERROR)
    except RendezvousError as error:
        exit_process(f"error: recmtl.launch: {_why_apart(error, parsed.rdzv_endpoint)}", BUG)
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        code = failure.exitcode
        if code < 0:  # a signal, which leaves no message
            print(f"error: local rank {failure.local_rank} was ended by signal {-code}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def _parse(options: list[str]) -> argparse.Namespace:
    """The options of torchrun; ends the process with a line where one is not known or out of range."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = parse_args([*options, "-m", "--", "recmtl"])
    except SystemExit as end:
        if not end.code:  # --help
            raise
        exit_process(f"error: recmtl.launch: {said.getvalue().strip().rpartition('error: ')[2]}", EXIT_USER_ERROR)
    first, _, last = parsed.nnodes.partition(":")
    for option, value, least in (
        ("--nproc-per-node", parsed.nproc_per_node, 1),
        ("--nnodes", first, 1),
        ("--nnodes", last or first, _number(first) or 1),
        ("--max-restarts", parsed.max_restarts, 0),
        ("--monitor-interval", parsed.monitor_interval, 1e-3),
    ):
        number = _number(value)
        if number is not None and not least <= number <= MOST:
            exit_process(f"error: recmtl.launch: {option}: from {least:g} to {MOST}, not {value}", EXIT_USER_ERROR)
    return parsed


def _number(value: str | float) -> float | None:
    """What an option's value is as a number; None: it is a word, which torchrun knows or not."""
    try:
        return float(value)
    except ValueError:
        return None


def _why_apart(error: RendezvousError, place: str) -> str:
    """Why the launchers of several machines are not, or no longer, one job."""
    if isinstance(error, RendezvousTimeoutError):
        return f"not all machines came to {place} in time; see which of them have not started"
    if isinstance(error, RendezvousClosedError):
        return f"the job that met at {place} has ended; give the next one another --rdzv-id"
    return f"no answer from {place}, where the machines meet; the log there may say why"


if __name__ == "__main__":
    main()
