"""Weights on their way to a server: over HTTP, in storage, and from a path, always with the right content."""

import hashlib
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from reval_core.engines.weight_source import check_offer, checked, make_offer, sha256_of
from reval_core.errors import InputError

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture(params=["http", "storage"])
def offer(request, tmp_path):
    url = "http://127.0.0.1:0" if request.param == "http" else f"file://{tmp_path}/bucket"
    offer = make_offer(url, "run")
    yield offer
    offer.close()


def test_the_sha256_of_a_file(weights):
    assert sha256_of(weights) == SHA256


def test_a_server_reads_what_the_run_offers(offer, weights):
    url = offer.publish(weights, "policy.safetensors")
    with checked(url, SHA256, offer.token) as copy:
        assert copy.read_bytes() == CONTENT
        assert copy != weights
    assert not copy.exists()


def test_a_copy_is_deleted_after_an_error(offer, weights):
    copies = []
    with pytest.raises(RuntimeError, match="while loading"):
        load_badly(offer.publish(weights, "policy.safetensors"), offer.token, copies)
    assert [copy.exists() for copy in copies] == [False]


def load_badly(url, token, copies):
    with checked(url, SHA256, token) as copy:
        copies.append(copy)
        assert copy.exists()
        raise RuntimeError("while loading")


def test_other_content_is_refused(offer, weights):
    url = offer.publish(weights, "policy.safetensors")
    wrong = hashlib.sha256(b"other").hexdigest()
    with (
        pytest.raises(ValueError, match=f"its SHA-256 is {SHA256} instead of {wrong}"),
        checked(url, wrong, offer.token),
    ):
        pass


def test_other_content_of_a_path_is_refused(weights):
    with checked(str(weights), SHA256) as path:
        assert path == weights
    weights.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="instead of"), checked(str(weights), SHA256):
        pass


def test_only_the_latest_weights_are_offered(offer, weights):
    first = offer.publish(weights, "first.safetensors")
    second = offer.publish(weights, "second.safetensors")
    with pytest.raises(OSError, match=r"404|first"), checked(first, SHA256, offer.token):
        pass
    with checked(second, SHA256, offer.token) as copy:
        assert copy.stat().st_size == len(CONTENT)


def test_weights_are_gone_when_the_offer_is_closed(offer, weights):
    url = offer.publish(weights, "policy.safetensors")
    offer.close()
    with pytest.raises(OSError), checked(url, SHA256, offer.token):  # noqa: PT011
        pass


def test_what_cannot_be_used_is_refused_before_work_begins():
    taken = make_offer("http://127.0.0.1:0", "run")
    try:
        used = taken.publish(Path("any"), "policy").removesuffix("/policy")
        for url in (used, "http://192.0.2.1:8100", "nowhere://bucket/run"):
            with pytest.raises(InputError, match=rf"engine.weights_url: {url} cannot be used"):
                check_offer(url)
        check_offer("http://127.0.0.1:0")
        check_offer("memory://bucket")
    finally:
        taken.close()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}])
def test_weights_are_served_only_with_the_token(weights, header):
    offer = make_offer("http://127.0.0.1:0", "run")
    try:
        url = offer.publish(weights, "policy.safetensors")
        headers = {name: value.encode().decode("latin-1") for name, value in header.items()}
        with pytest.raises(HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers))
        assert error.value.code == 401
    finally:
        offer.close()


def test_a_part_of_the_weights_is_refused(weights):
    """A connection that breaks in the middle."""
    offer = make_offer("http://127.0.0.1:0", "run")
    try:
        url = offer.publish(weights, "policy.safetensors")
        opened = offer.opened

        def shorter(path, authorization):
            found = opened(path, authorization)
            found.seek(len(CONTENT) // 2)
            return found

        offer.opened = shorter
        with pytest.raises((OSError, ValueError)), checked(url, SHA256, offer.token):
            pass
    finally:
        offer.close()
