import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import mask_folder
from models.data.classes import ClassInfo, ClassList, Sample, write_class_list
from models.data.loaders import MaskCrops
from models.data.mask_files import label_map_png
from models.data.photos import MatchRule
from models.exports.coco import RLE_FILE, write_coco
from models.exports.cvat import write_cvat
from models.exports.label_studio import write_label_studio
from models.exports.voc import write_voc
from tests.conftest import CLASSES
from tests.helpers.export_folder import label_maps, make_folder


@pytest.mark.parametrize("content", ["{}", '{"model": {}, "options": {}}', "[]", "no"])
def test_settings_of_another_kind_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / mask_folder.SETTINGS).write_text(content)
    with pytest.raises(ValueError, match=r"expected .* in .*settings.json, got"):
        mask_folder.read_settings(tmp_path)


def test_records_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / mask_folder.RESULTS
    whole = '{"stem": "a", "image": "a.jpg", "model": {}, "classes": []}\n'
    path.write_text("[]\n3\nno\n" + '{"stem": "b"}\n' + whole + whole[:20])
    assert list(mask_folder.read_results(path)) == ["a"]
    settings = {"model": {"name": "tiny", "version": "1"}, "options": {}, "scores": False}
    (tmp_path / mask_folder.SETTINGS).write_text(json.dumps(settings))
    with mask_folder.MaskFolderWriter(tmp_path, [], ClassList((ClassInfo(1, "cat"),)), settings):
        pass
    assert path.read_text().endswith(whole)


def test_a_folder_is_continued_and_summed_up_in_the_order_of_its_samples(tmp_path: Path) -> None:
    classes = ClassList((ClassInfo(1, "cat"),))
    settings = {"model": {"name": "tiny", "version": "1"}, "options": {}, "scores": True}
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rules: tuple[MatchRule, ...] = ("tail", "path", "case", "path")
    matched = {"path": 2, "case": 1, "tail": 1}
    samples = [Sample(tmp_path / name, (0,), rule=rule) for name, rule in zip(names, rules, strict=True)]
    samples.append(Sample(tmp_path / "unlabeled.jpg", ()))
    mask = label_map_png(np.zeros((2, 3), dtype=np.uint8), text={"Software": "semples 0.1"})

    def add(folder: mask_folder.MaskFolderWriter, sample: Sample) -> None:
        alignment = {"alignment_class": None, "alignment_background": None}
        result = {"name": "cat", "area": 0.0, "confidence": None, "box": None, **alignment}
        record = {"image": sample.name, "model": settings["model"], "classes": [result]}
        mask_folder.write_mask(tmp_path / "out", sample.stem, mask, b"npz")
        folder.add(sample, record)

    with mask_folder.MaskFolderWriter(tmp_path / "out", samples, classes, settings) as folder:
        a, b, c, d = folder.todo
        for sample in (c, a, d):
            add(folder, sample)
        folder.fail(b, "damaged")
        assert folder.finish() == mask_folder.Outcome(3, 0, 3, 1, 0, (("b.jpg", "damaged"),), matched)
    mask_folder.scores_path(tmp_path / "out", "d").unlink()
    with mask_folder.MaskFolderWriter(tmp_path / "out", samples, classes, settings) as folder:
        assert folder.todo == [b, d]
        assert not (tmp_path / "out" / mask_folder.SUMMARY).exists()
        for sample in (d, b):
            add(folder, sample)
        assert folder.finish() == mask_folder.Outcome(2, 2, 4, 1, 0, (), matched)
    summary = json.loads((tmp_path / "out" / mask_folder.SUMMARY).read_text())
    assert summary["classes"]["cat"]["empty"] == list(names)
    assert (summary["masks"], summary["images"], summary["unlabeled"]) == (4, 5, 1)
    assert summary["matched"] == matched
    with mask_folder.MaskFolderWriter(tmp_path / "out", samples[:1], classes, settings) as folder:
        assert folder.finish().others == 3


def test_photos_come_with_their_masks(tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    (run / "masks" / "._flat.png").touch()  # of macOS
    masks = mask_folder.open_mask_folder(run, images)
    photos = list(masks.masked_images())
    kept = label_maps()
    assert len(masks) == len(photos) == len(kept)
    assert [each.stem for each in photos] == sorted(each.stem for each in photos)
    for each in photos:
        assert np.array_equal(each.label_map, kept[each.path.name])
        assert each.text["Model"] == "tiny 1"
        assert set(each.confidence) == set(each.regions) - {255}


def test_photos_may_lie_in_folders(tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    (images / "sub").mkdir()
    (images / "flat.jpg").rename(images / "sub" / "flat.jpg")
    path = run / "results.jsonl"
    path.write_text(path.read_text().replace("flat.jpg", "sub/flat.jpg"))
    masks = mask_folder.open_mask_folder(run, images)
    found = {each.stem: each for each in masks.masked_images()}
    assert found["flat"].name == "sub/flat.jpg"
    assert found["flat"].path == images / "sub" / "flat.jpg"
    # What each format calls a photo.
    write_coco(masks.masked_images(), masks.classes, tmp_path)
    coco = json.loads((tmp_path / RLE_FILE).read_text())
    assert "sub/flat.jpg" in [each["file_name"] for each in coco["images"]]
    write_label_studio(masks.masked_images(), masks.classes, tmp_path, image_prefix="s3://b/")
    assert '"s3://b/sub/flat.jpg"' in (tmp_path / "tasks_0001.json").read_text()
    write_cvat(masks.masked_images(), masks.classes, tmp_path)
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        assert "sub/flat" in archive.read("ImageSets/Segmentation/default.txt").decode().split()
        assert "SegmentationClass/sub/flat.png" in archive.namelist()


def test_photos_of_two_folders_may_share_a_name(tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    for city in ("paris", "rome"):
        (images / city).mkdir()
        (images / city / "flat.jpg").write_bytes((images / "flat.jpg").read_bytes())
        (run / "masks" / f"{city}__flat.png").write_bytes((run / "masks" / "flat.png").read_bytes())
    (images / "flat.jpg").unlink()
    (run / "masks" / "flat.png").unlink()
    path = run / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    [flat, *_] = [line for line in lines if "flat.jpg" in line]
    twins = [
        flat.replace('"flat"', f'"{city}__flat"').replace("flat.jpg", f"{city}/flat.jpg") for city in ("paris", "rome")
    ]
    path.write_text("".join([line for line in lines if line != flat] + twins))
    masks = mask_folder.open_mask_folder(run, images)
    found = {each.stem: each.name for each in masks.masked_images()}
    assert (found["paris__flat"], found["rome__flat"]) == ("paris/flat.jpg", "rome/flat.jpg")
    write_voc(masks.masked_images(), masks.classes, tmp_path / "voc")
    assert (tmp_path / "voc/SegmentationClass/rome__flat.png").is_file()
    assert (tmp_path / "voc/JPEGImages/paris__flat.jpg").is_file()
    pairs = mask_folder.read_mask_folder(images, run, masks.classes)
    assert {each.mask.stem: each.image for each in pairs}["rome__flat"] == (images / "rome/flat.jpg").resolve()
    path.write_text(path.read_text() + twins[0].replace("paris__flat", "flat"))  # its mask has another name now
    assert {"flat", "rome__flat"} <= mask_folder.read_results(path).keys()
    assert "paris__flat" not in mask_folder.read_results(path)


@pytest.mark.parametrize(
    ("photos", "masks"),
    [
        (["1.jpg", "dogs/1.jpg", "a/b/1.jpg"], ["1", "dogs__1", "a__b__1"]),
        (["a__1.jpg", "a/1.jpg"], ["a__1", "1"]),  # by the records alone
        (["cats/1.jpg", "dogs/1.jpg"], ["1"]),  # the other has no label
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_masks_find_their_photos(photos: list[str], masks: list[str], recorded: bool, tmp_path: Path) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    (run / "masks").mkdir(parents=True)
    write_class_list(run / "classes.txt", CLASSES)
    for name in photos:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    records = []
    for name, mask in zip(photos, masks, strict=False):
        (run / "masks" / f"{mask}.png").touch()
        records.append(json.dumps({"stem": mask, "image": name, "model": {}, "classes": []}) + "\n")
    (run / "results.jsonl").write_text("".join(records) if recorded else "")
    if recorded or len(masks) == 3:
        found = mask_folder.read_mask_folder(images, run, CLASSES)
        expected = {mask: images.resolve() / name for name, mask in zip(photos, masks, strict=False)}
        assert {each.mask.stem: each.image for each in found} == expected
    else:
        with pytest.raises(ValueError, match="expected one photo for the mask "):
            mask_folder.read_mask_folder(images, run, CLASSES)


def test_the_last_record_of_an_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    made = [("1", "z/1.jpg"), ("1", "b/1.jpg"), ("b__1", "b/1.jpg"), ("z__1", "z/1.jpg"), ("1", "1.jpg")]
    for count, expected in ((2, {"1": "b/1.jpg"}), (4, {"b__1": "b/1.jpg", "z__1": "z/1.jpg"}), (5, dict(made[2:]))):
        lines = [json.dumps({"stem": stem, "image": name, "model": {}, "classes": []}) for stem, name in made[:count]]
        path.write_text("\n".join(lines) + "\n")
        assert {stem: each["image"] for stem, each in mask_folder.read_results(path).items()} == expected


Spoil = Callable[[Path], object]
RECORDS, MASK, PHOTO = "run/results.jsonl", "run/masks/flat.png", "images/flat.jpg"
UNKNOWN = label_map_png(np.full((40, 50), 77, dtype=np.uint8))


def remove(*names: str) -> Spoil:
    return lambda place: [(place / name).unlink() for name in names]


def edit(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def write(name: str, picture: Image.Image | None = None) -> Spoil:
    return lambda place: picture.save(place / name) if picture else (place / name).touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("run/summary.json"), r"has finished, got no summary\.json in .*run"),
        (edit(RECORDS, lambda _: b""), "expected at least one mask, got none"),
        (write("run/masks/other.png"), r"lists in .*masks, got other\.png \(1 in all\)"),
        (remove(MASK), r"every mask that results\.jsonl lists, got no flat\.png \(1 in all\)"),
        (remove(PHOTO, "images/picture.png"), r"every photo that has a mask, got no flat\.jpg \(2 in all\)"),
        (
            edit(RECORDS, lambda content: content.replace(b"picture.png", b"../picture.png")),
            r"results\.jsonl to name photos below their folder, got \.\./picture\.png",
        ),
        (edit(RECORDS, lambda content: content[:-20]), r"lists in .*masks, got turned\.png \(1 in all\)"),
    ],
)
def test_names_that_do_not_match(spoil: Spoil, message: str, tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        mask_folder.open_mask_folder(run, images)


def test_a_line_cut_off_and_written_anew_is_no_harm(tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    path = run / "results.jsonl"
    path.write_text("\0\0\0\n" + path.read_text())
    assert len(mask_folder.open_mask_folder(run, images)) == len(label_maps())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write(PHOTO, Image.new("RGB", (50, 41))), r"photo's 50 x 41 pixels, got 50 x 40 in .*flat\.png"),
        (edit(PHOTO, lambda content: content[:100]), r"flat\.jpg: cannot read the image"),
        (edit(MASK, lambda content: content[:-40]), r"expected a label map in .*flat\.png"),
        (write(MASK, Image.new("L", (50, 40))), r"expected a palette PNG in .*flat\.png, got mode L"),
        (edit(MASK, lambda _: UNKNOWN), r"expected indices of classes\.txt, got 77 in .*flat\.png"),
    ],
)
def test_pixels_that_do_not_match(spoil: Spoil, message: str, tmp_path: Path) -> None:
    run, images = make_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        list(mask_folder.open_mask_folder(run, images).masked_images())


@pytest.fixture
def masks(tiny_masks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_masks, tmp_path / "masks"))


def write_results(masks: Path, differences: dict[str, float | None]) -> None:
    rows = []
    for number, (stem, value) in enumerate(differences.items()):
        result = {"index": CLASSES.classes[number % 4].index, "name": "x", "box": [0, 0, 1, 1]}
        result |= {"alignment_class": None if value is None else 0.2 + value, "alignment_background": 0.2}
        rows.append({"stem": stem, "image": f"{stem}.jpg", "model": {}, "classes": [result]})
    (masks / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_masks_become_channel_numbers_by_class_name(tiny_data: Path, masks: Path) -> None:
    # The run has the same classes in another order and with other indices.
    names = tuple(reversed(CLASSES.names))
    classes = ClassList(tuple(ClassInfo(50 + at, name) for at, name in enumerate(names)))
    (masks / "masks" / "._photo0.png").touch()  # of macOS
    samples = mask_folder.read_mask_folder(tiny_data / "images", masks, classes)
    assert [sample.image.name for sample in samples] == [f"photo{number}.jpg" for number in range(8)]
    for number, sample in enumerate(samples):
        expected = 1 + names.index(CLASSES.names[number % 4])
        label_map = sample.read_mask()
        assert set(np.unique(label_map)) == {0, expected}
        assert (label_map[15:45, 20:60] == expected).all()


def test_badly_aligned_masks_are_ignored(tiny_data: Path, masks: Path) -> None:
    write_results(masks, {f"photo{number}": number / 10 for number in range(8)})
    samples = mask_folder.read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)
    kinds = [int(sample.read_mask()[30, 40]) for sample in samples]
    assert kinds == [255, 255, 255, 4, 1, 2, 3, 4]
    assert samples[0].read_mask()[0, 0] == 0
    write_results(masks, {f"photo{number}": None for number in range(8)})
    with pytest.raises(ValueError, match=r"expected masks with alignment scores, got none"):
        mask_folder.read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)
    (masks / "results.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"expected a result of photo0.png in results.jsonl"):
        mask_folder.read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)


def test_what_does_not_fit_is_refused(tiny_data: Path, masks: Path, tmp_path: Path) -> None:
    images = tiny_data / "images"
    with pytest.raises(ValueError, match=r"expected the output of make-pseudo-masks .* got no masks"):
        mask_folder.read_mask_folder(images, tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"classes.txt: expected a known label, got 'dining table'"):
        mask_folder.read_mask_folder(images, masks, ClassList(CLASSES.classes[:3]))
    Image.new("L", (4, 4), 77).save(masks / "masks" / "photo0.png")
    sample = mask_folder.read_mask_folder(images, masks, CLASSES)[0]
    with pytest.raises(ValueError, match=r"expected indices of classes in .*photo0.png, got \[77\]"):
        sample.read_mask()
    Image.new("RGB", (4, 4)).save(masks / "masks" / "photo0.png")
    with pytest.raises(ValueError, match="in mode L or P"):
        sample.read_mask()
    Image.new("L", (4, 4)).save(masks / "masks" / "photo0.png")
    crops = MaskCrops([sample], transform=lambda image, mask: (image, mask), seed=0)
    with pytest.raises(ValueError, match=r"expected a mask of photo0.jpg's size \(60, 80\)"):
        crops[0]
    Image.new("L", (4, 4)).save(masks / "masks" / "lonely.png")
    with pytest.raises(ValueError, match=r"expected a photo in .* got none for lonely.png"):
        mask_folder.read_mask_folder(images, masks, CLASSES)
