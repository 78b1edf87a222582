"""The control API under /_sandbox: faults, trainings, settings, report, reset. It needs no key and no call counts."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from segmind_sandbox.faults import read_fault
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.settings import RateText, SandboxSettings
from segmind_sandbox.trainings import STATUSES, Training

Endpoint = Callable[[Request], Awaitable[Response]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SettingsChange(_Body):
    """The settings that can change at run time, for jobs and calls from then on. What values they may have is checked
    by SandboxSettings."""

    training_seconds: float | None = None
    deploy_seconds: float | None = None
    weights_bytes: int | None = None
    list_carries_weights_url: bool | None = None
    list_lag_seconds: float | None = None
    private_weights: bool | None = None
    link_seconds: int | None = None
    retry_after: bool | None = None
    rate_limit: RateText | None = None
    rate_algorithm: Literal["sliding", "fixed"] | None = None
    credits: float | None = None


class TrainingChange(_Body):
    """What can be done to a job from outside."""

    hold: bool | None = None
    hidden: bool | None = None
    fail: str | None = None
    status_word: str | None = None
    finish: Literal[True] | None = None
    replace_weights: Literal[True] | None = None


class ResetWhat(_Body):
    """``all`` goes back to the start; the others keep the jobs."""

    what: Literal["all", "report", "faults", "limits"] = "all"


class Control:
    """The endpoints."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[BaseRoute]:
        """The routes of the control API."""
        return [
            _route("/health", self.health, "GET"),
            _route("/report", self.report, "GET"),
            _route("/reset", self.reset, "POST"),
            _route("/settings", self.change_settings, "PATCH"),
            _route("/faults", self.list_faults, "GET"),
            _route("/faults", self.add_fault, "POST"),
            _route("/faults", self.clear_faults, "DELETE"),
            _route("/faults/{number:int}", self.remove_fault, "DELETE"),
            _route("/trainings", self.list_trainings, "GET"),
            _route("/trainings/{finetune_id}", self.change_training, "PATCH"),
            _route("/webhooks/{webhook_id}/test", self.test_webhook, "POST"),
        ]

    async def health(self, _request: Request) -> Response:
        """Ready."""
        return JSONResponse({"status": "ok"})

    async def report(self, request: Request) -> Response:
        """What the sandbox saw; ?window=SECONDS for another window than the limits'."""
        window = request.query_params.get("window")
        if window is None:
            return JSONResponse(self._sandbox.report(None))
        seconds = float(window)
        if not 0 < seconds < math.inf:
            raise ValueError(f"window must be a number of seconds above 0, not {window}")
        return JSONResponse(self._sandbox.report(seconds))

    async def reset(self, request: Request) -> Response:
        """Forget everything, or one part."""
        what = ResetWhat.model_validate(await _json(request)).what
        if what == "all":
            await self._sandbox.reset()
        elif what == "report":
            self._sandbox.restart_report()
        elif what == "faults":
            self._sandbox.faults.clear()
        else:
            self._sandbox.restart_limits()
            self._sandbox.refill()
        return JSONResponse({"reset": what})

    async def change_settings(self, request: Request) -> Response:
        """Change settings; a new rate limit starts with empty windows, new credits are what each account has then."""
        change = SettingsChange.model_validate(await _json(request)).model_dump(exclude_none=True)
        sandbox = self._sandbox
        sandbox.settings = SandboxSettings.model_validate({**sandbox.settings.model_dump(), **change})
        if {"rate_limit", "rate_algorithm"} & change.keys():
            sandbox.restart_limits()
        if "credits" in change:
            sandbox.refill()
        return JSONResponse(change)

    async def list_faults(self, _request: Request) -> Response:
        """The armed faults."""
        return JSONResponse({"faults": self._sandbox.faults.describe()})

    async def add_fault(self, request: Request) -> Response:
        """Arm a fault."""
        return JSONResponse({"id": self._sandbox.faults.add(read_fault(await _json(request)))})

    async def clear_faults(self, _request: Request) -> Response:
        """Disarm all faults."""
        self._sandbox.faults.clear()
        return JSONResponse({"faults": []})

    async def remove_fault(self, request: Request) -> Response:
        """Disarm one fault."""
        number = request.path_params["number"]
        if not self._sandbox.faults.remove(number):
            return JSONResponse({"error": f"no fault {number}"}, 404)
        return JSONResponse({"id": number})

    async def list_trainings(self, _request: Request) -> Response:
        """All jobs of all accounts, oldest first, with what the API does not show."""
        now = self._sandbox.clock()
        return JSONResponse({"trainings": [_describe(training, now) for training in self._sandbox.trainings]})

    async def change_training(self, request: Request) -> Response:
        """Hold, release, fail, hide or finish a job, or give it other weights."""
        training = self._sandbox.trainings.get(request.path_params["finetune_id"])
        if training is None:
            return JSONResponse({"error": "no such training"}, 404)
        change = TrainingChange.model_validate(await _json(request))
        now = self._sandbox.clock()
        if change.hold is not None:
            training.hold(now) if change.hold else training.release(now)
        if change.finish:
            training.finish(now)
        if change.hidden is not None:
            training.hidden = change.hidden
        if change.fail is not None:
            training.fail(change.fail, now)
        if change.status_word is not None:
            training.word = change.status_word
        if change.replace_weights:
            training.weights_version += 1
        self._sandbox.trainings.schedule(training)
        return JSONResponse(_describe(training, now))

    async def test_webhook(self, request: Request) -> Response:
        """Send a sample payload, as the console's test button does."""
        webhook_id = request.path_params["webhook_id"]
        for account in self._sandbox.accounts.values():
            webhook = self._sandbox.webhooks.get(account.name, webhook_id)
            if webhook is not None:
                self._sandbox.webhooks.send(webhook, {"event_type": "TEST", "status": STATUSES[-1]})
                return JSONResponse({"webhook_id": webhook_id})
        return JSONResponse({"error": "no such webhook"}, 404)


async def _json(request: Request) -> Any:
    return await request.json() if await request.body() else {}


def _describe(training: Training, now: float) -> dict[str, Any]:
    return {
        **training.details(now),
        "request": training.request.model_dump(mode="json", exclude_unset=True),
        "created_at": training.created_at.isoformat(),
        "account": training.account,
        "model_id": training.model_id,
        "weights_url": training.weights_url,
        "hidden": training.hidden,
        "held": training.held_at is not None or training.hold_in_training,
    }


def _sentence(found: ErrorDetails) -> str:
    """Say what is wrong with one field: of a fault's, which lies below its kind, the last name is enough."""
    said = found["msg"].removeprefix("Value error, ")
    return f"{found['loc'][-1]}: {said}" if found["loc"] else said


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    """A route under the control API's base; a wrong body or query is answered by 400."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ValidationError as refusal:
            return JSONResponse({"error": "; ".join(map(_sentence, refusal.errors()))}, 400)
        except (ValueError, RecursionError) as refusal:  # as json's errors are
            return JSONResponse({"error": str(refusal)}, 400)

    return Route(f"/_sandbox{path}", guarded, methods=[method])
