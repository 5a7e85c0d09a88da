"""The built wheel is the whole program: it runs the demonstration with no checkout in sight."""

import os
import subprocess
import sys
import zipfile

from support import OUTPUTS, ROOT


def test_the_wheel_carries_mappings_and_demonstration(demo_study, tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", "import crmo_fhir; print(crmo_fhir.__file__)"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith(str(tmp_path)), "this is not the wheel's package"
    subprocess.run(
        [sys.executable, "-m", "crmo_fhir", "demo", "-q", "-o", "study"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    for name in OUTPUTS:
        assert (elsewhere / "study" / name).read_bytes() == (demo_study / name).read_bytes()
