"""One account's budget as a state machine: how a step happens, and what must then hold by what happened before.

Nothing here is read from what the scripts keep, but for who waits, and how many slots are taken.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine

from finetune_queue.contract import JobRecord, JobState, WaitReason, new_job_id
from finetune_queue.store import (
    SWEEP,
    AccountLimits,
    Accounts,
    AlreadySweptError,
    Budget,
    CallClass,
    Change,
    JobStore,
    NoSlot,
    Slot,
    SweepClock,
    keys,
    room_score,
)
from support.samples import sample_request
from support.simulation import Clock

WINDOW, CALL_TIMEOUT, HANDOVER = 30.0, 20.0, 15.0
TRAINING_LIMIT = 3600.0
FOREVER = 1e9


@dataclass(eq=False)
class Call:
    """One that took a slot. Times in real seconds; it arrives at most once."""

    slot: Slot
    holder: str
    began: float
    submit: bool
    arrived: bool = False  # at Segmind
    under_way: bool = True  # it may still arrive
    open: bool = True  # its caller waits for the answer


@dataclass
class Parts:
    """What the machine works on."""

    client: Any
    clock: Clock
    budget: Budget
    accounts: Accounts
    sweep_clock: SweepClock
    jobs: JobStore


class BudgetSteps(RuleBasedStateMachine):
    """An account's budget, what happened on it, and how to take one step further."""

    parts: ClassVar[Parts]

    def __init__(self) -> None:
        super().__init__()
        self.client, self.clock, self.budget = self.parts.client, self.parts.clock, self.parts.budget
        self.accounts, self.sweep_clock, self.jobs = self.parts.accounts, self.parts.sweep_clock, self.parts.jobs
        self.client.flushdb()
        self.clock.reset()
        self.real = 0.0  # seconds since the start, by a clock that is never set back
        self.set_back = 0.0  # by how many seconds the server's clock was set back in all
        self.known: dict[str, tuple[JobRecord, CallClass]] = {}
        self.handed_out: list[str] = []  # holders with a reserved slot that have not asked for it
        self.calls: list[Call] = []
        self.arrivals: list[float] = []
        self.history: list[tuple[float, int]] = []  # from when on which limit of calls was in force
        self.caps = AccountLimits(1, WINDOW, training_limit=TRAINING_LIMIT)
        self.stopped = False
        self.submitted: list[int] = []  # days of the submits that took a slot and were not given back
        self.last_day = 0  # the last one's
        self.training: dict[str, int] = {}  # since when, by the server's clock
        self.paused_until = 0  # ms of the server's clock, as all that end in _until
        self.probing = False  # after a pause, until a call has gone well: one tries for all
        self.tested_until = 0  # until when nobody else may try
        self.tester = ""  # who was handed a slot to try for all others
        self.probe: Call | None = None  # who tries
        self.asleep_until = 0.0  # until when the dispatchers sleep if nobody wakes them

    # what happens

    def _come(self, calls: list[CallClass], priority: int = 5) -> None:
        """Let stages ask for a slot, and park where they get none."""
        for call in calls:
            job, _ = self.jobs.register(new_job_id(), sample_request(priority=priority), delay=FOREVER)
            if call is CallClass.SUBMIT:
                for state in (JobState.UPLOADING, JobState.SUBMITTING):
                    job = self.jobs.transition(job, Change(delay=FOREVER), to=state)
            self.known[job.id] = job, call
            self._ask(job.id)
            self._tick(0.001)

    def _dispatch(self, limit: int = 10, *, prepare: bool = True) -> None:
        """Hand out slots, as a dispatcher does that was woken, or that looks though nobody woke it."""
        asleep = self.client.llen(keys.wake()) == 0 and self.clock.ms < self.asleep_until
        self.client.delete(keys.wake())
        before = self._room()
        holders, wait = self.budget.reserve("default", limit, prepare=prepare)
        after = self._room()
        assert not (asleep and holders), f"{holders} could have started while all slept"
        self.asleep_until = self.clock.ms + (FOREVER if wait is None else wait) * 1000
        if limit < 10 or not prepare:
            self.asleep_until = 0.0
        if holders:
            self._may_go(*holders)
        self._in_order(before, after, [each for each in holders if each != SWEEP])
        all_taken = self._taken() >= self.caps.calls or len(holders) == limit
        if prepare and not (all_taken or self.probing or self.clock.ms < self.paused_until):
            assert {self.known[each][1] for each in after} <= {CallClass.SUBMIT}, "a slot is free for who waits"
            assert not after or self._submits_left() <= self._handed_submits(), "and so for a submit"
        self.handed_out += holders

    def _ask(self, holder: str) -> None:
        job, call = self.known.get(holder, (None, CallClass.FINISH))
        submit = call is CallClass.SUBMIT
        handed = self._has(holder)
        free, ahead = self.caps.calls - self._taken(), 0
        try:
            if job is None:
                reply = self.budget.take_to_sweep("default", CALL_TIMEOUT + 5.0)
            else:
                score = room_score(call, job)
                ahead = self.client.zcount(keys.room("default"), "-inf", f"({score}")
                reply = self.budget.take("default", holder, score, submit=submit, claimed=job)
        except AlreadySweptError:
            self.asleep_until = 0.0
            return
        if isinstance(reply, NoSlot):
            if handed:
                self.asleep_until = 0.0  # it gave up what it was handed: the next look is 5 s away at most
            if job is not None:
                change = Change(delay=FOREVER, room_score=room_score(call, job))
                self.known[holder] = self.jobs.transition(job, change, waiting_for=reply.reason), call
            return
        assert handed or free > ahead, "it went before who is in front"
        self._may_go(holder, takes=True)
        self.calls.append(Call(reply, holder, self.real, submit))
        if self.probing:
            self.probe = self.calls[-1]
        if submit:
            self._may_submit(holder)
            self.asleep_until = 0.0  # its first sweep is planned for later than the next look

    def _has(self, holder: str) -> bool:
        """Tell whether a slot is reserved for the holder now."""
        names = (f"reserved:{holder}", f"reserved:submit:{holder}")
        return any((self.client.zscore(keys.slots("default"), name) or 0) > self.clock.ms for name in names)

    def _end(self, call: Call, how: str, seconds: float) -> None:
        call.open = False
        late = self.real - call.began > CALL_TIMEOUT
        if how in {"well", "503", "429 with a time"} and not late:
            self._arrive(call)
        call.under_way = how == "timed out" and not call.arrived
        undone = how in {"429 with a time", "not sent", "refused"}
        if how == "well":
            self.budget.end(call.slot)
            if self.clock.ms >= self.paused_until:
                self.probing = False
        elif how == "not sent":
            self.budget.end_without_news(call.slot)
        elif how == "refused":
            self.budget.end(call.slot, refund=call.submit)
            if self.clock.ms >= self.paused_until:
                self.probing = False
        else:
            after = seconds if how == "429 with a time" else None
            paused = self.budget.pause(
                call.slot, how, after, refund=call.submit and undone, under_way=how == "timed out"
            )
            self.paused_until = max(self.paused_until, self.clock.ms + int(paused * 1000))
            self.probing, self.tested_until = True, 0
        if call is self.probe:
            self.tested_until = 0
        if call.submit and undone and (day := call.slot.at_ms // 86_400_000) in self.submitted:
            self.submitted.remove(day)
        self._go_on(call, undone=undone)

    def _go_on(self, call: Call, *, undone: bool) -> None:
        if call.holder == SWEEP:
            self.sweep_clock.swept("default", 30.0, idle=20.0, affordable=5.0, gap=2.0)
            self.asleep_until = 0.0
            return
        job, what = self.known[call.holder]
        if undone:
            self.training.pop(job.id, None)
            change = Change(delay=FOREVER, room_score=room_score(what, job))
            self.known[job.id] = self.jobs.transition(job, change, waiting_for=WaitReason.PAUSED), what
        elif what is CallClass.SUBMIT:
            self.known[job.id] = self.jobs.transition(job, Change(delay=FOREVER), to=JobState.TRAINING), what
        else:
            self.jobs.transition(job, Change(), to=JobState.CANCELLED)
            del self.known[job.id]

    def _end_training(self, job_id: str) -> None:
        job, call = self.known[job_id]
        if job.state is JobState.TRAINING:
            self.known[job_id] = self.jobs.transition(job, Change(delay=FOREVER), to=JobState.DOWNLOADING), call
            del self.training[job_id]

    def _tick(self, seconds: float) -> None:
        self.real += seconds
        self.clock.advance(seconds)

    def _configure(self, changed: AccountLimits) -> None:
        self.accounts.configure("default", changed)
        self.history.append((self.real, changed.calls))
        self.caps = changed

    def _stop_submits(self, *, stopped: bool) -> None:
        self.accounts.stop_submits("default", stopped=stopped)
        self.stopped = stopped

    # what must hold

    def _may_go(self, *holders: str, takes: bool = False) -> None:
        """Check that a call may start, or that they may be handed slots."""
        assert self.clock.ms >= self.paused_until, "during a pause"
        if not self.probing:
            return
        assert len(holders) == 1, "one tries whether all is well"
        assert self.clock.ms >= self.tested_until or (takes and self.tester == holders[0]), "two try at once"
        self.tester, self.probe = "" if takes else holders[0], None
        self.tested_until = self.clock.ms + int((CALL_TIMEOUT if takes else HANDOVER) * 1000)

    def _may_submit(self, holder: str) -> None:
        assert not self.stopped
        self.last_day = self._day()
        self.submitted.append(self.last_day)
        if self.caps.max_submits_per_day is not None:
            assert self.submitted.count(self.last_day) <= self.caps.max_submits_per_day
        self.training.setdefault(holder, self.clock.ms)
        if self.caps.max_training is not None:
            assert self._in_flight() <= self.caps.max_training

    def _in_flight(self) -> int:
        since = self.clock.ms - TRAINING_LIMIT * 1000
        return sum(began >= since for began in self.training.values())

    def _day(self) -> int:
        """Return the day that counts: one that began goes on if the clock goes back."""
        day = self.clock.ms // 86_400_000
        return day + (self.last_day == day + 1)

    def _submits_left(self) -> float:
        if self.stopped:
            return 0
        today = self.submitted.count(self._day())
        most = (self.caps.max_submits_per_day, today), (self.caps.max_training, self._in_flight())
        return min((cap - used for cap, used in most if cap is not None), default=FOREVER)

    def _handed_submits(self) -> int:
        return sum(each.startswith("reserved:submit:") for each in self.client.zrange(keys.slots("default"), 0, -1))

    def _in_order(self, before: list[str], after: list[str], holders: list[str]) -> None:
        """Check that the first of each class were taken, in order, and no class before one in front of it."""

        def place(job_id: str) -> tuple[int, int, int]:
            job, call = self.known[job_id]
            return call, -job.request.priority, job.created_ms

        assert before == sorted(before, key=place)
        assert set(before) == set(after) | set(holders)
        assert holders == [each for each in before if each in holders]
        for call in CallClass:
            of_it = [each for each in before if self.known[each][1] is call]
            assert [each in holders for each in of_it] == sorted((each in holders for each in of_it), reverse=True)
        last = max((self.known[each][1] for each in holders), default=CallClass.FINISH)
        if last > CallClass.FINISH:
            assert all(self.known[each][1] is not CallClass.FINISH for each in after)
        if any(self.known[each][1] is CallClass.SUBMIT for each in holders):
            assert self._handed_submits() <= self._submits_left(), "more than the caps leave room for"

    # words

    @staticmethod
    def _one_of(among: list[Any], index: int) -> Any:
        return among[index % len(among)]

    def _room(self) -> list[str]:
        return list(self.client.zrange(keys.room("default"), 0, -1))

    def _taken(self) -> int:
        return int(self.client.zcount(keys.slots("default"), f"({self.clock.ms}", "+inf"))

    def _open(self) -> list[Call]:
        return [call for call in self.calls if call.open]

    def _on_their_way(self) -> list[Call]:
        """Calls that may arrive: also of callers who died, or gave up, until the longest that a call may take."""
        return [
            call
            for call in self.calls
            if call.under_way and not call.arrived and self.real - call.began <= CALL_TIMEOUT
        ]

    def _arrive(self, call: Call) -> None:
        if not call.arrived:
            call.arrived = True
            self.arrivals.append(self.real)
