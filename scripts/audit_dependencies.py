"""Ask whether weaknesses are known of the versions that constraints.txt pins; fails only where some are.

Asks PyPI by pip-audit, which is installed in an environment of its own. Where one of the two cannot be reached, that is
said, and is no failure: an outage elsewhere must not stop this project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PIP_AUDIT = "pip-audit==2.10.1"
PATIENCE_S = 300.0


def judged(output: str) -> tuple[int, str]:
    """What pip-audit printed as JSON, as an exit code and in words."""
    try:
        found: Sequence[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 0, "not audited: the database could not be reached"
    known = [each for each in found if "vulns" in each]
    weak = [each for each in known if each["vulns"]]
    if weak:
        return 1, "\n".join(
            f"{each['name']} {each['version']}: {vuln['id']}, mended in {' or '.join(vuln['fix_versions']) or 'none'}"
            for each in weak
            for vuln in each["vulns"]
        )
    if not known:
        return 0, f"not audited: the database knows none of {len(found)} packages, as a mirror without one does"
    return 0, f"{len(known)} of {len(found)} packages audited, no weakness known"


def _audited(folder: str) -> str:
    venv.create(folder, with_pip=True)
    python = Path(folder) / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", PIP_AUDIT], check=True, timeout=PATIENCE_S)
    words = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    words += ["--progress-spinner", "off"]
    done = subprocess.run(
        [python, "-m", "pip_audit", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.stdout


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder:
            code, said = judged(_audited(folder))
    except (subprocess.SubprocessError, OSError) as error:
        code, said = 0, f"not audited: {error}"
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
