"""The one family of errors: each says where, what was given, what was expected and what to do next."""

from __future__ import annotations


class MorphLightningError(Exception):
    """Base of every error that morphlightning raises on purpose."""


class ShapeError(MorphLightningError, ValueError):
    """A tensor's shape does not fit; the message names the axis and both sizes."""


class DtypeError(MorphLightningError, TypeError):
    """A tensor's dtype does not fit, such as integer images where real values are needed."""


class ConfigError(MorphLightningError, ValueError):
    """An argument, a configuration file or a combination of settings that cannot work."""


class DataError(MorphLightningError, ValueError):
    """Data that are missing, empty or not finite; the message names the folder or the samples."""


class NonFiniteError(MorphLightningError, ArithmeticError):
    """A loss or a gradient became NaN or infinite; raised before the step that would spread it."""


class RankDisagreementError(MorphLightningError, RuntimeError):
    """Two processes of one run hold different parameters or different plugins."""


class CheckpointError(MorphLightningError, RuntimeError):
    """A checkpoint that is damaged, truncated or cannot be written; the message names the file."""


class RunExistsError(MorphLightningError, FileExistsError):
    """A run or a result is already there; nothing of a user's is overwritten."""


class NotSupportedError(MorphLightningError, RuntimeError):
    """A combination that a component refuses, with every reason at once."""


class NotCertifiable(NotSupportedError):
    """No bound, Lipschitz or interval, can be proved for a layer; the message names it and says why."""


class BrokenCertificateError(MorphLightningError, ArithmeticError):
    """An input was found that contradicts a certificate; the message names the samples or the layers' constants."""


class PluginError(MorphLightningError):
    """Base of what can go wrong with a plugin."""


class PluginNotFoundError(PluginError, LookupError):
    """No installed distribution offers the name."""


class PluginAmbiguousError(PluginError, LookupError):
    """Two distributions offer the same name; a qualified name (``distribution:name``) settles it."""


class PluginLoadError(PluginError, ImportError):
    """The plugin's module failed to import; the message names distribution, entry point and cause."""


class PluginContractError(PluginError, TypeError):
    """The object behind an entry point is not a component of its kind; every fault is listed."""


class PluginApiError(PluginError, RuntimeError):
    """The plugin was written for an API version that this morphlightning does not speak."""


class PluginParameterError(PluginError, TypeError):
    """Parameters that the component does not take or that it misses; the signature is shown."""


class PluginWarning(UserWarning):
    """Something about an installed plugin that breaks nothing but itself."""


class TrainingWarning(UserWarning):
    """A start or a setting from which some parameters will not learn; the message names them and a remedy."""
