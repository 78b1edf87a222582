"""What tasks and boot steps find on the Celery application: this process's container."""

import os
import threading

import structlog
from celery import Celery
from celery.exceptions import WorkerShutdown

from finetune_queue.settings import Settings
from finetune_worker.container import Container
from finetune_worker.work_folder import WorkFolderError

log = structlog.get_logger(__name__)


class Runtime:
    """The container of this process, built when first used: after a fork, never before."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self._app = app
        self._lock = threading.Lock()
        self._built: tuple[int, Container] | None = None

    @property
    def container(self) -> Container:
        """The process's one container.

        Raises:
            WorkerShutdown: there is no folder that this worker can work in.
        """
        with self._lock:
            if self._built is None or self._built[0] != os.getpid():
                try:
                    self._built = (os.getpid(), Container.build(self.settings, self._app))
                except WorkFolderError as error:
                    log.critical("work_folder_unfit", error=error.detail)
                    raise WorkerShutdown(1) from error
            return self._built[1]

    def sign_off(self) -> None:
        """Let this process's container, if there is one, tell that it ends."""
        if self._built is not None and self._built[0] == os.getpid():
            self._built[1].sign_off()
