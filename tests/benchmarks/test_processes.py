"""What /proc says of processes."""

import os
import subprocess
import sys

from benchmarks.parts.processes import alive, command_line, memory_bytes, process_tree, processor_s


def test_processes_are_known_while_they_run():
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert {os.getpid(), child.pid} <= set(process_tree(os.getpid()))
        assert process_tree(child.pid) == [child.pid]
        assert "time.sleep" in command_line(child.pid)
        assert processor_s([child.pid]) > 0
        assert memory_bytes(child.pid) >= memory_bytes(child.pid, "Pss_Anon") > 0
        child.kill()
        while child.pid in alive():  # one that waits to be buried does not run
            pass
        assert process_tree(child.pid) == []
        assert memory_bytes(child.pid) == 0
    assert command_line(child.pid) == ""
