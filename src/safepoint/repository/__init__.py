"""Repositories: snapshots made of packs and manifests; commit, restore, prune, collect, verify."""

from safepoint.repository.asked import check_metrics, check_step, check_tags
from safepoint.repository.compact import Compaction
from safepoint.repository.config import decode_config, encode_config
from safepoint.repository.derived import Derived
from safepoint.repository.history import Mode, Snapshot, direction, first_metric, lineage, ranked
from safepoint.repository.manifest import Manifest
from safepoint.repository.model_file import ModelFile, is_model_header, read_model_file, write_model_file
from safepoint.repository.read import Before, Verify, staging
from safepoint.repository.repair import Repair
from safepoint.repository.repository import Repository, Retention
from safepoint.repository.stored import Progress, Stored
from safepoint.repository.survey import Damage
from safepoint.repository.verify import Verification
from safepoint.repository.workers import Workers

__all__ = [
    "Before",
    "Compaction",
    "Damage",
    "Derived",
    "Manifest",
    "Mode",
    "ModelFile",
    "Progress",
    "Repair",
    "Repository",
    "Retention",
    "Snapshot",
    "Stored",
    "Verification",
    "Verify",
    "Workers",
    "check_metrics",
    "check_step",
    "check_tags",
    "decode_config",
    "direction",
    "encode_config",
    "first_metric",
    "is_model_header",
    "lineage",
    "ranked",
    "read_model_file",
    "staging",
    "write_model_file",
]
