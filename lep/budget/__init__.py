"""What every stage of a run will take, told from its config alone: nothing is downloaded, loaded or computed.

In: a composed config and the device it is to run on. Out: a row a stage, warnings with their remedies, and notes on
what could not be told. The formulas are those of `lep.cost`; here is where their arguments stand in a config, and what
is assumed of data that nobody has read yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from lep import cost
from lep.budget.after import benchmark_rows, calibration_rows, propagation_rows
from lep.budget.forecast import Device, Forecast, Row, gigabytes, read_forecast
from lep.budget.text import corpus_rows, tokenizer_rows
from lep.budget.training import larger_batches, training_remedies, training_rows
from lep.config import check, plain, planned_stages
from lep.cost import Shape

ROWS = {
    "corpus": corpus_rows,
    "tokenizer": tokenizer_rows,
    "training": training_rows,
    "propagation": propagation_rows,
    "calibration": calibration_rows,
    "benchmark": benchmark_rows,
}


@dataclass(frozen=True)
class Budget:
    """All that a run takes. source: where the model's shape was read. stored: bytes of a weight on disk.

    warnings: what does not fit, and what would. notes: what could not be told.
    """

    shape: Shape
    source: str
    stored: int
    device: Device
    devices: int
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def efficiency(self) -> float:
        """The share of the device's operations a second that this model reaches; a CPU's does not depend on width."""
        return self.device.efficiency if self.device.is_cpu else cost.reached(self.shape, self.device.efficiency)

    def hours(self, row: Row) -> float | None:
        """How long a row takes on the device; None where something else does it, or its operations are not known."""
        if row.flops is None or not row.timed:
            return None
        busy = cost.hours(
            row.flops,
            flops_a_second=self.device.tflops * 1e12,
            efficiency=self.efficiency,
            devices=self.devices if row.stage == "training" else 1,
        )
        return busy if self.device.is_cpu else max(busy, cost.launch_hours(self.shape, row.batches))

    @property
    def total_hours(self) -> float:
        return sum(self.hours(row) or 0 for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops or 0 for row in self.rows)

    @property
    def disk(self) -> int:
        return sum(row.disk or 0 for row in self.rows)

    @property
    def memory(self) -> int:
        """The most that a stage takes on the device."""
        return max((row.memory.total for row in self.rows if row.memory), default=0)


def make_budget(config: DictConfig, device: Device) -> Budget:
    """What the stages that the config plans take. ValueError where nothing tells the size of its model."""
    forecast = read_forecast(config, device)
    planned = planned_stages(config)
    rows = [row for stage, make in ROWS.items() if stage in planned for row in make(forecast)]
    warnings = [warning for row in rows for warning in _too_large(forecast, row)]
    hints = larger_batches(forecast) if any(row.batches for row in rows) else ()
    notes = dict.fromkeys([*forecast.notes, *_said(config, device), *hints])
    return Budget(
        forecast.shape,
        forecast.source,
        forecast.stored,
        device,
        forecast.devices,
        tuple(rows),
        tuple(warnings),
        (*notes,),
    )


def _too_large(forecast: Forecast, row: Row) -> Iterator[str]:
    """Where a stage wants more memory than the device has, and what would help."""
    room, wanted = forecast.device.memory, row.memory.total if row.memory else 0
    if wanted <= room:
        return
    remedies = "; or ".join(training_remedies(forecast, room)) if row.stage == "training" else ""
    remedies = remedies or f"{_shorter_blocks(forecast, row)}a device with {gigabytes(wanted)}"
    name = forecast.device.name
    yield f"{row.stage} takes {gigabytes(wanted)}, {name} has {gigabytes(room)}. It fits with {remedies}"


def _shorter_blocks(forecast: Forecast, row: Row) -> str:
    """What would help a calibration; "" for other stages."""
    stage, _, name = row.stage.partition(" ")
    if stage != "calibration":
        return ""
    key = f"calibration.{name}.tuning"
    several = forecast.config.calibration[name].tuning.blocks_at_once > 1
    fewer = f"fewer blocks at once ({key}.blocks_at_once), " if several else ""
    return f"{fewer}shorter blocks ({key}.block_size), or "


def _said(config: DictConfig, device: Device) -> Iterator[str]:
    """Where the run would not be what was planned."""
    if str(plain(config.trainer.devices)) == "auto" and not device.is_cpu:
        yield "trainer.devices=auto is counted as one device; trainer.devices=N plans for N"
    if config.trainer.accelerator == "cpu" and not device.is_cpu:
        yield f"the config trains on a CPU (trainer.accelerator=cpu); add trainer=gpu to run on {device.name}"
    try:
        check(config)
    except ValueError as error:
        yield f"`lep` itself would refuse this: {error}"
