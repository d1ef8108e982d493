"""The process in which kernels are called. It is started with this file as its script, and with two descriptors: the
channel to the judge, and the memory in which arrays cross.

It imports the user's module and what one call needs, and knows nothing else: no definition, no seed, no expected value.
Whatever happens here is the kernel's doing and is told by the judge, who watches from outside.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from assay.buffers import Arena


def main() -> None:
    channel, memory, judge = map(int, sys.argv[1:4])
    end_with(judge)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the judge's business
    sys.path[:] = sys.argv[4:]
    del sys.argv[1:]
    from assay import call  # noqa: F401  # torch with it, while the judge still thinks
    from assay.buffers import Arena

    _serve(channel, Arena(memory))
    os._exit(0)


def end_with(parent: int) -> None:
    """Be killed when the parent process ends, however it ends. Where the system cannot do that, nothing is done."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


def _serve(channel: int, arena: Arena) -> None:
    """Answer questions until the judge is gone."""
    import warnings

    from assay.messages import LONGEST_REPLY, framed, unframed

    received = bytearray()
    read, write = os.read, os.write
    warnings.simplefilter("ignore")
    while True:
        message = unframed(received)
        if message is None:
            more = read(channel, 1 << 16)
            if not more:
                return
            received += more
            continue
        answer = _ANSWERS[message["do"]](message, arena)
        write(channel, framed({"token": message["token"], **answer}, LONGEST_REPLY))


def _describe(message: dict[str, Any], arena: Arena) -> dict[str, Any]:
    """What kernels there are in a module, or why it cannot be said."""
    from assay.loading import UsageError, files, look
    from assay.questions import signature

    module, function = message["module"], message["function"]
    try:
        found = look(module, function)
        kernels = []
        for one in found:
            takes = signature(one.function)
            kernels.append(
                {
                    "name": one.name,
                    "claims": None if one.claims is None else _claims(one.claims),
                    "open": takes.open,
                    "keywords": sorted(takes.keywords),
                }
            )
    except UsageError as error:
        return {"problem": str(error)}
    except (TypeError, ValueError) as error:
        return {"problem": f"{module}: the arguments of a kernel cannot be seen: {error}"}
    _FUNCTIONS.update({(module, one.name): (one.function, one.claims) for one in found})
    return {"kernels": kernels, "operators": _operators(module), "files": files(module)}


def _claims(claims: Any) -> dict[str, Any]:
    return {
        "operator": claims.operator,
        "form": claims.form,
        "precision": claims.precision,
        "dtypes": list(claims.dtypes),
        "conventions": dict(claims.conventions),
        "backward": "function" if callable(claims.backward) else claims.backward,
        "requires": list(claims.requires),
        "interpreted": claims.interpreted,
        "under": list(claims.under),
        "world": claims.world,
        "ranks": claims.ranks,
    }


def _operators(module_name: str) -> list[str]:
    """The names of the user's own operators, if the module has any; the class is loaded only if it does."""
    from assay.loading import loaded_as

    contract = sys.modules.get("assay.properties.contract")
    module = loaded_as(module_name)
    if contract is None or module is None:
        return []
    return [v.name for v in vars(module).values() if isinstance(v, contract.Operator)]


def _join(message: dict[str, Any], arena: Arena) -> dict[str, Any]:
    """Meet the other ranks."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = message["rank"], message["world"]
    # How long a rank waits for the others is the judge's business.
    dist.init_process_group(
        "gloo", init_method=message["store"], rank=rank, world_size=world, timeout=timedelta(days=1)
    )
    return {}


def _call(message: dict[str, Any], arena: Arena) -> dict[str, Any]:
    from assay.call import ask
    from assay.messages import question, replied

    function, claims = _FUNCTIONS[message["module"], message["function"]]
    backward = claims.backward if claims is not None and message["own"] else "autograd"
    return replied(ask(function, backward, question(message), arena, message["device"])[0])


_ANSWERS: dict[str, Callable[[dict[str, Any], Any], dict[str, Any]]] = {
    "describe": _describe,
    "join": _join,
    "call": _call,
}
_FUNCTIONS: dict[tuple[str, str], tuple[Callable[..., Any], Any]] = {}


if __name__ == "__main__":
    main()
