"""A runtime restarted in the middle of a chapter: nothing half done is taken for whole, nothing is lost but time.

A chapter is run three times over one folder of data. The first kernel is killed in the middle of a download, the second
in the middle of training; the third starts with the first cell again and comes to the end. The set comes from a server
of this machine that stands in for Fashion-MNIST's, through torchvision's own download.
"""

import gzip
import hashlib
import http.server
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import notebook_rules as rules

import notebooks as command
from vitutils import data
from vitutils.data import sources

pytestmark = pytest.mark.slow

CHAPTER = "07_data_scale"  # the quickest that downloads, then trains
SIZES = (6_000, 500)
# Stands after the setup cell: the chapter's own code does the rest.
ELSEWHERE = """\
from dataclasses import replace
from vitutils.data import sources
sources.RECIPES["fashion_mnist"] = replace(
    sources.RECIPES["fashion_mnist"], sizes={sizes}, files={files}, mirrors=("{address}",))
"""

# Stands before the training: after its first step the kernel is gone, as where memory is short.
KILLED = """\
import os, signal
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


class Mirror(http.server.ThreadingHTTPServer):
    """Hands out four files; while it `stalls`, the third one's second half never comes."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked, self.stalls = files, [], True
        self.half_sent, self.over = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        raw = self.server.files[name]
        self.server.asked.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        # torchvision asks twice: for redirections, and for the file
        if self.server.stalls and self.server.asked.count(name) == 2 and name == list(self.server.files)[2]:
            self.wfile.write(raw[: len(raw) // 2])
            self.wfile.flush()
            self.server.half_sent.set()
            self.server.over.wait(1800)
            return
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror():
    digits = data.load("digits")
    files = {}
    for part, (name, _) in zip(sources.TENSORS, sources.SOURCES["fashion_mnist"].files, strict=True):
        array = getattr(digits, part).numpy()
        array = np.resize(array, (SIZES["test" in part], *array.shape[1:]))
        if array.ndim == 4:  # 8 x 8 pixels made 28 x 28: each three times, and a rim
            array = np.pad(array[:, 0].repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
        head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        files[name] = gzip.compress(head + array.astype(np.uint8).tobytes(), 1)
    server = Mirror(files)
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@dataclass
class Reader:
    """Somebody who runs the chapter from its first cell, in one folder, as often as it takes."""

    folder: Path
    mirror: Mirror

    def notebook(self) -> nbformat.NotebookNode:
        whole = nbformat.read(rules.ROOT / "notebooks" / f"{CHAPTER}.ipynb", as_version=4)
        files = tuple((name, hashlib.md5(raw).hexdigest()) for name, raw in self.mirror.files.items())
        source = ELSEWHERE.format(sizes=SIZES, files=files, address=self.mirror.address)
        after = next(i for i, cell in enumerate(whole.cells, 1) if cell.id == "setup")
        whole.cells.insert(after, nbformat.v4.new_code_cell(source, id="elsewhere"))
        return whole

    def run(self, notebook: nbformat.NotebookNode, kill=None) -> nbformat.NotebookNode:
        """Run all cells; `kill(cell id, function)` is told of each one that starts, and what ends the kernel."""
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=command.runner.OnePython())

        def tell(cell, cell_index):
            if kill:
                kill(cell.id, lambda: os.kill(manager.provisioner.pid, signal.SIGKILL))

        client = NotebookClient(
            notebook, km=manager, timeout=1800, on_cell_execute=tell, resources={"metadata": {"path": str(self.folder)}}
        )
        environment = os.environ | {
            "VITBOOK_SCALE": "smoke",
            "VITBOOK_DATA": str(self.folder / "cache"),
            "VITBOOK_SYSTEM_DATA": str(self.folder / "none"),
            "VITBOOK_OFFLINE": "0",
            "JPY_SESSION_NAME": "reader.ipynb",  # somebody watches
            "no_proxy": "*",
        }
        client.execute(cleanup_kc=True, env=environment)
        return notebook

    def kept(self) -> list[str]:
        cache = self.folder / "cache"
        return sorted(path.name for path in cache.iterdir() if not path.name.startswith(".")) if cache.is_dir() else []


def printed(notebook: nbformat.NotebookNode, name: str) -> str:
    cell = next(cell for cell in notebook.cells if cell.id == name)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.skipif(os.name == "nt", reason="kills by a signal")
def test_a_restart_in_the_middle_loses_nothing_but_time(tmp_path, mirror):
    reader = Reader(tmp_path, mirror)

    def in_the_download(cell, end):
        if cell == "live-data":
            threading.Thread(target=lambda: mirror.half_sent.wait(1800) and end(), daemon=True).start()

    first = reader.notebook()
    with pytest.raises(DeadKernelError):
        reader.run(first, in_the_download)
    mirror.over.set()
    assert mirror.half_sent.is_set() and reader.kept() == []
    assert "downloading fashion_mnist once, 31 MB" in printed(first, "live-data")
    assert mirror.asked[-1] == list(mirror.files)[2]

    mirror.stalls = False
    second = reader.notebook()
    training = next(i for i, cell in enumerate(second.cells) if cell.id == "live")
    second.cells.insert(training, nbformat.v4.new_code_cell(KILLED, id="killed"))
    with pytest.raises(DeadKernelError):
        reader.run(second)
    assert reader.kept() == ["fashion_mnist.safetensors"]
    assert all(sign in printed(second, "live-data") for sign in ("downloading fashion_mnist once", "100%"))
    assert not printed(second, "place-look")

    asked = len(mirror.asked)
    third = reader.run(reader.notebook())
    assert all(cell.execution_count for cell in third.cells if cell.cell_type == "code")
    assert len(mirror.asked) == asked, "what was whole was downloaded again"
    said = printed(third, "live-data")
    assert "downloading" not in said and printed(second, "live-data").endswith(said)
    assert "study" in printed(third, "live")


def test_after_a_restart_a_cell_in_the_middle_says_what_it_lacks(tmp_path, mirror):
    """Not a wrong result from something half there: a NameError."""
    reader = Reader(tmp_path, mirror)
    notebook = reader.notebook()
    notebook.cells = [cell for cell in notebook.cells if cell.id == "live"]
    with pytest.raises(CellExecutionError, match="NameError"):
        reader.run(notebook)
    assert reader.kept() == [] and mirror.asked == []
