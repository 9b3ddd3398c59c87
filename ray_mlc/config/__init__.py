"""Typed jobs: one tree per kind decides everything a command does.

Sections are passed to the functions that need them, never the whole job. How YAML, options and
overrides become one is in `job_files`. A kind of job has a module; what they share is in
`sections`. Import from here.
"""

from ray_mlc.config.evaluation import EvaluateJob
from ray_mlc.config.scoring import (
    ACTORS_PER_NODE,
    ActorsConfig,
    BatchingConfig,
    DriftConfig,
    EngineConfig,
    LeaseConfig,
    LimitsConfig,
    LongConfig,
    ManyScoreJob,
    OutputConfig,
    ScoreJob,
    TokenizersConfig,
)
from ray_mlc.config.search import Space, SpaceRange, TuneJob
from ray_mlc.config.sections import (
    Duration,
    Range,
    Section,
    Size,
    WindowsConfig,
    parse_duration,
    parse_size,
    parse_time_of_day,
)
from ray_mlc.config.training import (
    DataConfig,
    LossConfig,
    TrackingConfig,
    TrainingConfig,
    TrainJob,
    WorkersConfig,
)

__all__ = [
    "ACTORS_PER_NODE",
    "ActorsConfig",
    "BatchingConfig",
    "DataConfig",
    "DriftConfig",
    "Duration",
    "EngineConfig",
    "EvaluateJob",
    "LeaseConfig",
    "LimitsConfig",
    "LongConfig",
    "LossConfig",
    "ManyScoreJob",
    "OutputConfig",
    "Range",
    "ScoreJob",
    "Section",
    "Size",
    "Space",
    "SpaceRange",
    "TokenizersConfig",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
    "TuneJob",
    "WindowsConfig",
    "WorkersConfig",
    "parse_duration",
    "parse_size",
    "parse_time_of_day",
]
