"""The training step shared by all our models: optimizer, regularizers, diagnostics and heuristics by plugin."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

import morphlightning
from morphlightning import pipeline, registry
from morphlightning.callbacks import missing_callbacks
from morphlightning.callbacks.random_state import capture, restore
from morphlightning.checkpoint_io import SafeCheckpointIO
from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.interfaces import (
    Batch,
    Constrained,
    Loop,
    Regularizer,
    RegularizerContext,
    Spec,
    TorchOptimizer,
    TrainerFacts,
)
from morphlightning.layers import MorphLayer, apply_update_heuristics, initialize
from morphlightning.models import auxiliary
from morphlightning.models.finite_steps import refused_heuristics
from morphlightning.models.loop_context import LoopContext
from morphlightning.models.losses import Loss
from morphlightning.models.parameters import build_optimizer, parameter_groups
from morphlightning.models.passes import ends_pass, keep_count, training_data
from morphlightning.models.watched import Watched

COMPONENTS = {
    "activation": "activations",
    "derivative": "derivatives",
    "heuristic": "heuristics",
    "initializer": "initializers",
    "optimizer": "optimizers",
    "regularizers": "regularizers",
    "diagnostics": "diagnostics",
}
"""The arguments of our models that are components, and their kinds."""


class PluginTraining(L.LightningModule):
    """A LightningModule whose optimizer, regularizers and diagnostics are plugins.

    A subclass builds its network, defines ``forward`` and ``evaluate``, and calls :meth:`declare` for the components
    it was given. Training is automatic with a ``TorchOptimizer`` and manual with a ``Loop``; nothing else changes.

    Args:
        data_loss: Mean loss of (output, target).
        optimizer: A component of kind optimizers.
        regularizers: Components whose terms are added to the loss.
        diagnostics: Components that run as callbacks of this model.

    Attributes:
        max_initialize_batches: How many batches a process and pass initializers read when ``fit`` begins; None for all.
    """

    max_initialize_batches: int | None = None
    applies_update_heuristics: ClassVar[bool] = True  # so that the callback MorphUpdates leaves it to us

    def __init__(
        self, data_loss: Loss, optimizer: Spec, regularizers: Sequence[Spec] = (), diagnostics: Sequence[Spec] = ()
    ) -> None:
        super().__init__()
        self.data_loss = data_loss
        self.optimizer_component: TorchOptimizer | Loop = registry.build("optimizers", optimizer)
        self.automatic_optimization = not isinstance(self.optimizer_component, Loop)
        if isinstance(self.optimizer_component, Loop):
            self.optimizer_component.take_loss(data_loss)
        self.regularizers: dict[str, Regularizer] = {}
        for spec in _several("regularizers", regularizers):
            self.regularizers[_label(spec, self.regularizers)] = registry.build("regularizers", spec)
        self.diagnostics: list[Callback] = [
            registry.build("diagnostics", spec) for spec in _several("diagnostics", diagnostics)
        ]
        self._watched = Watched()
        self._auxiliary: Any = []
        self._components: list[dict[str, str]] = []
        self._unsaveable: list[str] = []

    def declare(self, hyperparameters: dict[str, Any], **kinds: str) -> None:
        """Save hyperparameters as plain values and remember who provides the components among them.

        Args:
            hyperparameters: Constructor arguments by name.
            **kinds: Which of them are components, and of which kind.
        """
        plain = dict(hyperparameters)
        for name, kind in kinds.items():
            try:
                plain[name] = self._plain(kind, hyperparameters[name])
            except ConfigError as error:
                self._unsaveable.append(f"{name}: {error}")
                plain[name] = repr(hyperparameters[name])
        self.save_hyperparameters(plain)

    def _plain(self, kind: str, spec: Spec) -> Any:
        several = isinstance(spec, list | tuple)
        for part in pipeline.split(spec) if kind == "heuristics" else spec if several else [spec]:
            self._components.append(registry.provenance(kind, part))
        if several:
            return [registry.config(kind, part) for part in spec]
        return spec if isinstance(spec, str) else registry.config(kind, spec)

    @property
    def example_input_array(self) -> Any:
        """What a model summary runs, in the parameters' dtype."""
        example = super().example_input_array
        return example.to(self.dtype) if isinstance(example, Tensor) else example

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        self._example_input_array = example

    # ------------------------------------------------------------------------------------------ for subclasses
    @abstractmethod
    def evaluate(self, batch: Any, stage: str) -> None:
        """Log the metrics of a validation or test batch under ``<stage>/``."""

    def loss(self, output: Tensor, target: Tensor, inputs: Tensor, prefix: str = "train") -> Tensor:
        """Data loss plus regularizers, logged as ``<prefix>/loss`` and ``regularizer/<name>``."""
        total = self.data_loss(output, target)
        self.log_mean(f"{prefix}/loss", total, inputs, on_step=True, prog_bar=True)
        size, seen = self._dataset_size, self._watched.activations
        context = RegularizerContext(inputs, output, self.global_step, size, seen, self._of_all_processes)
        for name, regularizer in self.regularizers.items():
            term = regularizer.term(self, context)
            self.log_mean(f"regularizer/{name}", term, inputs)
            total = total + term
        return total

    def _of_all_processes(self, value: Tensor) -> Tensor:
        """Values of all processes, stacked, without gradients."""
        gathered: Any = self.all_gather(value.detach())
        stacked: Tensor = gathered.reshape(-1, *value.shape)
        return stacked

    def log_mean(self, name: str, value: Tensor, inputs: Tensor, on_step: bool = False, prog_bar: bool = False) -> None:
        """Log the mean of ``value`` over the samples of an epoch and all processes."""
        size = len(inputs)
        value = value.detach()
        self.log(name, value, prog_bar, on_step=on_step, on_epoch=True, sync_dist=True, batch_size=size)

    @property
    def _dataset_size(self) -> int:
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else 0

    # ---------------------------------------------------------------------------------------------- initialization
    def site_target(self, name: str, batch: Any) -> Tensor | None:
        """What the layer ``name`` should give for a batch, for initializers that learn from pairs.

        None (the default) where nobody knows: the layer whose output is the model's then gets the batch's target,
        classes as 1 for the class and 0 for the others; any other layer is refused.
        """
        return None

    def initialize(self, data: L.LightningDataModule | Iterable[Any], max_batches: int | None = None) -> list[str]:
        """Let layers learn their start whose initializers ask for data; ``fit`` does it where it is still to be done.

        Random states and the state of the training loader stay as they are. Layers that were initialized, trained or
        loaded before are left alone.

        Args:
            data: A data module, whose training data are read, or a loader of batches (inputs, target).
            max_batches: At most so many batches a process and pass; None for all.

        Returns:
            The names of the layers that learned, in the order in which the model calls them.

        Raises:
            MorphLightningError: As :func:`morphlightning.layers.initialize`.
        """
        if isinstance(data, L.LightningDataModule):
            data.prepare_data()
            data.setup("fit")
            loader: Iterable[Any] = data.train_dataloader()
        else:
            loader = data
        state = capture(self.device)
        try:
            return initialize(self, loader, target=self.site_target, max_batches=max_batches)
        finally:
            restore(state, self.device)

    def on_fit_start(self) -> None:
        """Initialize from the training data what asks for them; modules are restored by now, so not on resume."""
        if any(isinstance(layer, MorphLayer) and layer.awaits_data for layer in self.modules()):
            loader = self.trainer.fit_loop._data_source.dataloader()  # one of its own: training's is not touched
            limit = self.trainer.limit_train_batches
            caps = [limit if isinstance(limit, int) else None, self.max_initialize_batches]
            self.initialize(loader, min((cap for cap in caps if cap is not None), default=None))

    # ------------------------------------------------------------------------------------------------- training
    def configure_callbacks(self) -> list[Callback]:
        """The guards that the Trainer lacks, and this model's diagnostics."""
        return [*missing_callbacks(self.trainer.callbacks), *self.diagnostics]  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Let regularizers, heuristics and the loop look at the model and refuse what they cannot do."""
        if stage != "fit":
            return
        self._auxiliary = []  # of a file that was loaded otherwise; a checkpoint to resume from comes later
        for regularizer in self.regularizers.values():
            regularizer.bind(self)
        facts, loop = self._facts(), self.optimizer_component
        _refuse("this model's heuristics", refused_heuristics(self, facts))
        if isinstance(loop, Loop):
            _refuse(type(loop).__name__, loop.refuse(facts))

    def _facts(self) -> TrainerFacts:
        trainer = self.trainer
        return TrainerFacts(
            precision=str(trainer.precision),
            strategy=type(trainer.strategy).__name__,
            world_size=trainer.world_size,
            gradient_clip_val=trainer.gradient_clip_val,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            callbacks=tuple(type(callback).__name__ for callback in trainer.callbacks),  # type: ignore[attr-defined]
            regularizers=tuple(self.regularizers),
        )

    @property
    def owns_samples(self) -> bool:
        """Whether training data must come with indices, each sample from the same process for ever."""
        return isinstance(self.optimizer_component, Loop) and self.optimizer_component.owns_samples

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The plugin's optimizer; after each of its steps regularizers take theirs, then constraints are restored."""
        component = self.optimizer_component
        if isinstance(component, Loop):
            component.bind(self, parameter_groups(self))
            optimizer, schedule = component.optimizer(), None
        else:
            optimizer = build_optimizer(self, component)
            schedule = component.scheduler(optimizer, self._total_steps(), self.trainer.max_epochs or -1)
        optimizer.register_step_post_hook(self._after_step)
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer  # type: ignore[return-value]

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        # It has made the training loader, before a resumed run knows the loader's saved state; a loader that is there
        # already would never be given it (Lightning 2.6). So the loader is made anew when training begins.
        self.trainer.fit_loop._combined_loader = None
        return int(total) if total != float("inf") else -1

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for regularizer in self.regularizers.values():
            regularizer.prox_(self, steps)
        for module in self.modules():
            if isinstance(module, Constrained):
                module.project_()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One step: loss and regularizers, or one iteration of the loop."""
        batch = Batch(*batch)
        inputs = batch.input
        if not isinstance(self.optimizer_component, Loop):
            return self.loss(self(inputs), batch.target, inputs)
        context = LoopContext(self, inputs, ends_pass(self.trainer, batch_idx))
        logged = self.optimizer_component.step(batch, context)
        due = int(context.ends_pass or not self.optimizer_component.steps_once_a_pass)
        if context.steps != due:
            when = "once" if due else "in the last batch of a pass alone"
            raise ConfigError(
                f"{type(self.optimizer_component).__name__}.step called context.step {context.steps} times in one "
                f"iteration; it must be called exactly {when}, or global_step and checkpoints go wrong"
            )
        for name, value in logged.items():
            if name != "loss" or not context.logged_loss:
                shown = name in ("loss", "primal_residual")
                self.log(f"train/{name}", value.detach(), prog_bar=shown, batch_size=len(inputs))
        return None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Watch the outputs that regularizers ask for."""
        names = [name for regularizer in self.regularizers.values() for name in regularizer.watches(self)]
        self._watched.begin(self, names)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look away, so that nothing else finds a hook."""
        self._watched.end()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are reduced and unscaled: hand them through the update heuristics."""
        apply_update_heuristics(self, optimizer)

    def on_validation_epoch_start(self) -> None:
        """Begin the metrics anew."""
        self._reset_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Begin the metrics anew."""
        self._reset_metrics("test")

    def _reset_metrics(self, stage: str) -> None:
        """Forget the tensors that ``Trainer.validate`` left: those of inference mode break a later fit."""
        stages: Any = getattr(self, "stage_metrics", {})
        if stage in stages:
            stages[stage].reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Metrics of a validation batch."""
        self.evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Metrics of a test batch."""
        self.evaluate(batch, "test")

    # ---------------------------------------------------------------------------------------------- checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the components' providers and the loop's auxiliary state; called on every process."""
        if self._unsaveable:
            raise ConfigError("this model cannot be saved:\n  - " + "\n  - ".join(self._unsaveable))
        saved: dict[str, Any] = {"version": morphlightning.__version__, "components": self._components}
        if isinstance(self.optimizer_component, Loop):
            saved["auxiliary"] = auxiliary.save(self.trainer, self.optimizer_component)
        checkpoint["morphlightning"] = saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loop's auxiliary state until the loop is bound.

        Parameters take their dtype now: Lightning gives it to them after it has loaded the weights, which in float64
        would have been rounded by then.
        """
        if self._trainer is not None:
            self.trainer.precision_plugin.convert_module(self)
        self._auxiliary = checkpoint.get("morphlightning", {}).get("auxiliary", [])

    def on_train_start(self) -> None:
        """Let the loop look at the training data, and restore its auxiliary state."""
        keep_count(self.trainer)
        saved, self._auxiliary = self._auxiliary, []
        if isinstance(self.optimizer_component, Loop):
            loop = self.optimizer_component
            _refuse(
                type(loop).__name__, loop.refuse_data(training_data(self.trainer, loop.owns_samples)), "on these data"
            )
            auxiliary.load(self.trainer, loop, saved)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """As Lightning's, after checking the file and that the components it needs are installed.

        Raises:
            CheckpointError: The file is damaged.
            PluginNotFoundError: A component is missing; the message names the distribution that provides it.
        """
        weights_only = kwargs.setdefault("weights_only", True)
        checkpoint = SafeCheckpointIO().load_checkpoint(checkpoint_path, "cpu", weights_only)
        registry.require(checkpoint.get("morphlightning", {}).get("components", []), str(checkpoint_path))
        model: Self = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        return model


def _refuse(what: str, reasons: Sequence[str], where: str = "under these settings") -> None:
    if reasons:
        raise NotSupportedError(f"{what} cannot train {where}:\n  - " + "\n  - ".join(reasons))


def _several(name: str, specs: Sequence[Spec]) -> Sequence[Spec]:
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ConfigError(f"{name}={specs!r}: expected a list of components, such as [{specs!r}]")
    return specs


def _label(spec: Spec, taken: dict[str, Any]) -> str:
    name = spec if isinstance(spec, str) else spec["name"] if isinstance(spec, dict) else type(spec).__name__
    label = str(name).rpartition(":")[2]
    return label if label not in taken else f"{label}_{sum(key.startswith(label) for key in taken) + 1}"
