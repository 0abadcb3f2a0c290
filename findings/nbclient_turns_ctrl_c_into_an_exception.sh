#!/usr/bin/env bash
# nbclient 0.11.0, jupyter_client 8.10.0, ipykernel 7.4.0, Python 3.11
#
# While NotebookClient.execute() runs, Ctrl-C is no KeyboardInterrupt and SIGTERM ends nothing: both come out as an empty
# AssertionError. After such a run the process is deaf to Ctrl-C.
#
# execute() takes the process's handlers of SIGINT and SIGTERM for the time of a run, shuts the kernel down when one of
# them comes, and then trips over the kernel that is gone. An AssertionError is an `Exception`, so a loop over notebooks
# with `except Exception: note it and go on` answers Ctrl-C by going on to the next notebook, and SIGTERM by living. One
# would swear that Ctrl-C raises KeyboardInterrupt, as it does before a run and after a whole one, and that SIGTERM ends a
# process that has set no handler. Whoever wants to stop has to put handlers of his own back once the kernel has started.
#
# Output seen:
#   before a run: SIGINT KeyboardInterrupt
#   after a whole run: SIGINT KeyboardInterrupt
#   in a run: SIGTERM AssertionError '', an Exception: True
#   in a run: SIGINT AssertionError '', an Exception: True
#   after it: SIGINT nothing
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet nbclient==0.11.0 jupyter_client==8.10.0 ipykernel==7.4.0 nbformat==5.11.1
env/bin/python -W ignore - 2>/dev/null <<'PY'
import signal
import time

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook


def outside():
    try:
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "nothing"


def inside(name):
    """The cell sends the signal to the process that executes it, as a terminal or a scheduler would."""
    source = f"import os, signal, time\nos.kill(os.getppid(), signal.{name})\ntime.sleep(30)"
    try:
        NotebookClient(new_notebook(cells=[new_code_cell(source)]), timeout=120).execute()
    except BaseException as error:
        return type(error).__name__, str(error), isinstance(error, Exception)
    return "finished", "", False


print(f"before a run: SIGINT {outside()}")
NotebookClient(new_notebook(cells=[new_code_cell("1 + 1")]), timeout=120).execute()
whole = outside()
print(f"after a whole run: SIGINT {whole}")
assert whole == "KeyboardInterrupt"
for name in ("SIGTERM", "SIGINT"):
    kind, words, ordinary = inside(name)
    print(f"in a run: {name} {kind} {words!r}, an Exception: {ordinary}")
    assert (kind, words, ordinary) == ("AssertionError", "", True), f"{name} comes out otherwise now"
after = outside()
print(f"after it: SIGINT {after}")
assert after == "nothing", "Ctrl-C is heard again after an interrupted run now"
PY
