"""The same model behind LitServe: an upload is decoded, segmented, and answered with its mask as a PNG.

A server program; ``benchmarks.serve`` runs it. One inference process and one HTTP process, as LitServe does by default
on a CPU. It keeps no job: nothing is written to a disk, no scores are kept, and what is under way is lost with the
process.

Annotations are evaluated here, not kept as text: LitServe chooses by them how to read a request.
"""

import argparse
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.service_load.bare import MaskMaker, grouped
from models.data.images import read_image
from models.data.mask_files import label_map_png
from models.inference.masks import Segmentation

Photo = tuple[NDArray[np.uint8], tuple[str, ...]]

BATCH_SECONDS = 0.005
"""LitServe waits so long for a batch to fill; at 0 its loop would ask the queue without a pause, on a core of its
own."""


class MaskAPI(litserve.LitAPI):
    """LitServe calls these, all in the inference process."""

    def __init__(self, bundle: str, *, refine: str, threads: int, batch: int) -> None:
        timeout = BATCH_SECONDS if batch > 1 else 0.0
        super().__init__(max_batch_size=batch, batch_timeout=timeout)
        self._load = partial(MaskMaker, bundle=bundle, refine=refine, threads=threads)

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self._maker = self._load()

    def decode_request(self, request: litserve.Request) -> Photo:
        """Read the form, which is what LitServe hands over for a multipart request."""
        form: Any = request
        labels = tuple(form["labels"].split(","))
        return read_image(form["image"].file.read()).pixels, labels

    def batch(self, inputs: Sequence[Photo]) -> Sequence[Photo]:
        """Leave a batch's photos as they are."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Segment a photo, or a list of photos: those of one size together."""
        if isinstance(x, tuple):
            return self._maker.one(*x)
        made: dict[int, Segmentation] = {}
        for group in grouped([self._maker.size(pixels) for pixels, _ in x], most=len(x)):
            made |= zip(group, self._maker.together([x[i] for i in group]), strict=True)
        return [made[i] for i in range(len(x))]

    def encode_response(self, output: Segmentation) -> litserve.Response:
        """Return the mask."""
        return litserve.Response(label_map_png(output.label_map, text={}), media_type="image/png")


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--refine", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args()
    api = MaskAPI(
        arguments.bundle,
        refine=arguments.refine,
        threads=arguments.threads,
        batch=arguments.batch,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    # It stops in order on Ctrl-C alone; SIGTERM would leave its processes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
