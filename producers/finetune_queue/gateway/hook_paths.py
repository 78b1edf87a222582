"""The unguessable path of each account's webhook, made from one secret, so that nothing has to be stored."""

import hmac
from base64 import urlsafe_b64encode

from pydantic import SecretStr


def hook_token(secret: SecretStr, account: str) -> str:
    """Return what an account's webhook has to know: 256 bits that only the secret gives."""
    digest = hmac.digest(secret.get_secret_value().encode(), f"finetune-queue hook {account}".encode(), "sha256")
    return urlsafe_b64encode(digest).decode().rstrip("=")


def hook_path(secret: SecretStr, account: str) -> str:
    """Return the path to register at Segmind."""
    return f"/hooks/{account}/{hook_token(secret, account)}"


def token_fits(secret: SecretStr, account: str, token: str) -> bool:
    """Tell whether it is the account's token, in the same time whatever is wrong with it."""
    return hmac.compare_digest(hook_token(secret, account).encode(), token.encode(errors="replace"))
