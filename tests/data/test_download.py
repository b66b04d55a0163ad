import multiprocessing
import resource
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.data.download import RetryPolicy, download, file_md5, log_line
from cifar_mlflow.data.original import ARCHIVE_NAME
from cifar_mlflow.errors import CifarError
from tests.data.conftest import Mirrors, Published

QUICK = RetryPolicy(stall=0.3, attempts=3, pause=0.01)


def fetch(target: Path, published: Published, *urls: str) -> None:
    download(urls, target, published.archive.md5, "The hint.", QUICK)


def is_whole(target: Path, published: Published) -> bool:
    leftovers = {path.name for path in target.parent.iterdir()} - {target.name, f"{target.name}.lock"}
    return file_md5(target) == published.archive.md5 and not leftovers


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / ARCHIVE_NAME


@pytest.mark.parametrize(
    "behaviour",
    ["good", "cut", "slow", "without-ranges", "too-much", "too-much-without-ranges"],
)
def test_a_mirror_that_has_the_file_is_used(
    behaviour: str, target: Path, published: Published, mirrors: Mirrors
) -> None:
    fetch(target, published, mirrors.url(behaviour))
    assert is_whole(target, published)


@pytest.mark.parametrize("behaviour", ["missing", "wrong", "stall", "too-little"])
def test_the_next_mirror_is_tried(
    behaviour: str, target: Path, published: Published, mirrors: Mirrors
) -> None:
    fetch(target, published, mirrors.url(behaviour), mirrors.url("good"))
    assert is_whole(target, published)
    assert mirrors.count(behaviour) >= 1


def test_a_stalled_connection_is_given_up(target: Path, published: Published, mirrors: Mirrors) -> None:
    with pytest.raises(CifarError, match="no answer in time"):
        fetch(target, published, mirrors.url("stall"))
    assert mirrors.count("stall") == QUICK.attempts


def test_mirrors_are_tried_in_the_order_given(target: Path, published: Published, mirrors: Mirrors) -> None:
    fetch(target, published, mirrors.url("missing"), mirrors.url("good"), mirrors.url("slow"))
    assert [path.split("/")[1] for path, _ in mirrors.requests] == ["missing", "good"]


def test_a_cut_download_is_resumed(target: Path, published: Published, mirrors: Mirrors) -> None:
    fetch(target, published, mirrors.url("cut"))
    piece = len(mirrors.content) * 2 // 5
    assert [wanted for _, wanted in mirrors.requests] == [None, f"bytes={piece}-", f"bytes={2 * piece}-"]


def test_a_later_start_resumes_the_download_of_an_earlier_one(
    target: Path, published: Published, mirrors: Mirrors
) -> None:
    with pytest.raises(CifarError, match="bytes are kept, to resume from"):
        fetch(target, published, mirrors.url("stall"))
    kept = target.with_name(f"{ARCHIVE_NAME}.part").stat().st_size
    assert kept >= 1000
    mirrors.requests.clear()
    fetch(target, published, mirrors.url("good"))
    assert mirrors.requests == [(f"/good/{ARCHIVE_NAME}", f"bytes={kept}-")]
    assert is_whole(target, published)


@pytest.mark.parametrize("length", [500, 10_000_000])
@pytest.mark.parametrize("behaviour", ["good", "without-ranges"])
def test_a_wrong_partial_file_is_downloaded_again_from_the_same_mirror(
    length: int, behaviour: str, target: Path, published: Published, mirrors: Mirrors
) -> None:
    target.parent.mkdir()
    target.with_name(f"{ARCHIVE_NAME}.part").write_bytes(bytes(length))
    fetch(target, published, mirrors.url(behaviour))
    assert is_whole(target, published)


def test_a_damaged_file_in_place_is_replaced(target: Path, published: Published, mirrors: Mirrors) -> None:
    target.parent.mkdir()
    target.write_bytes(b"damaged")
    fetch(target, published, mirrors.url("good"))
    assert is_whole(target, published)


def test_an_existing_file_is_not_downloaded_again(
    target: Path, published: Published, mirrors: Mirrors
) -> None:
    fetch(target, published, mirrors.url("good"))
    fetch(target, published, mirrors.url("good"))
    assert mirrors.count("good") == 1


def test_a_file_with_a_wrong_md5_is_deleted(target: Path, published: Published, mirrors: Mirrors) -> None:
    with pytest.raises(CifarError, match="wrong md5"):
        fetch(target, published, mirrors.url("wrong"))
    assert [path.name for path in target.parent.iterdir()] == [f"{ARCHIVE_NAME}.lock"]


def test_an_error_lists_the_attempts_and_the_alternatives(
    tmp_path: Path, mirrors: Mirrors, dead_url: str
) -> None:
    secret = "https://me:hunter2@example.invalid/a.tar.gz"
    config = DataConfig(
        mirrors=(mirrors.url("missing"), dead_url, secret, "ftp://example.invalid/a"), cache_dir=tmp_path
    )
    with pytest.raises(CifarError) as caught:
        load_dataset(config)
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert f"{mirrors.url('missing')}: HTTP 404" in text
    assert f"{dead_url}: Connection refused" in text
    assert "ftp://example.invalid/a: not an http" in text
    assert "--dataset sample" in text
    assert "--data-dir or CIFAR10_DIR" in text
    assert "hunter2" not in text
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("have", "total", "speed", "text"),
    [
        (20_000_000, 170_498_071, 60_000, "20 of 170 MB, 0.06 MB/s, 42 min left"),
        (169_000_000, 170_498_071, 60_000, "169 of 170 MB, 0.06 MB/s, 25 s left"),
        (20_000_000, None, 60_000, "20 MB, 0.06 MB/s"),
    ],
)
def test_log_lines_estimate_the_remaining_time(have: int, total: int | None, speed: float, text: str) -> None:
    assert log_line(have, total, speed) == text


def _download_in_process(url: str, target: Path, md5: str, start: Barrier) -> None:
    start.wait(30)
    download((url,), target, md5, "", QUICK)


def test_two_processes_download_once(target: Path, published: Published, mirrors: Mirrors) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (mirrors.url("slow"), target, published.archive.md5, spawn.Barrier(2))
    processes = [spawn.Process(target=_download_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert mirrors.count("slow") == 1
    assert is_whole(target, published)


def _download_with_little_room(
    url: str, target: Path, md5: str, errors: "multiprocessing.Queue[str]"
) -> None:
    # A limit on file sizes simulates a full disk: both make a write fail.
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        download((url,), target, md5, "", QUICK)
    except CifarError as error:
        errors.put(str(error))


def test_a_failed_write_is_not_reported_as_a_fault_of_the_mirror(
    target: Path, published: Published, mirrors: Mirrors
) -> None:
    spawn = multiprocessing.get_context("spawn")
    errors: multiprocessing.Queue[str] = spawn.Queue()
    arguments = (mirrors.url("good"), target, published.archive.md5, errors)
    process = spawn.Process(target=_download_with_little_room, args=arguments)
    process.start()
    text = errors.get(timeout=30)
    process.join(30)
    assert "cannot be written" in text
    assert "--cache-dir" in text
    assert mirrors.count("good") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(target: Path, published: Published, mirrors: Mirrors) -> None:
    target.parent.mkdir()
    target.with_name(f"{ARCHIVE_NAME}.part").symlink_to("/dev/full")
    with pytest.raises(CifarError, match=r"\.part: cannot be written \(No space left.*free some"):
        fetch(target, published, mirrors.url("good"))
