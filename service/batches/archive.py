"""Archives of a batch's masks: one zip, in a format that ``semples export`` writes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from models.data.classes import ClassInfo, ClassList
from models.data.images import ImageHeader, check_image
from models.data.mask_files import read_mask, software_version
from models.data.mask_folder import MaskedImage
from models.data.photos import mask_names
from models.exports.coco import write_coco
from models.exports.cvat import write_cvat
from models.exports.voc import write_voc
from service.api.errors import ProblemError
from service.api.schemas import problem_of
from service.batches.slots import TEMP_PREFIX
from worker.batches.records import BatchItem, BatchRecord, ItemOutcome, ItemResult
from worker.batches.store import BatchState, BatchStore, Row
from worker.batches.zips import Zips
from worker.queue.schema import JobFailure
from worker.storage import BlobMissingError, BlobStore

ArchiveFormat = Literal["voc", "coco", "cvat"]

_WRITERS: Final[dict[ArchiveFormat, Callable[[Iterable[MaskedImage], ClassList, Path], object]]] = {
    "voc": write_voc,
    "coco": write_coco,
    "cvat": write_cvat,
}
_COMPRESSED: Final = (".jpg", ".png", ".zip")
_FILES_MISSING: Final = JobFailure(
    code="input_missing", detail="its mask or its photo is no longer stored", repeatable=True
)


def pack_archive(store: BatchStore, blobs: BlobStore, batch: BatchState, form: ArchiveFormat) -> BinaryIO:
    """Return the archive of a batch that has ended, a temporary file that is deleted once it is closed.

    Beside the format's files it holds ``batch.json``, which says what made the masks, and ``failed.json``, which lists
    the photos without one. It needs disk space for the masks, and for the photos of formats that hold them.

    Raises:
        ProblemError: if the format cannot hold a name.
        BlobError: if the blob store cannot be read.
    """
    record = batch.record
    classes = ClassList(tuple(ClassInfo(*each) for each in record.classes.items()))
    with tempfile.TemporaryDirectory(prefix=f"{TEMP_PREFIX}archive-") as folder:
        output, photos = Path(folder) / "archive", Path(folder) / "photos"
        output.mkdir()
        photos.mkdir()
        failed = [_failed(*row) for row in rows_without_mask(store, record.id)]
        rows = store.rows(record.id, "finished")
        names = mask_names([item.image for item in store.items(record.id, range(1, record.total + 1))])
        masks = _masks(rows, names, blobs, record, photos if form == "voc" else None, failed)
        try:
            _WRITERS[form](masks, classes, output)
        except ValueError as error:
            raise ProblemError("cannot-export", str(error)) from error
        _write_json(output / "failed.json", failed)
        _write_json(output / "batch.json", _provenance(batch, form))
        return _zip(output)


def rows_without_mask(store: BatchStore, batch_id: str) -> Iterator[Row]:
    """Yield the items of a batch that failed or were canceled."""
    yield from store.rows(batch_id, "failed")
    yield from store.rows(batch_id, "canceled")


def _masks(
    rows: Iterable[Row],
    names: Mapping[str, str],
    blobs: BlobStore,
    record: BatchRecord,
    folder: Path | None,
    failed: list[dict[str, Any]],
) -> Iterator[MaskedImage]:
    """Yield masks, and add those whose files are no longer stored to ``failed``."""
    zips = Zips(blobs)
    try:
        for number, item, outcome in rows:
            if outcome.result is None:
                continue
            try:
                masked = _mask(blobs, record, item, outcome.result, names[item.image])
                if folder is None:
                    yield masked
                    continue
                data = zips.read(record.request.archive, item.image)
            except BlobMissingError:
                failed.append(_failed(number, item, ItemOutcome(failure=_FILES_MISSING)))
                continue
            path = folder / PurePosixPath(item.image).name
            path.write_bytes(data)
            header = check_image(data, max_pixels=record.limits.max_pixels)
            yield replace(masked, path=path, header=header)
            path.unlink()
    finally:
        zips.close_others(set())


def _mask(blobs: BlobStore, record: BatchRecord, item: BatchItem, result: ItemResult, stem: str) -> MaskedImage:
    label_map, text = read_mask(blobs.get(result.mask))
    model = record.request.model
    return MaskedImage(
        path=Path(item.image),
        name=item.image,
        stem=stem,
        header=ImageHeader(result.width, result.height, result.exif_orientation, ""),
        label_map=label_map,
        text=text,
        model=f"{model.name} {model.version}",
        confidence={each.index: each.confidence for each in result.classes if each.confidence is not None},
    )


def _failed(number: int, item: BatchItem, outcome: ItemOutcome) -> dict[str, Any]:
    problem = problem_of(outcome.failure)
    return {
        "number": number,
        "image": item.image,
        "status": "canceled" if problem is None else "failed",
        "problem": None if problem is None else problem.model_dump(),
    }


def _provenance(batch: BatchState, form: ArchiveFormat) -> dict[str, Any]:
    record = batch.record
    return {
        "batch": record.id,
        "status": batch.end,
        "format": form,
        "software": f"semples {software_version()}",
        "model": record.request.model.model_dump(),
        "options": asdict(record.request.options),
        "classes": {str(index): name for index, name in record.classes.items()},
        "photos": record.total,
        "created_at": record.created_at.isoformat(),
        "ended_at": batch.ended_at.isoformat() if batch.ended_at else None,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _zip(folder: Path) -> BinaryIO:
    """Move a folder's files into a zip; the same files give the same bytes."""
    file = tempfile.TemporaryFile(prefix=f"{TEMP_PREFIX}archive-")  # noqa: SIM115  # returned open
    try:
        with ZipFile(file, "w") as archive:
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                entry = ZipInfo(path.relative_to(folder).as_posix())  # without a time
                entry.compress_type = ZIP_STORED if path.suffix in _COMPRESSED else ZIP_DEFLATED
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
