"""Labels find their photos in zips as in folders: the same rules, the same refusals, the same counts."""

import io
import json
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from models.data.labels import read_folder
from models.data.photos import LabelRow, MatchError, list_files, match_rows
from service.api.errors import ProblemError
from service.batches.upload import ZipLimits, open_zip, read_items, validate_entries
from tests.conftest import CLASSES
from tests.helpers.batches import packed
from worker.batches.zips import Zips, with_utf8_names
from worker.storage import BlobStore

NFC, NFD = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))

Found = tuple[dict[str, tuple[str, ...]], dict[str, int]]  # labels by photo, and rows by rule
Reader = Callable[[Mapping[str, bytes | str], Path], Found]


def from_zip(files: Mapping[str, bytes | str], _: Path) -> Found:
    """Of a zip that holds the labels, too."""
    limits = ZipLimits(photos=100, photo_bytes=1000, total_bytes=10**6)
    with open_zip(io.BytesIO(packed(files)), limits) as archive:
        items, matched = read_items(archive, validate_entries(archive, limits), CLASSES)
    return {each.image: each.labels for each in items if each.labels}, dict(matched)


def from_folder(files: Mapping[str, bytes | str], folder: Path) -> Found:
    """Of a folder whose labels are among the photos."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    [labels] = [name for name in files if not name.lower().endswith((".jpg", ".png", ".webp", ".xml"))] or [""]
    samples = read_folder(folder, folder / labels, CLASSES)
    named = {each.name: tuple(CLASSES.names[channel] for channel in each.channels) for each in samples}
    return named, dict(Counter(str(each.rule) for each in samples))


@pytest.fixture(params=[from_zip, from_folder])
def read(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param
    return reader


def table(rows: Mapping[str, str]) -> str:
    return "image,labels\n" + "".join(f'"{image}",{label}\n' for image, label in rows.items())


MATCHES = {  # a photo, how rows name it, and the rule
    "its path": ("s/a.jpg", ["s/a.jpg"], "path"),
    "composed": (NFD, [NFC], "spelling"),
    "not composed": (f"s/{NFC}", [f"s/{NFD}", f"s\\{NFD}"], "spelling"),
    "Hangul": (unicodedata.normalize("NFD", "가나.png"), ["가나.png"], "spelling"),
    "Windows": ("s/t/a.jpg", ["s\\t\\a.jpg", ".\\s\\t\\a.jpg", "s\\t/a.jpg"], "spelling"),
    "dots": ("s/a.jpg", ["./s/a.jpg", "s/./a.jpg", "s//a.jpg", "/s/a.jpg", "s/ a.jpg "], "spelling"),
    "case": ("s/Kitchen.JPG", ["s/kitchen.jpg", "S/KITCHEN.jpg", "S\\kitchen.JPG", "./s/kitchen.Jpg"], "case"),
    "foreign case": ("Ärger/ΑΣ.jpg", ["ärger/ας.jpg", unicodedata.normalize("NFD", "ärger/ΑΣ.JPG")], "case"),
    "no ending": ("s/a.jpg", ["s/a", "S\\A", "./s/a"], "ending"),
    "another ending": ("s/a.jpg", ["s/a.jpeg", "s/a.PNG"], "ending"),
    "dots in a stem": ("v1.2.jpg", ["v1.2"], "ending"),
    "another machine": ("a.jpg", ["/data/me/photos/a.jpg", "C:\\me\\a.jpg", "../a.jpg", "~/me/A.JPG"], "tail"),
    "a folder more": ("p/s/a.jpg", ["/data/s/a.jpg", "images/p/s/a.jpg", "/data/me/p/s/a"], "tail"),
    "its name alone": ("p/s/a.jpg", ["a.jpg", "s/a.jpg", "A.jpg", "a"], "tail"),
    "a URL": (
        "my a.jpg",
        ["https://x.org/p/my%20a.jpg?size=3", "s3://bucket/my a.jpg", "file:///p/my%20a.jpg"],
        "tail",
    ),
    "Label Studio's": (
        "s/a.jpg",
        [
            "/data/upload/1/3f2a1b4c-a.jpg",
            "/data/local-files/?d=s/a.jpg",
            "/data/local-files/?d=a.jpg",
            "3f2a1b4c-a.jpg",
        ],
        "tail",
    ),
}
# Another photo everywhere, so that no folder holds all others.
OTHERS: dict[str, bytes | str] = {"z/other.png": b"", "other2.jpg": b""}


@pytest.mark.parametrize("case", MATCHES)
def test_rows_find_their_photos(read: Reader, case: str, tmp_path: Path) -> None:
    photo, names, rule = MATCHES[case]
    for number, name in enumerate(names):
        files: dict[str, bytes | str] = {**OTHERS, photo: b"", "labels.csv": table({name: "cat", "z/other.png": "cup"})}
        found, rules = read(files, tmp_path / str(number))
        assert found == {photo: ("cat",), "z/other.png": ("cup",)}, name
        assert rules == Counter([rule, "path"]), name


FORMS: dict[str, Callable[[str], dict[str, bytes | str]]] = {
    "csv": lambda name: {"Labels.CSV": table({name: "cat"})},
    "tsv": lambda name: {"LABELS.tsv": f"image\tlabels\n{name}\tcat\n"},
    "numbers": lambda name: {"Image_Labels.TXT": f"{name} 1\n", "Classes.txt": "1 bowl\n2 cat\n"},
    "coco": lambda name: {
        "Instances.JSON": json.dumps(
            {
                "images": [{"id": 1, "file_name": name}],
                "categories": [{"id": 0, "name": "Cats"}],
                "annotations": [{"image_id": 1, "category_id": 0}],
            }
        )
    },
    "xml": lambda name: {
        "x.XML": f"<annotation><filename>{name}</filename><object><name>CAT</name></object></annotation>"
    },
}


@pytest.mark.parametrize("name", ["s\\Kitchen.jpg", "s/kitchen.JPG", "s/Kitchen", "/data/me/kitchen.jpg"])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_find_photos_alike(form: str, name: str, tmp_path: Path) -> None:
    photo = "s/Kitchen.jpg"
    files = {photo: b"", **OTHERS, **FORMS[form](name)}
    assert from_zip(files, tmp_path)[0] == {photo: ("cat",)}
    files.pop("Classes.txt", None)  # for a command its classes say what numbers mean
    assert from_folder({**files, **OTHERS}, tmp_path)[0] == {photo: ("cat",)}


REFUSALS: dict[str, tuple[Sequence[str], str, str]] = {
    "nothing near": (["a.jpg"], "gone.jpg", "got none for 1: 'gone.jpg'"),
    "near": (["kitchen.jpg", "s/kitchen2.png"], "kitchenn.jpg", r"\(nearest: 'kitchen.jpg', 's/kitchen2.png'"),
    "near, of another machine": (["s/Tram_01.jpg"], "C:\\p\\tram-01.jpg", r"\(nearest: 's/Tram_01.jpg'\)"),
    "another folder's ending": (["a.jpg"], "a.jpg/b.jpg", "got none for 1"),
    "an ending that no photo has": (["a.jpg"], "a.tif", r"got none for 1: 'a.tif' \(nearest: 'a.jpg'\)"),
    "a folder": (["s/a.jpg"], "s", "got none for 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_rows_without_a_photo_are_refused_with_the_nearest(read: Reader, case: str, tmp_path: Path) -> None:
    photos, name, message = REFUSALS[case]
    files: dict[str, bytes | str] = {**dict.fromkeys(photos, b""), **OTHERS, "labels.csv": table({name: "cat"})}
    with pytest.raises((ValueError, ProblemError), match=message):
        read(files, tmp_path)


def test_problems_name_the_nearest_photos() -> None:
    with pytest.raises(ProblemError) as caught:
        from_zip({"kitchen.jpg": b"", "labels.csv": table({"kitchn.jpg": "cat", "xyz.jpg": "cat"})}, Path())
    assert caught.value.members == {
        "missing": ["kitchn.jpg", "xyz.jpg"],
        "missing_total": 2,
        "nearest": {"kitchn.jpg": ["kitchen.jpg"]},
    }


@pytest.mark.parametrize(
    ("photos", "name", "candidates"),
    [
        (["Kitchen.jpg", "KITCHEN.jpg", "z.jpg"], "kitchen.jpg", ["Kitchen.jpg", "KITCHEN.jpg"]),
        (["a.jpg", "a.png", "b.jpg"], "a", ["a.jpg", "a.png"]),
        (["s/a.jpg", "t/a.jpg"], "/data/a.jpg", ["s/a.jpg", "t/a.jpg"]),
        (["p/s/a.jpg", "q/s/a.jpg", "t/a.jpg"], "/data/s/a.jpg", ["p/s/a.jpg", "q/s/a.jpg"]),
        ([f"s/{NFC}", f"s/{NFD}"], f"s\\{NFC}", [f"s/{NFC}", f"s/{NFD}"]),
    ],
)
def test_a_row_that_several_photos_fit_is_refused_with_them(
    photos: Sequence[str], name: str, candidates: list[str], tmp_path: Path
) -> None:
    with pytest.raises(MatchError, match="expected one photo that fits, got 2: '") as caught:
        match_rows([LabelRow(name, ("cat",))], photos)
    assert caught.value.members == {"image": name, "candidates": candidates}
    files = {**dict.fromkeys(photos, b""), "labels.csv": table({name: "cat"})}
    with pytest.raises(ValueError, match="expected one photo that fits, got 2: '"):
        from_folder(files, tmp_path)


@pytest.mark.parametrize(
    ("name", "photo"),
    [("s/a.jpg", "s/a.jpg"), ("/data/t/a.jpg", "t/a.jpg"), ("p/s/a.jpg", "s/a.jpg"), ("S/A.JPG", "s/a.jpg")],
)
def test_the_longest_tail_decides(name: str, photo: str) -> None:
    [match] = match_rows([LabelRow(name, ())], ["t/a.jpg", "s/a.jpg", "u/a.png"])
    assert match.photo == photo


@pytest.mark.parametrize("names", [("train/a.jpg", "val/a.jpg"), ("a.jpg", "A.jpg"), ("a", "/x/a.jpg")])
def test_two_rows_of_one_photo_are_refused(read: Reader, names: tuple[str, str], tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.jpg": b"", "b.jpg": b"", "labels.csv": table(dict.fromkeys(names, "cat"))}
    with pytest.raises((ValueError, ProblemError), match=f"{names[1]}': expected labels of a photo once"):
        read(files, tmp_path)


def annotation(filename: str) -> str:
    return f"<annotation>{filename}<object><name>cat</name></object></annotation>"


@pytest.mark.parametrize("element", ["", "<filename/>", "<filename>gone.jpg</filename>", "<filename>same</filename>"])
def test_the_name_of_the_xml_file_counts_where_its_filename_finds_nothing(
    read: Reader, element: str, tmp_path: Path
) -> None:
    files: dict[str, bytes | str] = {
        "JPEGImages/a.jpg": b"",
        "JPEGImages/b.png": b"",
        "Annotations/a.xml": annotation(element),
        "Annotations/b.xml": annotation(element),
    }
    found, rules = read(files, tmp_path)
    assert found == {"JPEGImages/a.jpg": ("cat",), "JPEGImages/b.png": ("cat",)}
    assert set(rules) == {"file"} if "gone" in element or "same" in element else {"tail"}
    files["Annotations/b.xml"] = annotation("<filename>a.jpg</filename>")
    with pytest.raises((ValueError, ProblemError), match="expected labels of a photo once"):
        read(files, tmp_path / "2")


@pytest.mark.parametrize("hidden", ["._a.jpg", "s/._a.jpg", ".cache/a.jpg", "__MACOSX/a.jpg", "__MACOSX/s/._a.jpg"])
def test_hidden_files_are_no_photos(read: Reader, hidden: str, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {hidden: b"", **OTHERS, "labels.csv": table({"a.jpg": "cat"})}
    with pytest.raises((ValueError, ProblemError), match=r"got none for 1: 'a.jpg'"):
        read(files, tmp_path)
    found, _ = read({**files, "p/a.jpg": b""}, tmp_path)
    assert found == {"p/a.jpg": ("cat",)}


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "photos" / "s").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("photos/s/a.jpg", "else/b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "photos" / "s" / "back").symlink_to(tmp_path / "photos")
    assert list_files(tmp_path / "photos") == ["linked/b.jpg", "s/a.jpg"]


def without_utf8_flag(files: Mapping[bytes, bytes | str]) -> bytes:
    """A zip whose names are these bytes, and which does not say in which encoding."""
    buffer = io.BytesIO()
    stand_ins = {f"{number:02}".ljust(len(name), "_"): name for number, name in enumerate(files)}
    with zipfile.ZipFile(buffer, "w") as archive:
        for stand_in, name in stand_ins.items():
            archive.writestr(stand_in, files[name])
    data = buffer.getvalue()
    for stand_in, name in stand_ins.items():
        data = data.replace(stand_in.encode(), name)
    return data


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("é.jpg".encode(), "é.jpg"),
        ("日本/写真.jpg".encode(), "日本/写真.jpg"),
        ("🐈.jpg".encode(), "🐈.jpg"),
        (b"ab.jpg", "ab.jpg"),
        (b"\x82\x8a.jpg", "éè.jpg"),
        (b"\xff.jpg", "\xa0.jpg"),
        (b"\xc3.jpg", "├.jpg"),
    ],
)
def test_names_without_an_encoding_are_utf8_else_cp437(raw: bytes, name: str) -> None:
    with with_utf8_names(zipfile.ZipFile(io.BytesIO(without_utf8_flag({raw: b"x"})))) as archive:
        assert archive.namelist() == [archive.infolist()[0].filename] == [name]
        assert archive.read(name) == b"x"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_zip_of_macos(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    """From the upload to what the scheduler reads."""
    photo = unicodedata.normalize(form, "café.jpg")
    data = without_utf8_flag({photo.encode(): b"photo", b"labels.csv": table({NFC: "cat"})})
    limits = ZipLimits(photos=10, photo_bytes=1000, total_bytes=10**6)
    with open_zip(io.BytesIO(data), limits) as archive:
        [item], _ = read_items(archive, validate_entries(archive, limits), CLASSES)
    assert (item.image, item.labels) == (photo, ("cat",))
    blobs = BlobStore.open(str(tmp_path))
    assert Zips(blobs).read(blobs.put("archives", data), item.image) == b"photo"


def test_unsafe_names_stay_refused_in_any_encoding() -> None:
    limits = ZipLimits(photos=10, photo_bytes=1000, total_bytes=10**6)
    for name in ("../é.jpg", "/é.jpg", "é/../../a.jpg", "é\\a.jpg", "C:é.jpg", "é\n.jpg", "é\0.jpg"):
        archive = open_zip(io.BytesIO(without_utf8_flag({name.encode(): b"x"})), limits)
        with archive, pytest.raises(ProblemError, match="expected a path below the zip's root"):
            validate_entries(archive, limits)
