"""torch.compile for the parts of a network where it helps: what lies between its convolutions and products.

Those run in the libraries' kernels either way. Transformer blocks and norms are many small passes over memory, which
compiled code makes in one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from tilecodec.errors import CompileWarning
from tilecodec.model.dc_ae import ChannelNorm
from tilecodec.model.transformer import TransformerBlock

COMPILED = (TransformerBlock, ChannelNorm)


def compile_network(network: nn.Module, rehearse: Callable[[], object]) -> bool:
    """Compiles a network's :data:`COMPILED` parts, or leaves it as it is where that does not work.

    Args:
        network: ready for inference.
        rehearse: runs it once, on the thread or the kind of thread that it will run on; this is when code is made.

    Returns:
        Whether it is compiled. Otherwise a :class:`~tilecodec.errors.CompileWarning` says why not.
    """
    parts = [module for module in network.modules() if isinstance(module, COMPILED)]
    try:
        for part in parts:
            part.compile(dynamic=True)
        rehearse()
    except (RuntimeError, ImportError, OSError, AssertionError) as error:  # what torch._dynamo.exc derives from
        for part in parts:
            part._compiled_call_impl = None
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"torch.compile does not work here, going on without: {reason}", CompileWarning, stacklevel=2)
        return False
    return True
