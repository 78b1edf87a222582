"""The one error of a delivery."""


class DeliveryError(Exception):
    """A sink did not take an event; the sentence names no URL.

    ``status`` is that of an HTTP answer. ``unreachable``: nothing gets through to the sink's origin now, so that the
    deliveries of others need not be tried either, for ``after`` seconds if it said so. ``hopeless``: it will not take
    the event later either. ``gone``: it said that it wants none of the job's events any more.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        unreachable: bool = False,
        hopeless: bool = False,
        gone: bool = False,
        after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.unreachable = unreachable
        self.hopeless = hopeless
        self.gone = gone
        self.after = after
