"""The servers of this folder that run on Node: their packages are installed from the lock file on first use."""

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
OIDC = HERE / "oidc"
MEDPLUM = HERE / "medplum"


def install(folder: Path) -> None:
    """Install the packages of `folder` unless that was done; seconds."""
    if not (folder / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True, timeout=600)
