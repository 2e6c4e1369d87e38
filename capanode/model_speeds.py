"""How fast the models of one node are: what `capanode.benchmark` keeps, found by model."""

from capanode.benchmark import Measurement, SpeedCache, speed_key
from capanode.measurements import Speed
from capanode.served import ServedModel
from capanode.worker.jobs import JobWorker
from capanode.workers import ModelPlan
from protocol.clock import Clock
from protocol.offers import Hardware


class ModelSpeeds:
    """`hardware` runs the models that name no other, `software` is the version of the node."""

    def __init__(
        self, cache: SpeedCache, *, hardware: Hardware, software: str, clock: Clock
    ) -> None:
        self._cache = cache
        self._hardware = hardware
        self._software = software
        self._clock = clock

    def known(self, plan: ModelPlan, slots: int) -> Speed | None:
        """From an earlier run, or from this one."""
        key = self._key_of_plan(plan, slots)
        return self._cache.find(key, now_ms=self._clock.now_ms())

    async def measure(self, plan: ModelPlan, worker: JobWorker) -> Speed:
        """For the first time. Raises BenchmarkError."""
        assert worker.info is not None, "a worker is measured after it was ready"
        key = self._key_of_plan(plan, worker.info.slots)
        measured = await self._cache.measure(key, worker, now_ms=self._clock.now_ms())
        self._cache.keep(key, measured)
        return measured.speed

    async def measure_again(self, model: ServedModel) -> Measurement:
        """Nothing is kept before `keep`. Raises BenchmarkError."""
        key = self._key_of(model)
        return await self._cache.measure(key, model.worker, now_ms=self._clock.now_ms())

    def keep(self, model: ServedModel, measured: Measurement) -> Speed:
        """Returns what counts now, which may be an earlier and better one."""
        key = self._key_of(model)
        self._cache.keep(key, measured)
        speed = self._cache.find(key, now_ms=self._clock.now_ms())
        assert speed is not None, "one was kept just now"
        return speed

    def doubt(self, model: ServedModel) -> None:
        """The next measurement replaces it."""
        self._cache.doubt(self._key_of(model))

    def is_settled(self, model: ServedModel) -> bool:
        """False if it was only measured while other programs were busy."""
        return self._cache.is_settled(self._key_of(model))

    def _key_of_plan(self, plan: ModelPlan, slots: int) -> str:
        return speed_key(
            plan.digest,
            plan.hardware or self._hardware,
            slots=slots,
            threads=plan.threads,
            software=self._software_with(vllm=plan.with_vllm),
        )

    def _key_of(self, model: ServedModel) -> str:
        return speed_key(
            model.digest,
            model.hardware or self._hardware,
            slots=model.seats.slots,
            threads=model.threads,
            software=self._software_with(vllm=model.with_vllm),
        )

    def _software_with(self, *, vllm: bool) -> str:
        return f"{self._software} with vLLM" if vllm else self._software
