"""The thresholds of groups and robustness, each with where it comes from. They are the house's, not nature's."""

from __future__ import annotations

STOP_KEPT = 0.5
LOOK_KEPT = 0.8
KEPT_SOURCE = (
    "house rule (docs/decisions/0013): less than half of the skill kept stops, less than four fifths is looked at; the "
    "interval must lie beyond it"
)
LEAST_GROUP = 20  # a smaller group is shown and not judged
LOOK_CALIBRATION = 0.05
STOP_CALIBRATION = 0.15
CALIBRATION_SOURCE = (
    "house rule on the calibration error beyond what a calibrated version of this n shows by chance (consistency "
    "resampling, Bröcker and Smith 2007)"
)
LOOK_STRANGE = 0.7
STRANGE_SOURCE = "house rule: an area under the ROC curve below 0.7 tells strange from usual inputs badly"
STOP_WORSE = 0.25
WORSE_SOURCE = (
    "house rule: any difference from the baseline beyond the interval is looked at; one above a quarter of the guess's "
    "error stops"
)
