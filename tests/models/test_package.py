"""What ``from models import …`` gives, and that it leaves torch alone."""

import subprocess
import sys

import pytest

import models
from models.bundle.bundle import load_bundle
from models.bundle.manifest import find_bundle
from models.inference.predictor import Predictor


def test_the_public_names() -> None:
    assert models.Predictor is Predictor
    assert models.load_bundle is load_bundle
    assert models.find_bundle is find_bundle
    with pytest.raises(AttributeError, match="module 'models' has no attribute 'nothing'"):
        models.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "from models import find_bundle",
        "import models.cli",
        "import models.prepare.coco, models.prepare.voc",
        "import models.exports.coco, models.exports.cvat, models.exports.label_studio, models.exports.voc",
        "import models.data.mask_folder",
        "from models.refine import build_refiner, parse_chain; parse_chain('pamr')",
    ],
)
def test_torch_is_imported_on_first_use(code: str) -> None:
    code += "; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
