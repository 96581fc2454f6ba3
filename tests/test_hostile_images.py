"""A thousand hostile files: each is decoded or refused by the one error, within 2 s and 500 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import corpus

# Runs alone in a process: a crash, a hang or a memory bomb ends it, not the test suite.
SCRIPT = """
import json, resource, signal, sys
sys.path.insert(0, sys.argv[1])
import corpus
from pathlib import Path
from striate.core.errors import BadImage
from striate.images.decode import decode, header

def peak():
    # VmHWM is this process's own; ru_maxrss would begin with that of the process that started it.
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
counts = {"decoded": 0, "refused": 0}
for number, (name, data) in enumerate(corpus.hostile()):
    print(name, file=sys.stderr, flush=True)
    path = Path(sys.argv[2]) / name
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, 2.0)  # seconds of processor time; then the process dies
    try:
        pixels = decode(path, at_least=(None, 8)[number % 2], channels=(3, 1)[number % 3 == 0])
        counts["decoded"] += 1
        assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.flags.c_contiguous
        found = header(path)
        assert number % 2 or (found.height, found.width) == pixels.shape[:2], found
    except BadImage as error:
        counts["refused"] += 1
        assert "\\n" not in str(error) and name in str(error), error
    signal.setitimer(signal.ITIMER_PROF, 0)
    path.unlink()
print(json.dumps({**counts, "peak": peak()}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limits on a process are those of POSIX")
def test_a_thousand_hostile_files_are_decoded_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(Path(corpus.__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    log = done.stderr.splitlines()
    assert done.returncode == 0, f"exit {done.returncode} in or after {log[-12:]}"
    result = json.loads(done.stdout)
    assert result["decoded"] + result["refused"] == 1000
    assert min(result["decoded"], result["refused"]) > 200
    assert result["peak"] < 500_000_000
    # Nothing but the script's own lines: no warning, no log, no word of a C library.
    assert log == [name for name, _ in corpus.hostile()]


def test_the_corpus_is_the_same_every_time() -> None:
    assert list(corpus.hostile(120)) == list(corpus.hostile(120))
