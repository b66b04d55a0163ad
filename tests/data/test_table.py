"""A CSV or Parquet file with the path and the label of each image."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import image_ids
from cifar_mlflow.data.summary import summarize
from cifar_mlflow.errors import CifarError, UsageError
from tests.data.test_folder import BLUE, LATIN1, save


def images(folder: Path, count: int = 20) -> list[str]:
    for i in range(count):
        save(folder / "images" / f"{i}.png", (i, 0, 0))
    return [f"images/{i}.png" for i in range(count)]


def config(tmp_path: Path, table: str = "labels.csv", **settings: Any) -> DataConfig:
    return DataConfig(dataset="folder", data_dir=tmp_path / table, cache_dir=tmp_path / "cache", **settings)


def write(tmp_path: Path, text: str, **settings: Any) -> ImageDataset:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")  # as Excel writes it
    return load_dataset(config(tmp_path, **settings))


def reds(dataset: ImageDataset) -> dict[int, str]:
    """Return the class of each image by its red value."""
    return {
        int(pixels[0, 0, 0]): dataset.classes[label]
        for split in ("train", "test")
        for pixels, label in zip(
            dataset.split(split).images,
            dataset.split(split).labels,
            strict=True,
        )
    }


@pytest.mark.parametrize(
    ("header", "separator"), [("path,label", ","), ("Filename;Class", ";"), ("image\tcategory", "\t")]
)
def test_each_row_is_an_image_with_its_label(tmp_path: Path, header: str, separator: str) -> None:
    names = images(tmp_path)
    rows = [f"{name}{separator}{'dog' if i % 2 else 'cat'}" for i, name in enumerate(names)]
    dataset = write(tmp_path, "\n".join([header, *rows, ""]))
    assert dataset.classes == ("cat", "dog")
    assert reds(dataset) == {i: "dog" if i % 2 else "cat" for i in range(20)}
    assert dataset.name == f"{tmp_path.name}-labels"
    assert not dataset.notes


def test_parquet_with_numbers_as_labels_and_a_column_for_the_split(tmp_path: Path) -> None:
    names = images(tmp_path, 30)
    labels = [(2, 10, 9)[i % 3] for i in range(30)]
    splits = ["Training"] * 18 + ["valid"] * 6 + ["test"] * 6
    table = pd.DataFrame({"extra": 0, "file_name": names, "label": labels, "split": splits})
    table.to_parquet(tmp_path / "labels.parquet")
    settings = config(tmp_path, "labels.parquet")
    dataset = load_dataset(settings)
    assert dataset.classes == ("2", "9", "10")
    assert summarize(dataset, settings).to_numpy().tolist() == [[6, 2, 2]] * 3
    (note,) = dataset.notes
    assert "--val-size does not apply" in note
    assert image_ids(dataset, settings, "val").tolist() == names[18:24]


def test_a_changed_label_is_noticed(tmp_path: Path) -> None:
    rows = [f"{name},{'dog' if i % 2 else 'cat'}" for i, name in enumerate(images(tmp_path))]
    first = write(tmp_path, "\n".join(["path,label", *rows]))
    assert reds(first)[4] == "cat"
    rows[4] = rows[4].replace("cat", "dog")
    second = write(tmp_path, "\n".join(["path,label", *rows]))
    assert second.digest != first.digest
    assert reds(second)[4] == "dog"
    save(tmp_path / "images/0.png", (99, 0, 0))
    assert 99 in reds(load_dataset(config(tmp_path)))


def test_paths_as_windows_writes_them_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = images(tmp_path)
    save(tmp_path / "images" / f"{LATIN1}.png", BLUE)
    rows = [f"{name},{'dog' if i % 2 else 'cat'}" for i, name in enumerate(names)]
    rows[3] = rows[3].replace("/", "\\")
    text = "\n".join(["path,label", *rows, f"images/{LATIN1}.png,cat"])
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    dataset = load_dataset(config(tmp_path))
    assert len(dataset.split("train")) + len(dataset.split("test")) == 21
    found = [image_ids(dataset, config(tmp_path, val_size=0), split).tolist() for split in ("train", "test")]
    assert sum("images/K\\xe4tzchen.png" in names for names in found) == 1


def test_a_repeated_row_counts_once(tmp_path: Path) -> None:
    rows = [f"{name},{'dog' if i % 2 else 'cat'}" for i, name in enumerate(images(tmp_path))]
    dataset = write(tmp_path, "\n".join(["path,label", *rows, "images/../images/0.png,cat"]))
    assert len(dataset.split("train")) + len(dataset.split("test")) == 20
    (note,) = dataset.notes
    assert note.startswith("Skipped 1 repeated row of ")


@pytest.mark.parametrize("other", ["{folder}/images/0.png", "images\\0.png", "./images/0.png"])
def test_an_image_in_two_splits_is_noticed_however_its_path_is_written(tmp_path: Path, other: str) -> None:
    rows = [f"{name},{'dog' if i % 2 else 'cat'},train" for i, name in enumerate(images(tmp_path))]
    leak = f"{other.format(folder=tmp_path)},cat,test"
    with pytest.raises(UsageError, match=r"two labels or splits in .*0\.png \(rows 2 and 22\)"):
        write(tmp_path, "\n".join(["path,label,split", *rows, leak]))


def test_missing_files_are_named_at_once_or_skipped(tmp_path: Path) -> None:
    rows = [f"{name},{'dog' if i % 2 else 'cat'}" for i, name in enumerate(images(tmp_path))]
    for i in (2, 5):
        (tmp_path / f"images/{i}.png").unlink()
    text = "\n".join(["path,label", *rows])
    with pytest.raises(
        CifarError, match=r"^2 files in .*labels\.csv are not images .*--skip-unreadable"
    ) as caught:
        write(tmp_path, text)
    for i in (2, 5):
        assert f"images/{i}.png (No such file or directory)" in str(caught.value)
    dataset = write(tmp_path, text, skip_unreadable=True)
    assert sorted(reds(dataset)) == [i for i in range(20) if i not in (2, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name,label\na,b", r"has no column path; its columns are name, label\. Other names .*filename"),
        ("path,kind\na,b", "has no column label; its columns are path, kind"),
        ("path,label\n0.png,cat\n1.png,\n2.png", "rows without a path or a label in .*: 3, 4"),
        ("\npath,label\n\n0.png,cat\n\n1.png,\n", "rows without a path or a label in .*: 6$"),
        ("path,label\n0.png,cat\n1.png,cat", "at least 2 classes are needed in .*; found only cat"),
        ("path,label\n0.png,cat\n0.png,dog", r"two labels or splits in .*: 0\.png \(rows 2 and 3\)"),
        ("path,label,split\n0.png,cat,train\n1.png,dog,mine", r"unknown splits in .*: 'mine' \(row 3\)"),
        ("path,label,split\n0.png,cat,train\n1.png,dog,val", "no training image in .* has the label dog"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path, text)


def test_utf16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    # This is what a spreadsheet calls Unicode text.
    (tmp_path / "labels.csv").write_text("path\tlabel\n0.png\tcat\n", encoding="utf-16")
    with pytest.raises(UsageError, match=r"labels\.csv is not UTF-8, perhaps UTF-16: save it as CSV"):
        load_dataset(config(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(
        UsageError, match=r"labels\.json is not a folder, nor a \.csv, \.tsv or \.parquet file"
    ):
        load_dataset(config(tmp_path, "labels.json"))
    (tmp_path / "labels.parquet").write_text("path,label")
    with pytest.raises(UsageError, match="is not a Parquet file"):
        load_dataset(config(tmp_path, "labels.parquet"))
    pd.DataFrame({"image": [b"1", b"2"], "label": ["a", "b"]}).to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(UsageError, match=r"column image of .* holds binary, but should hold text"):
        load_dataset(config(tmp_path, "labels.parquet"))
