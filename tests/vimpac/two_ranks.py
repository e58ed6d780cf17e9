"""Starts a command as two ranks on this machine, as torchrun does, which imports torch for it.

    python two_ranks.py -m vimpac pretrain ...      # or a script, or --no-python PROGRAM

If a rank fails, the other one is ended, and the exit code is not 0.
"""

import os
import socket
import subprocess
import sys
import time


def main() -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:]
    command = words[1:] if words[0] == "--no-python" else [sys.executable, *words]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    places = ({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01")
    ranks = [subprocess.Popen(command, env=place) for place in places]
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.02)
    for rank in ranks:
        rank.terminate()  # nothing, if it has ended
    return max(rank.wait() != 0 for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
