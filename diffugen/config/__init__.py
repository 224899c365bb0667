"""The configuration: its sections, its files, and every mistake of a file in one list.

The home of pydantic. A section says which values are allowed; it does not know what they do.
"""

from diffugen.config.files import config_path, list_configs
from diffugen.config.generation import PromptSettings, Region, Task
from diffugen.config.labelling import Labelling, LabelSettings, ScoreWeights
from diffugen.config.load import kept_config, load_config
from diffugen.config.sections import (
    Config,
    DatasetSettings,
    DetectorSettings,
    DiffusionSettings,
    DisagreementSettings,
    ExecutorSettings,
    Generation,
    LoopSettings,
    ReviewSettings,
    TrainingPolicy,
    TuneSettings,
)

__all__ = [
    "Config",
    "DatasetSettings",
    "DetectorSettings",
    "DiffusionSettings",
    "DisagreementSettings",
    "ExecutorSettings",
    "Generation",
    "LabelSettings",
    "Labelling",
    "LoopSettings",
    "PromptSettings",
    "Region",
    "ReviewSettings",
    "ScoreWeights",
    "Task",
    "TrainingPolicy",
    "TuneSettings",
    "config_path",
    "kept_config",
    "list_configs",
    "load_config",
]
