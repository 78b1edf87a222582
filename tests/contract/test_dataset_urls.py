"""Which addresses a request's dataset may have: the schema and the model take and refuse the same ones."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.published import validator
from finetune_queue.contract import FineTuneRequest, RequestError, parse_request
from finetune_queue.contract.dataset_url import missing_part
from finetune_queue.place_url import read_place
from support.samples import sample

REST = r"[a:@/?#\n. %ü\\\[\]\x85]{0,8}"


def taken(dataset: str) -> bool:
    try:
        parse_request(sample(dataset=dataset))
    except RequestError:
        return False
    return True


@given(st.from_regex(rf"(https|file|s3|C|)(://|:/|//|){REST}", fullmatch=True))
def test_the_schema_refuses_no_dataset_that_is_taken(dataset: str) -> None:
    assert validator("request").is_valid(sample(dataset=dataset)) or not taken(dataset)


@given(st.from_regex(rf"(https?|file|s3|gs|az)://{REST}", fullmatch=True))
def test_the_schema_takes_no_url_that_is_refused(dataset: str) -> None:
    assert validator("request").is_valid(sample(dataset=dataset)) is taken(dataset)


@pytest.mark.parametrize(
    "dataset",
    [
        "s3://data/my good.zip",
        "gs://data/schön/ß.zip",
        "az://data/a%20b+c?d#e[1]\\.zip",
        "https://h/my%20good.zip?a[]=1",
        # An at sign that stands before no host's name parts no password from it.
        "https://h/a@b.zip",
        "https://h?x=a:b@c",
        "./photos@2x",
        "//a@b/photos",
        "/a://b@c",
    ],
)
def test_a_dataset_is_taken_as_it_is(dataset: str) -> None:
    assert validator("request").is_valid(sample(dataset=dataset))
    assert parse_request(sample(dataset=dataset)).dataset == dataset


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ("s3://data/my\ngood.zip", "should hold no line breaks"),
        ("./my\tphotos", "should hold no line breaks"),
        ("https://h/my good.zip", "percent-encoded"),
        ("HTTPS://h/schön.zip", "percent-encoded"),
        ("https://h\\@x/a.zip", "should hold no user name"),
        ("https://h/a\\b.zip", "percent-encoded"),
        ("file:///srv/my good.zip", "percent-encoded"),
        ("s3://my data/good.zip", "cannot be read as a URL"),
        ("https://bücher.example/a.zip", "host name in ASCII"),
        ("https://[2606:4700::1111]/a.zip", "IPv6 addresses are not accepted"),
    ],
)
def test_what_is_no_url_of_a_dataset_is_refused(dataset: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_request(sample(dataset=dataset))


@pytest.mark.parametrize(
    ("dataset", "meant"),
    [
        ("HTTPS://EXAMPLE.COM:443/A.zip?Sig=X", "https://example.com:443/A.zip?Sig=X"),
        ("Http://h", "http://h"),
        ("S3://bucket/Key.zip", "s3://bucket/Key.zip"),
        ("FILE:///srv/A.zip", "file:///srv/A.zip"),
    ],
)
def test_the_case_of_a_scheme_and_a_host_does_not_count(dataset: str, meant: str) -> None:
    assert validator("request").is_valid(sample(dataset=dataset))
    assert parse_request(sample(dataset=dataset)).dataset == meant


@given(st.from_regex(rf"(https?|file|s3|GS)://(\.\.?|localhost|){REST}", fullmatch=True))
def test_what_no_dataset_can_lie_at_is_known(dataset: str) -> None:
    """As they find it that would look for it later."""
    if not taken(dataset):
        return
    lacking = missing_part(dataset)
    if dataset.startswith("http"):
        assert (lacking is None) is bool(urlsplit(dataset).hostname)
        return
    try:
        place = read_place(dataset)
    except ValueError as error:
        named = "plain bucket name" in str(error)  # but not plainly
    else:
        named = isinstance(place, Path) or bool(place.key)
    assert named or lacking is not None


@pytest.mark.parametrize(
    "dataset",
    [
        "https://me:hidden-pw@h/x.zip",
        "HTTP://hidden-pw@h",
        "s3://hidden-pw@b/k",
        "https://[hidden-pw@h/",
        "https://hidden-pw@\u2100/",
    ],
)
def test_a_password_in_a_dataset_s_url_is_refused_and_never_quoted(dataset: str) -> None:
    body = sample(dataset=dataset)
    assert not validator("request").is_valid(body)
    for read in (parse_request, FineTuneRequest.model_validate):
        with pytest.raises(ValueError, match="dataset") as caught:
            read(body)
        assert "hidden-pw" not in str(caught.value)
