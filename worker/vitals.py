"""How a worker is: what it measured, whether it gets ahead, whether its model works."""

from __future__ import annotations

from dataclasses import dataclass

from worker.activity import Activity
from worker.canary import CanaryWatch, canary
from worker.meters import Meters
from worker.runtime import PredictorLike
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class Vitals:
    """What a worker's threads say of it; made once, after the model was loaded.

    Attributes:
        meters: any thread's.
        activity: touched by the main thread, looked at by the pulse.
        canary: the main thread's.
    """

    meters: Meters
    activity: Activity
    canary: CanaryWatch

    @classmethod
    def of(cls, predictor: PredictorLike, settings: WorkerSettings) -> Vitals:
        """Return the vitals of a worker whose model has just proved that it works."""
        activity = Activity()
        watch = CanaryWatch(
            lambda: canary(predictor),
            activity,
            interval=settings.canary,
            patience=settings.canary_patience,
        )
        return cls(Meters(device_memory=predictor.device_memory), activity, watch)

    def idle(self) -> None:
        """Say that the main thread is alive and has nothing to do; the canary may be due.

        Raises:
            CanaryError: if it fails.
        """
        self.activity.rest()
        self.canary.check()
        self.activity.rest()
