"""Runs the test mixins of diffusers and transformers on this package; see docs/conformance.md.

    python tests/conformance/run.py diffusers PATH [pytest arguments]
    python tests/conformance/run.py transformers PATH [pytest arguments]

PATH is a checkout of that library's repository, at the version that is installed: its wheels hold
no tests. Nothing of a checkout is copied.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = {  # a file of a checkout that a suite starts from
    "diffusers": "tests/pipelines/testing_utils/common.py",
    "transformers": "tests/test_modeling_common.py",
}


def main(arguments: list[str]) -> int:
    """Run one suite and give pytest's exit code."""
    if len(arguments) < 2 or arguments[0] not in NEEDED:
        print(__doc__, file=sys.stderr)
        return 2
    library, checkout = arguments[0], Path(arguments[1]).resolve()
    if not (checkout / NEEDED[library]).is_file():
        print(f"{checkout} is no checkout of {library}: no {NEEDED[library]}.", file=sys.stderr)
        return 2
    # The checkout's tests are a package named `tests`, so this folder must not be one for pytest.
    paths = [checkout, HERE.parent, HERE.parent.parent / "src", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    pytest = [sys.executable, "-m", "pytest", "-q", "--import-mode=prepend"]
    settings = ["-c", os.devnull, "--rootdir", str(HERE), "-p", "no:cacheprovider"]
    suite = str(HERE / f"{library}_suite.py")
    return subprocess.call([*pytest, *settings, suite, *arguments[2:]], env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
