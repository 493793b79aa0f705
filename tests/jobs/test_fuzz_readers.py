"""A slice of the fuzz of all readers of our own files; `python -m benchmarks.fuzz_readers --minutes 10` is the whole."""

import subprocess
import sys

from promptmill.configs.own_files import ROOT


def test_no_reader_of_our_own_files_falls_over_what_a_stranger_wrote():
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "--minutes", "0.33"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cases = int(done.stdout.split()[0].replace(",", ""))
    assert cases > 0 and "0 wrong" in done.stdout
