"""A build without the real data says so at the top of every page: there chapters fell back on smaller sets."""

from __future__ import annotations

from vitutils.files import data_folders, system_folder


def at_hand() -> dict[str, bool]:
    """What a chapter would otherwise download, or go without, and whether this machine holds it."""
    folders, system = data_folders(), system_folder()
    places = {
        "Fashion-MNIST": [system / "fashion-mnist", *(f / "fashion_mnist.safetensors" for f in folders)],
        "ImageNet weights": [p for f in folders for p in f.glob("weights/*.safetensors")],
        "photos": [p for f in folders for p in [*f.glob("images/*"), f / "imagenette2-160"]],
    }
    return {name: any(path.exists() for path in paths) for name, paths in places.items()}


def announcement(held: dict[str, bool]) -> str:
    """What was missing, and what that means; empty if nothing was."""
    missing = [name for name, there in held.items() if not there]
    if not missing:
        return ""
    listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
    return (
        f"Made without {listed}: chapters fell back on smaller sets, and say so. "
        "Some captions are about figures that this copy doesn't have."
    )


def announce(app, page: str, template: str, context: dict, doctree) -> None:
    """Put it where the theme shows announcements. Pages are written after all chapters have run, and downloaded."""
    if told := announcement(at_hand()):
        context["theme_announcement"] = told


def setup(app) -> dict:
    app.connect("html-page-context", announce)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
