"""The system that is put to the test: real processes, two accounts, short times, and secrets that nobody may see."""

import hashlib
import io
import json
import random
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from pydantic import SecretStr

from finetune_chaos.outside import HOOK, OWN, Outside
from finetune_chaos.script import ACCOUNTS
from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer
from segmind_sandbox.testing import SandboxControl

LIMITS = {"default": "40/4", "second": "20/4"}
"""Calls per seconds."""

STREAM, LIST, QUEUE = "chaos-stream", "chaos-list", "chaos"
"""Names of the sinks in Redis."""

WEIGHTS_BYTES = 65_536

LEASE = 3.0

SETTLED = 10.0
"""Seconds after which a submit has ended and every list shows it: the call's time-out, and the settle time."""

TIMES = {
    "FINETUNE_LEASE": f"{LEASE:g}",
    "FINETUNE_HANDOVER": "2",
    "FINETUNE_POLL_MIN_INTERVAL": "0.5",
    "FINETUNE_POLL_SHARE": "0.2",
    "FINETUNE_UNSEEN_LIMIT": "6",
    "FINETUNE_TRAINING_LIMIT": "45",
    "FINETUNE_BACKOFF_BASE": "0.2",
    "FINETUNE_BACKOFF_MAX": "2",
    "FINETUNE_SHUTDOWN_TIMEOUT": "3",
    "SEGMIND_CONNECT_TIMEOUT": "2",
    "SEGMIND_READ_TIMEOUT": "3",
    "SEGMIND_CALL_TIMEOUT": "3",
    # Longer than the 5 s that a call may start late, and the 2 s by which a list may lag.
    "FINETUNE_SETTLE_TIME": "7.5",
}
"""An hour in a minute: everything that takes long in production is short here."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What nobody may see; made from the seed, so that a run can be repeated."""

    api_keys: dict[str, str]
    signing: str
    hook: str
    sink_path: str

    @classmethod
    def make(cls, seed: int) -> "Secrets":
        """Make them."""
        chance = random.Random(f"secrets {seed}")

        def word() -> str:
            return chance.randbytes(16).hex()

        signing = "whsec_" + b64encode(chance.randbytes(24)).decode()
        return cls({name: f"SG_{word()}" for name in ACCOUNTS}, signing, word(), word())

    def hook_paths(self) -> dict[str, str]:
        """Return where the gateway takes each account's webhooks."""
        return {account: hook_path(SecretStr(self.hook), account) for account in ACCOUNTS}

    def all(self) -> dict[str, str]:
        """Return each by what it is called in evidence."""
        tokens = {f"hook token of {name}": path.rpartition("/")[2] for name, path in self.hook_paths().items()}
        keys = {f"API key of {name}": key for name, key in self.api_keys.items()}
        return {**keys, **tokens, "signing secret": self.signing.removeprefix("whsec_"), "hook secret": self.hook}


class Ground(LocalStack):
    """The stack with two accounts."""

    def __init__(self, folder: Path, secrets: Secrets, outside: Outside, *, workers: int, training: float) -> None:
        self._secrets = secrets
        super().__init__(
            folder,
            workers=workers,
            threads=6,
            gateway=True,
            sandbox={
                "SANDBOX_API_KEYS": json.dumps({secrets.api_keys[name]: LIMITS[name] for name in ACCOUNTS}),
                "SANDBOX_TRAINING_SECONDS": f"{training:g}",
                "SANDBOX_DEPLOY_SECONDS": "0.5",
                "SANDBOX_WEIGHTS_BYTES": str(WEIGHTS_BYTES),
                "SANDBOX_WEBHOOK_URL": outside.url(HOOK),
            },
            settings={
                **TIMES,
                "FINETUNE_SINKS": f"stream://{STREAM}?events=all {outside.url(OWN)}/{secrets.sink_path}",
                "FINETUNE_SIGNING_SECRET": secrets.signing,
                "FINETUNE_HOOK_SECRET": secrets.hook,
                "FINETUNE_GATEWAY_RATE_LIMIT": "1000/1",
                "FINETUNE_LOG_FORMAT": "json",
            },
        )
        # What Redis has confirmed must be there after a kill, also what it confirmed in its last second.
        self.valkey = ValkeyServer(self.folder / "valkey", appendfsync="always")

    @property
    def worker_env(self) -> dict[str, str]:
        """The variables of a worker: both accounts in place of the one."""
        accounts = {name: {"api_key": self._secrets.api_keys[name], "rate_limit": LIMITS[name]} for name in ACCOUNTS}
        one = {"SEGMIND_API_KEY", "SEGMIND_RATE_LIMIT"}
        env = {name: value for name, value in super().worker_env.items() if name not in one}
        return {**env, "SEGMIND_ACCOUNTS": json.dumps(accounts)}

    @property
    def artifacts(self) -> Path:
        """Where the weights go."""
        return Path(urlsplit(self.settings_env["FINETUNE_ARTIFACT_URL"]).path)

    def stage(self, archive: bytes) -> str:
        """Put the dataset where workers read it; returns its URL."""
        path = self.folder / "staging" / f"{hashlib.sha256(archive).hexdigest()}.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(archive)
        return path.as_uri()


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that runs. ``staged`` is the URL of the dataset that workers read, ``control`` the sandbox's."""

    ground: Ground
    outside: Outside
    control: SandboxControl
    secrets: Secrets
    staged: str


@contextmanager
def prepared(folder: Path, seed: int, *, workers: int, training: float) -> Iterator[Scene]:
    """Start everything, and end it after the block."""
    secrets = Secrets.make(seed)
    archive = make_dataset(seed)
    with ExitStack() as stack:
        outside = stack.enter_context(Outside(archive, secrets.signing))
        ground = stack.enter_context(Ground(folder, secrets, outside, workers=workers, training=training))
        outside.gateway = {name: ground.gateway_url + path for name, path in secrets.hook_paths().items()}
        control = SandboxControl(ground.sandbox_url)
        stack.callback(control.close)
        yield Scene(ground, outside, control, secrets, ground.stage(archive))


def make_dataset(seed: int) -> bytes:
    """Make a small ZIP of pictures with captions, the same for the same seed."""
    chance = random.Random(f"dataset {seed}")
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for number in range(4):
            picture = io.BytesIO()
            Image.frombytes("RGB", (8, 8), chance.randbytes(8 * 8 * 3)).resize((64, 64)).save(picture, "JPEG")
            archive.writestr(f"photo{number}.jpg", picture.getvalue())
            archive.writestr(f"photo{number}.txt", f"a photo of 1MAN, number {number}\n")
    return body.getvalue()
