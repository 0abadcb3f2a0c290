#!/usr/bin/env bash
# Pillow 13.0.0, Python 3.11
#
# Saving an image as JPEG leaves the encoder's settings on the image, and a later save of it as a further page fails.
#
# An image that was once saved as JPEG, anywhere in the program, cannot be a further page of a TIFF made of several
# images: Pillow hands the settings of the JPEG encoder to the TIFF's and raises a TypeError about the number of
# arguments, which names neither the image nor the earlier save. A copy of the same image works, and so does the image
# as the first page. So whether a contact sheet or a stack can be written depends on what else was done with its photos.
#
# Output seen:
#   a fresh second page: written, 2 pages
#   a copy of one saved as JPEG: written, 2 pages
#   one saved as JPEG itself: TypeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet Pillow==13.0.0
env/bin/python - <<'PY'
import io

from PIL import Image


def stack(second):
    file = io.BytesIO()
    try:
        Image.new("RGB", (64, 48)).save(file, "TIFF", save_all=True, append_images=[second])
    except TypeError:
        return "TypeError"
    return f"written, {Image.open(file).n_frames} pages"


fresh, saved = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48))
saved.save(io.BytesIO(), "JPEG")
told = {
    "a fresh second page": stack(fresh),
    "a copy of one saved as JPEG": stack(saved.copy()),
    "one saved as JPEG itself": stack(saved),
}
for name, what in told.items():
    print(f"{name}: {what}")
assert list(told.values()) == ["written, 2 pages", "written, 2 pages", "TypeError"], told
PY
