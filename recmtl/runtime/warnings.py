"""Third-party messages that a user of recmtl can do nothing about, silenced where they arise."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_third_parties() -> None:
    """Call once, before torchrec is imported."""
    # TorchRec still uses ShardedTensor, broadcast_buffers and other names that PyTorch is retiring.
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch(rec|x|metrics)?(\.|$)")
    # FBGEMM's lookup for data-parallel tables does its own backward; its gradients equal the fused ones (tested).
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function", category=UserWarning)
    # One process may load what a group of them saved.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
    # Notes on how TorchRec's planner was built, and its own report: `recmtl plan` shows the plan.
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    # Every replicated table is one that has no cache, which nobody asked for.
    logging.getLogger("torchrec.distributed.utils").setLevel(logging.ERROR)
    # The latter two come with a traceback, before the error that says the same and after Ctrl-C while Spark works.
    noise = ("Sharding spec not found", "Global metadata is not found", "KeyboardInterrupt while sending command")
    logging.getLogger().addFilter(lambda record: not record.getMessage().startswith(noise))
    # Libraries of object stores log what they raise, gcsfs with tracebacks.
    for name in ("gcsfs", "azure"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Connections to Spark's process break when it ends, which whoever ended it knows.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    # TorchRec asks whether it is being traced, in a way that torch.fx comments on.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@contextmanager
def silent_torch() -> Iterator[None]:
    """Keep the C++ of a PyTorch that is imported in the block from logging, in this process and not in those it starts:
    when another machine does not answer, it fills pages and raises an exception as well.
    """
    level = "TORCH_CPP_LOG_LEVEL"  # read once, by the import
    asked = os.environ.get(level)
    os.environ.setdefault(level, "FATAL")
    try:
        yield
    finally:
        if asked is None:
            del os.environ[level]
