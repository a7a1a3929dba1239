"""SemPLeS as a library: pixel masks from image-level labels. Knows tensors and files, neither HTTP nor Redis."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.bundle.bundle import load_bundle
    from models.bundle.manifest import find_bundle
    from models.inference.predictor import Predictor

__all__ = ["Predictor", "find_bundle", "load_bundle"]

# Imported on first use: some modules of this package must stay free of torch.
_MODULES = {
    "Predictor": "models.inference.predictor",
    "find_bundle": "models.bundle.manifest",
    "load_bundle": "models.bundle.bundle",
}

if not TYPE_CHECKING:  # else every name would pass the type checker

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
