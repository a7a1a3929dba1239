"""The masks of a batch as one zip, in the formats that ``semples export`` writes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from redis import Redis

from models.data.classes import ClassInfo, ClassList
from models.data.images import ImageHeader, check_image
from models.data.mask_files import read_mask, software_version
from models.data.mask_folder import MaskedImage
from models.exports.coco import write_coco
from models.exports.cvat import write_cvat
from models.exports.voc import write_voc
from service.api.errors import ProblemError
from service.api.schemas import problem_of
from service.batches.upload import PREFIX
from worker.batches.records import BatchItem, BatchRecord, ItemOutcome, ItemResult
from worker.batches.store import Row, Standing, each_in
from worker.batches.zips import Zips
from worker.queue.schema import JobFailure
from worker.storage import BlobMissingError, BlobStore

ArchiveFormat = Literal["voc", "coco", "cvat"]
Writer = Callable[[Iterable[MaskedImage], ClassList, Path], str]

WRITERS: Final[dict[ArchiveFormat, Writer]] = {
    "voc": write_voc,
    "coco": write_coco,
    "cvat": write_cvat,
}
ABOUT, FAILED = "batch.json", "failed.json"
_PACKED: Final = (".jpg", ".png", ".zip")
_GONE: Final = JobFailure(
    code="input_missing", detail="its mask or its photo is no longer stored", repeatable=True
)


@dataclass(frozen=True)
class Packer:
    """Makes archives; each takes the room on disk of its masks, and of its photos if they are in it.

    Attributes:
        redis: where batches are.
        blobs: where their zips and masks are.
    """

    redis: Redis
    blobs: BlobStore

    def pack(self, standing: Standing, form: ArchiveFormat) -> BinaryIO:
        """Return an archive, a file that is gone once it is closed.

        Beside what the format asks for it holds ``batch.json``, which says what made the masks, and ``failed.json``,
        which lists the photos that have none.

        Args:
            standing: a batch that has ended.
            form: whose format.

        Raises:
            ProblemError: if the format cannot hold a name.
            BlobError: if the store cannot be read.
        """
        record = standing.record
        classes = ClassList(tuple(ClassInfo(*each) for each in record.classes.items()))
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}archive-") as folder:
            output, photos = Path(folder) / "archive", Path(folder) / "photos"
            output.mkdir()
            photos.mkdir()
            failed = [_failed(*row) for row in without_mask(self.redis, record.id)]
            masked = self._photos(record, photos if form == "voc" else None, failed)
            try:
                WRITERS[form](masked, classes, output)
            except ValueError as error:
                raise ProblemError("cannot-export", str(error)) from error
            _write_json(output / FAILED, failed)
            _write_json(output / ABOUT, _about(standing, form))
            return _zipped(output)

    def _photos(
        self, record: BatchRecord, folder: Path | None, failed: list[dict[str, Any]]
    ) -> Iterator[MaskedImage]:
        """Give masks with their photos, which lie in a folder as long as they are looked at.

        Args:
            record: of the batch.
            folder: for photos; None to leave them where they are.
            failed: gets those whose mask is no longer there.
        """
        zips = Zips(self.blobs)
        try:
            for number, item, outcome in each_in(self.redis, record.id, "finished"):
                if outcome.result is None:
                    continue
                try:
                    photo = self._photo(record, item, outcome.result)
                    if folder is None:
                        yield photo
                        continue
                    data = zips.read(record.request.archive, item.image)
                except BlobMissingError:
                    failed.append(_failed(number, item, ItemOutcome(failure=_GONE)))
                    continue
                path = folder / PurePosixPath(item.image).name
                path.write_bytes(data)
                header = check_image(data, max_pixels=record.limits.max_pixels)
                yield replace(photo, path=path, header=header)
                path.unlink()
        finally:
            zips.close_others(set())

    def _photo(self, record: BatchRecord, item: BatchItem, result: ItemResult) -> MaskedImage:
        label_map, text = read_mask(self.blobs.get(result.mask))
        model = record.request.model
        return MaskedImage(
            path=Path(item.image),
            name=item.image,
            header=ImageHeader(result.width, result.height, result.exif_orientation, ""),
            label_map=label_map,
            text=text,
            model=f"{model.name} {model.version}",
            confidence={
                each.index: each.confidence
                for each in result.classes
                if each.confidence is not None
            },
        )


def without_mask(redis: Redis, batch_id: str) -> Iterator[Row]:
    """Give the items of a batch that failed or were canceled."""
    yield from each_in(redis, batch_id, "failed")
    yield from each_in(redis, batch_id, "canceled")


def _failed(number: int, item: BatchItem, outcome: ItemOutcome) -> dict[str, Any]:
    problem = problem_of(outcome.failure)
    return {
        "number": number,
        "image": item.image,
        "status": "canceled" if problem is None else "failed",
        "problem": None if problem is None else problem.model_dump(),
    }


def _about(standing: Standing, form: ArchiveFormat) -> dict[str, Any]:
    record = standing.record
    return {
        "batch": record.id,
        "status": standing.end,
        "format": form,
        "software": f"semples {software_version()}",
        "model": record.request.model.model_dump(),
        "options": asdict(record.request.options),
        "classes": {str(index): name for index, name in record.classes.items()},
        "photos": record.total,
        "created_at": record.created_at.isoformat(),
        "ended_at": standing.ended_at.isoformat() if standing.ended_at else None,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _zipped(folder: Path) -> BinaryIO:
    """Move a folder's files into a zip."""
    # Not closed here: it is what is returned.
    file = tempfile.TemporaryFile(prefix=f"{PREFIX}archive-")  # noqa: SIM115
    try:
        with ZipFile(file, "w") as archive:
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                # Without the clock: the same masks give the same zip.
                entry = ZipInfo(path.relative_to(folder).as_posix())
                entry.compress_type = ZIP_STORED if path.suffix in _PACKED else ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, 2**20)
                path.unlink()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
