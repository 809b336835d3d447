"""A storage that cannot be used is said in one sentence, before anything runs."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechft_ray.cli import main
from speechft_ray.cluster.progress import perform_on_worker
from speechft_ray.core.errors import StorageDown, UserError
from speechft_ray.core.records import Place
from speechft_ray.storage import bucket as buckets
from speechft_ray.storage import open as opening
from speechft_ray.storage.address import append_suffix, is_url, parse_url, resolve_storage
from speechft_ray.storage.open import explain_other_storage, open_existing, open_store
from tests.cluster.worker_jobs import job, perform
from tests.storage.s3_server import S3Server


def test_urls_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_storage("runs") == str(tmp_path / "runs")
    assert resolve_storage("s3:/bucket/runs") == str(tmp_path / "s3:" / "bucket" / "runs")
    assert resolve_storage("file:///data/my%20runs") == "/data/my runs"
    assert resolve_storage("S3://bucket//a/b/") == "s3://bucket/a/b"
    assert resolve_storage("s3a://bucket") == "s3://bucket"
    assert resolve_storage("gcs://bucket/a") == "gs://bucket/a"
    assert resolve_storage("abfs://container@account/a") == "abfs://container@account/a"
    assert append_suffix("s3://bucket/a", "-smoke") == "s3://bucket/a-smoke"
    assert is_url("s3://bucket") and not is_url("/data/runs") and not is_url("C:/runs")


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [
        ("s4://bucket/a", r"unknown scheme `s4`\. Allowed: abfs, .* Or give a folder"),
        ("s3://", r"names no bucket: write s3://BUCKET/PREFIX"),
        ("s3://bucket/../a", r"has a prefix with `\.`, `\.\.`"),
        ("s3://key:secret@bucket/a", r"more than a bucket and a prefix"),
        ("s3://bucket/a?region=x", r"more than a bucket and a prefix"),
    ],
)
def test_bad_urls(storage: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve_storage(storage)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'speechft_ray\[s3\]' on every node"):
        open_store("s3://bucket/a")


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere/a: there is no bucket `nowhere` there"):
        open_store("s3://nowhere/a")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("Error after 102.425301ms, after 1 retries - error sending request", "does not answer"),
        ("Error after 401.403301ms, after 1 retries - error sending request", "does not answer"),
        ("Client error with status 301 Moved Permanently", "set AWS_REGION to its region"),
        ("Received redirect without LOCATION", "set AWS_REGION to its region"),
        ("The server answered with 401.", "refuses `storage.json` to these credentials"),
        ("Client error with status 403 Forbidden", "refuses `storage.json` to these credentials"),
    ],
)
def test_the_time_of_an_error_is_not_its_status(s3: S3Server, answer: str, sentence: str) -> None:
    bucket = buckets.Bucket(parse_url("s3://speech/a"))
    assert sentence in bucket._explain("storage.json", RuntimeError(f"Generic S3 error: {answer}"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up at the first failure."""
    monkeypatch.setattr(buckets, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(buckets, "_PAUSES_SECONDS", (None,))


def test_a_server_that_is_not_there(
    s3: S3Server,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["ls", "--storage", "s3://speech/a"]) == 2
    text = capsys.readouterr().err
    assert "the storage s3://speech/a does not answer" in text and "AWS_ENDPOINT_URL" in text
    assert len(text.splitlines()) == 1


def test_a_server_that_goes_away_ends_resumably(
    s3: S3Server, url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(url)
    s3.set_faults(1.0)
    with pytest.raises(StorageDown, match=r"does not answer .*then run the same command again"):
        store.look_again("merge", "abc")

    def fail(*arguments: object, **options: object) -> None:
        raise StorageDown("away")

    monkeypatch.setattr("speechft_ray.commands.listing.print_sweeps", fail)
    s3.set_faults(0.0)
    assert main(["ls", "--storage", url]) == 75


def test_credentials_that_are_missing(
    s3: S3Server, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.169.254")
    with pytest.raises(UserError, match=r"no credentials of S3 were found on this node: set AWS_"):
        open_store("s3://speech/a")


def test_a_bucket_that_refuses(s3: S3Server) -> None:
    bucket = buckets.Bucket(parse_url("s3://speech/a"))
    error = PermissionError("403 Forbidden <Code>AccessDenied</Code>")
    sentence = bucket._explain("storage.json", error)
    assert (
        "S3 refuses `storage.json` to these credentials" in sentence and "AccessDenied" in sentence
    )


def test_a_marker_that_is_none(s3: S3Server, url: str) -> None:
    buckets.Bucket(parse_url(url)).write("storage.json", b"[1]")
    with pytest.raises(UserError, match=r"storage.json is not the marker of a storage"):
        open_store(url)


def test_a_node_with_another_bucket_or_none_says_so(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(storage=url, storage_id="another", encoder="none")
    assert "sees another bucket than the driver" in (explain_other_storage(place) or "")
    fine = place.model_copy(update={"storage_id": opening.mark_storage(open_store(url))})
    assert explain_other_storage(fine) is None
    opening._open_bucket.cache_clear()
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    assert "cannot use the storage" in (explain_other_storage(fine) or "")


def open_at_a_worker(url: str) -> str | None:
    """Opens a storage as a worker that starts, and returns why its node is unfit."""
    opening._open_bucket.cache_clear()
    return explain_other_storage(Place(storage=url, encoder="none"))


def test_an_object_store_that_is_away_when_a_worker_starts_is_waited_for(
    s3: S3Server, url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(url)
    s3.set_faults(1.0)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        s3.set_faults(0.0 if len(waits) == 2 else 1.0)

    monkeypatch.setattr(opening, "time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
    assert open_at_a_worker(url) is None and len(waits) == 2


def test_an_object_store_that_stays_away_is_no_matter_of_one_node(
    s3: S3Server, url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "RETRY_SECONDS", 0.0)
    open_store(url)
    s3.set_faults(1.0)
    opening._open_bucket.cache_clear()
    place = Place(storage=url, encoder="none")
    outcome = perform_on_worker(perform, job("succeed"), place, progress_actor=None)
    assert outcome.cannot_store == "storage down" and outcome.unfit_node is None
    assert "on node" in str(outcome.error) and "does not answer" in str(outcome.error)


def test_a_node_without_credentials_is_unfit(
    s3: S3Server, url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.169.254")
    assert "no credentials of S3" in (open_at_a_worker(url) or "")


@pytest.mark.parametrize(
    ("number", "text"), [("-1", "not negative"), ("much", "SPEECHFT_STORAGE_CACHE_GB")]
)
def test_bad_budgets(
    s3: S3Server, url: str, number: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHFT_STORAGE_CACHE_GB", number)
    with pytest.raises(UserError, match=text):
        open_store(url)


def test_a_cache_folder_that_cannot_be_written(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SPEECHFT_CACHE to a folder of this node"):
        open_store(url)


def test_a_bucket_without_a_database_on_this_node_says_so(
    s3: S3Server, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["ui", "--storage", url], ["ui", url], ["ui", "alpha", "--storage", url]):
        assert main(arguments) == 2
        text = capsys.readouterr().err
        assert f"no sweep of {url} has logged to a database on this node yet" in text
        assert len(text.splitlines()) == 1, text


def test_a_storage_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no storage folder"):
        open_existing(tmp_path / "nowhere")
