"""The fixture `hub`: a stand-in for the Hub, and a home folder of the test's own.

The Hugging Face libraries read HF_ENDPOINT when they are imported, so `conftest.py` sets it before that, to `ENDPOINT`:
a port that this process holds all the time and answers on while a test uses `hub`. Otherwise it refuses connections at
once, so that no test reaches the internet by mistake.

HF_CONDENSE_TEST_HUB=http://... runs the tests against another server, which must know the tokens below; tests that need
faults or the server's own record are then skipped.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.hub_connection import Fault, Request
from tests.support.hub_server import HubServer

_EXTERNAL = os.environ.get("HF_CONDENSE_TEST_HUB", "").rstrip("/")
_SERVER = HubServer()
atexit.register(_SERVER.server_close)
ENDPOINT = _EXTERNAL or _SERVER.url


class StandInHub:
    """What a test sees of the Hub.

    Attributes:
        url: The address.
        token: Writes, as alice; it is in the environment too.
        read_token: Reads, as alice.
        stranger_token: Writes, as bob.
        home: HF_HOME of this test.
    """

    url, token, read_token, stranger_token = ENDPOINT, "tok_alice", "tok_read", "tok_bob"

    def __init__(self, home: Path) -> None:
        self.home = home

    def repo(self, name: str = "pets", owner: str = "alice") -> str:
        """Return the name of a repository that nobody has yet."""
        return f"{owner}/{name}-{uuid4().hex[:8]}"

    @property
    def server(self) -> HubServer:
        """The server itself; the test is skipped where another server is used."""
        if _EXTERNAL:
            pytest.skip("looks into our own stand-in Hub, and HF_CONDENSE_TEST_HUB names another one")
        return _SERVER

    @property
    def requests(self) -> list[Request]:
        """Requests answered so far; `del hub.requests[:]` starts anew."""
        return self.server.requests

    def fault(self, match: str, **kind: object) -> Fault:
        """Let the next requests that match a regular expression fail: see `Fault`."""
        fault = Fault(match, **kind)
        self.server.faults.append(fault)
        return fault

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server for a while; it refuses connections, and keeps what it stores."""
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A Hub without repositories, and an empty HF_HOME; clients write as alice unless told otherwise."""
    import datasets.config
    import huggingface_hub.constants
    from huggingface_hub import HfFileSystem, close_session

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HF_HOME", str(home))  # for the processes that a test starts
    monkeypatch.setenv("HF_TOKEN", StandInHub.token)
    places = {
        huggingface_hub.constants: {
            "HF_HOME": "",
            "HF_HUB_CACHE": "hub",
            "HF_ASSETS_CACHE": "assets",
            "HF_TOKEN_PATH": "token",
            "HF_STORED_TOKENS_PATH": "stored_tokens",
        },
        datasets.config: {
            "HF_CACHE_HOME": "",
            "HF_DATASETS_CACHE": "datasets",
            "HF_MODULES_CACHE": "modules",
            "DOWNLOADED_DATASETS_PATH": "datasets/downloads",
            "EXTRACTED_DATASETS_PATH": "datasets/downloads/extracted",
        },
    }
    for module, names in places.items():
        for name, place in names.items():
            monkeypatch.setattr(module, name, type(getattr(module, name))(home / place))
    monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # it asks another host
    _SERVER.reset()
    if not _EXTERNAL:
        _SERVER.start()
    yield StandInHub(home)
    close_session()
    _SERVER.stop()
    HfFileSystem.clear_instance_cache()
    assert not _SERVER.errors, "\n".join(_SERVER.errors)
