"""Secrets in addresses are removed; the rest of a text stays as it is."""

import pytest

from cifar_mlflow.errors import CifarError
from cifar_mlflow.redact import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("API request to http://alice:secret@host:5000/api failed", "http://alice:***@host:5000/api"),
        ("postgresql+psycopg://u:se/cr@et@db/name", "postgresql+psycopg://u:***@db/name"),
        ("http://:secret@host/", "http://:***@host/"),
        ("http://a:secret@b and http://c:secret@d", "http://a:***@b and http://c:***@d"),
        ("http://a:secret@b,http://c:secret@d", "http://a:***@b,http://c:***@d"),
        ("postgresql://db/x?user=a&password=secret&port=1", "?user=a&password=***&port=1"),
        ("https://bucket/x?X-Amz-Signature=secret", "?X-Amz-Signature=***"),
        ("https://host/x?api_key=secret#part", "?api_key=***#part"),
        ("'http://a:12345secret@b'", "'http://a:***@b'"),
    ],
)
def test_secrets_are_removed(text: str, shown: str) -> None:
    assert "secret" not in redact(text)
    assert "se/cr" not in redact(text)
    assert shown in redact(text)
    assert str(CifarError(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/#/models/cifar10@champion",
        "models:/cifar10@champion",
        "sqlite:////a/folder/mlflow.db",
        "postgresql://alice@host:5432/db",
        "mail alice@example.org or see http://host:80",
        "12:30 @home",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert redact(text) == text
