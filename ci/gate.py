"""Correct first: only a kernel that keeps its contract is worth timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from assay.kernels import UsageError


def judged(
    spellings: Sequence[str], dtype: str, device: str, tell: Callable[[str], None], *, python: str = sys.executable
) -> dict[str, str | None]:
    """Why each kernel may not be timed, or None for one that keeps its contract, as judged by `assay check --quick`.

    `python`: the interpreter in whose environment the kernels are. Raises: UsageError if they cannot be judged.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "judged.json"
        command = [python, "-c", "from assay.cli import main; main()", "check", *spellings]
        command += ["--quick", "--dtype", dtype, "--device", device, "--json", str(out)]
        command += ["--journal", str(Path(folder) / "journal.jsonl")]  # the user's own may be wanted by --resume
        last = ""
        environment = dict(os.environ)
        if python != sys.executable:  # an environment of its own says itself where its packages are
            environment.pop("PYTHONPATH", None)
        pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes, env=environment) as process:
            assert process.stderr is not None
            for line in process.stderr:
                last = line.strip() or last
                tell(line.strip())
        if not out.exists():
            raise UsageError(f"the kernels could not be judged: {last or f'exit code {process.returncode}'}")
        results = json.loads(out.read_text(encoding="utf-8"))["results"]
    found: dict[str, str | None] = {}
    for spelling in spellings:
        mine = [r for r in results if r["kernel"] == spelling.partition("=")[2]]
        bad = [r for r in mine if r["verdict"] in ("fail", "error", "undecided")]
        if bad:
            found[spelling] = f"breaks its contract: {bad[0]['property']}: {bad[0]['message']}"
        elif not any(r["verdict"] == "pass" for r in mine):
            reason = next((r["message"] for r in mine if r["message"]), f"it does not claim {dtype}")
            found[spelling] = f"was not judged: {reason}"
        else:
            found[spelling] = None
    return found
