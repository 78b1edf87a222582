"""The API as an ordinary worker calls it: one `requests` session, time-outs, an exception for every failure.

The contestants of the benchmark share it, so that they differ in nothing but how they spend their calls.
"""

from pathlib import Path
from typing import Any

import requests

TIMEOUT = (5, 30)
"""Seconds to connect, and to wait for an answer."""


class TooManyRequestsError(Exception):
    """The API answered 429. ``retry_after`` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"429, again in {retry_after:g} s")
        self.retry_after = retry_after


class PlainApi:
    """Segmind's fine-tuning API (Fast Flux API, sections 1, 2, 4 and 6)."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base = f"{base_url}/finetune/request"
        self._session = requests.Session()
        self._session.trust_env = False
        self._headers = {"x-api-key": key}

    def _call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        url = f"{self._base}/{path}"
        reply = self._session.request(method, url, json=body, headers=self._headers, timeout=TIMEOUT)
        if reply.status_code == 429:
            raise TooManyRequestsError(float(reply.headers.get("Retry-After", "1")))
        reply.raise_for_status()
        return reply.json()

    def presign(self, name: str) -> dict[str, str]:
        """Ask for an upload: ``presigned_url`` and ``s3_url``."""
        body = {"name": name, "extension": ".zip", "public": True}
        found: dict[str, str] = self._call("GET", "upload/pre-signed-url", body)
        return found

    def upload(self, presigned_url: str, path: Path) -> None:
        """Put the dataset. This is not an API call and does not count."""
        headers = {"Content-Type": "application/zip", "x-amz-acl": "public-read"}
        self._session.put(presigned_url, data=path.read_bytes(), headers=headers, timeout=TIMEOUT).raise_for_status()

    def submit(self, name: str, dataset_url: str) -> str:
        """Start a training; returns its id."""
        body = {
            "name": name,
            "data_source_path": dataset_url,
            "instance_prompt": "photo of 1MAN",
            "trigger_word": "1MAN",
            "base_model": "FAST_FLUX",
            "theme": "subject",
            "segmind_public": False,
            "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
        }
        return str(self._call("POST", "submit", body)["finetune_id"])

    def details(self, finetune_id: str) -> dict[str, Any]:
        """Return what the API knows of a training."""
        found: dict[str, Any] = self._call("GET", "details", {"request_id": finetune_id})["finetune"]
        return found

    def download(self, url: str, path: Path) -> None:
        """Fetch the weights; the file appears when it is whole. This is not an API call and does not count."""
        part = path.with_suffix(".part")
        with self._session.get(url, stream=True, timeout=TIMEOUT) as reply, part.open("wb") as file:
            reply.raise_for_status()
            for chunk in reply.iter_content(1 << 16):
                file.write(chunk)
        part.replace(path)
