"""What `python -m vitutils.photos --onnx` adds: the model as ONNX and in int8, and how they do on the test part."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitutils.analysis import photo_model as pm
from vitutils.analysis.export import OnnxModel, to_int8, to_onnx
from vitutils.data.images import ImagePart

NAMES = ("model.onnx", "model.int8.onnx")
COMPARED = 32  # test photos whose logits are compared with torch's, one after the other


@dataclass(frozen=True)
class Exported:
    """The files, by name, and what they were found to be worth.

    away: the largest difference of logits, ONNX in float32 from torch, on `compared` test photos.  right, same: of
    `photos` test photos how many int8 answers rightly, how many as torch does.
    """

    files: dict[str, bytes]
    away: float
    compared: int
    right: int
    same: int
    photos: int

    def told(self) -> list[str]:
        """In words: the files, the difference, what int8 costs."""
        sizes = [f"{name} {len(raw) / 1e6:.1f} MB" for name, raw in self.files.items()]
        low, high = pm.interval(self.right, self.photos)
        return [
            f"Files: {', '.join(sizes)}.",
            f"Largest difference of logits between ONNX and torch, {self.compared} test photos: {self.away:.0e}.",
            f"In int8 {self.right} of {self.photos} test photos right, {self.right / self.photos:.1%} (95 % interval "
            f"{low:.1%} to {high:.1%}); {self.same} of {self.photos} answers are those of torch.",
        ]


def exported(model: pm.PhotoModel, test: ImagePart, y: Tensor, logits: Tensor) -> Exported:
    """Write both files in a folder that is gone afterwards, and try them on the test part.

    y, logits: labels (N,) and torch's logits (N, K) of its photos.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, small = (Path(folder, name) for name in NAMES)
        to_onnx(model, plain)
        to_int8(plain, small)
        by_onnx, by_int8, away, answers = OnnxModel(plain), OnnxModel(small), 0.0, []
        for i in range(len(test)):
            image = model.backbone.transform(test[i][0])[None]
            answers.append(int(by_int8(image).argmax()))
            if i < COMPARED:
                with torch.no_grad():
                    away = max(away, (by_onnx(image) - model(image)).abs().max().item())
        found = torch.tensor(answers)
        files = {name: Path(folder, name).read_bytes() for name in NAMES}
    right, same = int((found == y).sum()), int((found == logits.argmax(1)).sum())
    return Exported(files, away, min(COMPARED, len(test)), right, same, len(test))
